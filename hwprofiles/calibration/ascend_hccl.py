"""Fit HCCL's all-gather on Ascend A3 dies from a published microbenchmark.

github Horacehxw/msModeling, comm_alignment_report_20260312.md: Atlas 800 A3, CANN 8.5, eager mode.
Message labels are the whole gathered buffer: 18 MB in the mean of a prefill pass of Qwen3-32B are
1,800 tokens, as its matrix products of 278 us say; read as one rank's part they would be 28,800.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.profiles import card_of, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.library import load_cluster
from hwprofiles.timing.profile import HCCL

TABLE = Path(__file__).parent / "published" / "ascend_hccl.csv"
ORIGIN = (
    "github Horacehxw/msModeling @ 39df672, comm_alignment_report_20260312.md, microbenchmark on "
    "Atlas 800 A3 (CANN 8.5, eager mode)"
)
CONFLICTS = (
    "the same report's profiler, inside serving: all-gather 6.4 to 48.2 us where this says 5.4 to "
    "33 us below 300 KB, 0 to 6 % more above; 768 KB at 8 ranks 75 us where this says 186"
)
PUBLISHED = datetime.date(2026, 3, 12)
KERNEL = "all_gather"
"""The one operation with rows on both sides of the jump near 60 KB a rank; seven reduce-scatters
and one all-reduce are too few for an interval."""


def read_rows() -> pl.DataFrame:
    """The published rows as kernel rows with seconds."""
    return pl.read_csv(TABLE).select(
        "kernel", pl.lit(HCCL).alias("library"),
        pl.col("devices").cast(pl.Float64), pl.col("message_bytes").cast(pl.Float64),
        (pl.col("microbench_us") * 1e-6).alias("seconds"),
    )  # fmt: skip


def fit_hccl() -> tuple[dict[str, Any], list[Fitted]]:
    """Fit the table; returns the profile's card and its table."""
    rows = read_rows().filter(pl.col("kernel") == KERNEL)
    keys: dict[str, str | None] = {"library": HCCL, "dtype": None}
    table = fit_table(rows, keys, load_cluster("atlas-800-a3"), TABLE.name)
    told = (ORIGIN, PUBLISHED)
    return card_of([table], ("ascend-a3-die", HCCL), told, conflicts=CONFLICTS), [table]


def write_hccl(folder: Path) -> Path:
    """Write the profile; returns the card's path."""
    return write_profile(folder, *fit_hccl())
