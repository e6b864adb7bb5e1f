"""Fit all tables of one device and engine, and write them as a profile."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hwprofiles.calibration.aiconfigurator import (
    PACKAGE,
    PACKAGE_VERSION,
    SYSTEMS,
    Source,
    read_nccl,
    read_system,
)
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.profile import BACKENDS, SHARED

READ_ON = datetime.date(2026, 11, 24)
"""Day the package was read."""
MIN_ROWS = 20


def fit_system(root: Path, system: str, backend: str) -> tuple[dict[str, Any], list[Fitted]]:
    """Fit every table of a system and engine (`nccl`: its collectives).

    Returns:
        The profile's card and its tables, in the card's order.

    Raises:
        MoesaicError: `outside_evidence` when the package holds nothing for them.
    """
    device = SYSTEMS[system]
    cluster = cluster_for(device, 64, 8)
    found = read_nccl(root, system) if backend == SHARED else read_system(root, system, backend)
    tables = []
    dropped = 0
    for kernel, sources in _by_kernel(found).items():
        dropped += sum(s.dropped_count for s in sources)
        origin = "; ".join(dict.fromkeys(s.origin for s in sources))
        rows = pl.concat([s.rows for s in sources], how="diagonal_relaxed")
        for keys, part in _by_key(kernel, rows):
            if part.height >= MIN_ROWS:
                tables.append(fit_table(part, keys, cluster, origin))
    if not tables:
        raise MoesaicError("outside_evidence", f"{PACKAGE} has no {backend} tables of {system}")
    origin = f"{PACKAGE} {PACKAGE_VERSION} (PyPI, Apache-2.0), systems/data/{system}"
    return card_of(tables, (device, backend), (origin, READ_ON), dropped_rows=dropped), tables


def card_of(
    tables: Sequence[Fitted], of: tuple[str, str], told: tuple[str, datetime.date],
    *, dropped_rows: int = 0, **more: object,
) -> dict[str, Any]:  # fmt: skip
    """The card of a measured profile.

    Args:
        tables: what was fitted.
        of: device and backend.
        told: source and date of what was measured.
        dropped_rows: rows that were not fitted on.
        more: further entries, such as `conflicts`.
    """
    (device, backend), (source, date) = of, told
    return {
        "schema_version": 1, "device": device, "backend": backend, "source": source,
        "date": date.isoformat(), "certainty": "measured",
        "rows": sum(t.card["rows"] for t in tables), "dropped_rows": dropped_rows, **more,
        "tables": [t.card for t in tables],
    }  # fmt: skip


def _by_kernel(found: Iterator[Source]) -> dict[str, list[Source]]:
    kernels: dict[str, list[Source]] = {}
    for source in found:
        kernels.setdefault(source.kernel, []).append(source)
    return kernels


def _by_key(
    kernel: str, rows: pl.DataFrame
) -> Iterator[tuple[dict[str, str | None], pl.DataFrame]]:
    names = FAMILIES[kernel].keys
    for values, part in rows.group_by(*names, maintain_order=True):
        keys = {name: str(value) for name, value in zip(names, values, strict=True)}
        anything = keys.get("dtype") == "any" or keys.get("library") in ("nccl", "custom")
        yield ({**keys, "dtype": None} if anything else dict(keys)), part


def write_profile(folder: Path, card: dict[str, Any], tables: list[Fitted]) -> Path:
    """Write `DEVICE.BACKEND.json` and `.npz` into a folder; returns the card's path."""
    path = folder / f"{card['device']}.{card['backend']}.json"
    arrays: dict[str, Any] = {}
    for number, table in enumerate(tables):
        arrays[f"{number}.shapes"] = table.shapes
        arrays[f"{number}.residual"] = table.residual
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.with_suffix(".npz").write_bytes(buffer.getvalue())
    path.write_text(_card_text(card), encoding="utf-8")
    return path


def _card_text(card: dict[str, Any]) -> str:
    """One line a table, so that a refit can be read in a diff."""
    head = json.dumps({k: v for k, v in card.items() if k != "tables"}, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(table) for table in card["tables"])
    return f'{head},\n "tables": [\n  {lines}\n ]\n}}\n'


def summary(card: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a table: what was fitted, from how much, and how far off it is."""
    rows = []
    for table in card["tables"]:
        error = table.get("error_shapes") or table.get("error_sizes") or {}
        keys = ", ".join(str(v) for v in table["keys"].values() if v)
        rows.append(
            {"kernel": table["kernel"], "keys": keys, "rows": table["rows"],
             "shapes": table["shapes"], **error}
        )  # fmt: skip
    return rows


def fit_all(root: Path, system: str, folder: Path) -> list[dict[str, Any]]:
    """Fit and write every engine of a system; returns the cards."""
    cards = []
    for backend in (SHARED, *BACKENDS):
        card, tables = fit_system(root, system, backend)
        write_profile(folder, card, tables)
        cards.append(card)
    return cards
