"""Measurements of one machine as a profile of the kind that pricing reads first."""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl

from hwprofiles.calibration.profiles import MIN_ROWS, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.cluster import Cluster
from hwprofiles.timing.places import FAMILIES


def write_measured(
    folder: Path, table: pl.DataFrame, cluster: Cluster, backend: str
) -> Path | None:
    """Fit and write `DEVICE.BACKEND.json` and `.npz`, to be put into `hwprofiles/profiles`.

    Each family and format with enough rows becomes one table; rows whose tokens met only a part of
    the experts have no place in a table and are left to the curves.

    Args:
        folder: where both files go.
        table: columns of `MEASUREMENT`, quarantine left out.
        cluster: the machine, whose peaks the table's shares refer to.
        backend: name the profile is asked for by.

    Returns:
        Path of the card; none when no family has enough rows.
    """
    tables = list(_fitted(table, cluster))
    if not tables:
        return None
    card = {
        "schema_version": 1,
        "device": cluster.device.name,
        "backend": backend,
        "source": f"{table.height} rows measured on {cluster.device.title}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "certainty": "measured",
        "rows": sum(fit.card["rows"] for fit in tables),
        "dropped_rows": 0,
        "tables": [fit.card for fit in tables],
    }
    return write_profile(folder, card, tables)


def _fitted(table: pl.DataFrame, cluster: Cluster) -> list[Fitted]:
    found = []
    for (kernel,), part in table.group_by("kernel", maintain_order=True):
        if kernel not in FAMILIES:
            continue
        whole = part.filter(_every_expert()) if kernel == "grouped_gemm" else part
        names = FAMILIES[str(kernel)].keys
        for values, rows in whole.group_by(*names, maintain_order=True):
            if rows.height >= MIN_ROWS:
                keys = dict(
                    zip(names, (None if v is None else str(v) for v in values), strict=True)
                )
                seconds = rows.with_columns(seconds=pl.col("median_s"))
                found.append(fit_table(seconds, keys, cluster, "measurements.jsonl"))
    return found


def _every_expert() -> pl.Expr:
    stored = pl.col("experts") / pl.col("moe_ep").fill_null(1)
    return pl.col("active_experts").is_null() | (pl.col("active_experts") >= stored)
