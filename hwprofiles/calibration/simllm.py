"""Read simllm's NCCL measurements on nodes of four A100 or GH200, and fit GH200's profile.

github openfabric-systems/simllm (Apache-2.0), hardware envelopes flattened to `collectives.csv`:
device, scope, gpus_per_node, op, width, bytes, time_us, algbw_GBps, busbw_GBps, status.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.profiles import card_of, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_cluster
from hwprofiles.timing.profile import SHARED

SYSTEMS = {"gh200": "gh200"}
"""Systems: our device names. A100 has tables of its own; its rows check them."""
NAMES = {"a100-sxm-80g": "NVIDIA A100-SXM4-80GB", "gh200": "NVIDIA GH200 120GB"}
ORIGIN = "github openfabric-systems/simllm @ 9c2672cd (2026-08-21, Apache-2.0), collectives.csv"
PUBLISHED = datetime.date(2026, 8, 21)
OPERATIONS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
}
LEAST_BYTES = 256
"""Smallest message kept, as in the tables of other machines."""


def read_rows(path: Path, device: str) -> pl.DataFrame:
    """Collectives inside one node as kernel rows with seconds, times of zero or less left out.

    Raises:
        MoesaicError: `invalid` where the file is missing.
    """
    if not path.is_file():
        raise MoesaicError("invalid", f"no file {path}: collectives.csv of simllm", "/tables")
    return (
        pl.read_csv(path)
        .filter(
            (pl.col("device") == NAMES[device]) & (pl.col("scope") == "intra-node")
            & pl.col("op").is_in(list(OPERATIONS)) & (pl.col("time_us") > 0)
            & (pl.col("bytes") >= LEAST_BYTES)
        )
        .select(
            pl.col("op").replace(OPERATIONS).alias("kernel"), pl.lit(SHARED).alias("library"),
            pl.col("width").cast(pl.Float64).alias("devices"),
            pl.col("bytes").cast(pl.Float64).alias("message_bytes"),
            (pl.col("time_us") * 1e-6).alias("seconds"),
        )
    )  # fmt: skip


def fit_system(path: Path, system: str) -> tuple[dict[str, Any], list[Fitted]]:
    """Fit a table an operation; returns the profile's card and its tables."""
    device = SYSTEMS[system]
    cluster = load_cluster(f"{device}-x4")
    tables = [
        fit_table(rows, {"library": SHARED, "dtype": None}, cluster, "collectives.csv")
        for _, rows in read_rows(path, device).group_by("kernel", maintain_order=True)
    ]
    return card_of(tables, (device, SHARED), (ORIGIN, PUBLISHED)), tables


def fit_all(root: Path, system: str, folder: Path) -> list[dict[str, Any]]:
    """Fit and write the profile of a machine; returns its card alone in a list."""
    card, tables = fit_system(root / "collectives.csv", system)
    write_profile(folder, card, tables)
    return [card]
