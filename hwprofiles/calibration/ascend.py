"""Fit dispatch and combine on Ascend A3 dies from the figures that DeepEP-Ascend's authors print.

github sgl-project/sgl-kernel-npu, README: bandwidth of the normal kernels at 8 to 128 ranks, time
of the low-latency ones at 8 to 32; shipped as `published/ascend_exchange.csv`. Each kernel is a
share of the link (Hockney 1994) and, in low latency, a start, else a cost of each token; every
number of ranks is predicted from the others.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from hwprofiles.calibration.fitting import part_of
from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Band, Curves, EfficiencyCurve
from hwprofiles.kernels import KERNEL_ROW
from hwprofiles.library import load_cluster
from hwprofiles.timing.rows import Array, Rows, Work
from hwprofiles.timing.rules import COUNTS, timed

NORMAL = "deepep_normal"
TABLE = Path(__file__).parent / "published" / "ascend_exchange.csv"
TOKEN_BYTES = {"moe_dispatch": 7168 + 256, "moe_combine": 2 * 7168}
"""Bytes that the printed GB/s count a token and expert: for INT8 as time and rate of the
low-latency rows give it (58 GB/s x 132 us / 1,024 and so on), for BF16 two a number."""
CONFLICTS = (
    "CANN's own operators on CloudMatrix384, 128 tokens: dispatch 116 us at 8 ranks, 152 at 256, "
    "combine 118 and 149 (arXiv:2506.12708, via published notes); at 32 ranks HCCL 50 and 55 GB/s, "
    "StrataCL 82 and 79 (arXiv:2607.26444, via a third-party note), here 49 and 97"
)
READ_ON = datetime.date(2026, 11, 24)


def read_rows() -> pl.DataFrame:
    """The published figures as kernel rows with seconds."""
    table = pl.read_csv(TABLE)
    absent = [pl.lit(None, kind).alias(c) for c, kind in KERNEL_ROW.items()
              if c not in table.columns]  # fmt: skip
    sent = pl.col("tokens") * pl.col("top_k") * pl.col("kernel").replace_strict(TOKEN_BYTES)
    time = pl.when(pl.col("unit") == "GB/s").then(sent / (pl.col("value") * 1e9))
    return table.with_columns(*absent, time.otherwise(pl.col("value") * 1e-6).alias("seconds"))


@dataclass(frozen=True)
class Costs:
    """What an exchange takes: a start, a cost of each token, a share of the link."""

    fixed_s: float
    token_s: float
    link_ratio: float

    def curve(self, spread: float = 0.0) -> EfficiencyCurve:
        """The curve, its shares `spread` log units either way of the typical one."""
        low, typical, high = (
            float(f"{self.link_ratio * np.exp(s):.4g}") for s in (-spread, 0.0, spread)
        )
        band = Band(low=low, typical=typical, high=high)
        return EfficiencyCurve(
            compute=band, memory=band, link=band, fixed_s=float(f"{self.fixed_s:.4g}"),
            token_s=float(f"{self.token_s:.4g}"),
        )  # fmt: skip


def fit_exchange(work: Work, seconds: Array, *, by_token: bool) -> Costs:
    """Least squares on relative errors.

    Args:
        work: counted exchanges.
        seconds: their times.
        by_token: what is beside the link grows with tokens (normal kernels copy all of them),
            instead of being a start.
    """
    wire, hops = _crossed(work)
    tokens = np.ones_like(seconds) if work.rows_count is None else work.rows_count
    beside = tokens if by_token else np.ones_like(seconds)
    known = np.stack([beside, wire], axis=1) / seconds[:, None]
    (cost, factor), *_ = np.linalg.lstsq(known, 1 - hops / seconds)
    start, token = (0.0, float(cost)) if by_token else (float(cost), 0.0)
    return Costs(start, token, float(1 / factor))


def _crossed(work: Work) -> tuple[Array, Array]:
    """Seconds on the wire and of hops, which counting an exchange always gives."""
    zero = np.zeros_like(work.compute_s)
    return (zero if work.wire_s is None else work.wire_s,
            zero if work.hops_s is None else work.hops_s)  # fmt: skip


def held_out(work: Work, seconds: Array, *, by_token: bool) -> Array:
    """Log of predicted over measured, of each row from a fit to the others."""
    errors = np.empty(len(seconds))
    for i in range(len(seconds)):
        out = np.arange(len(seconds)) == i
        curve = fit_exchange(part_of(work, ~out), seconds[~out], by_token=by_token).curve()
        errors[i] = np.log(timed(part_of(work, out), curve)[0][1] / seconds[out])[0]
    return errors


def fit_ascend_exchange(cluster: Cluster | None = None) -> tuple[Curves, dict[str, Array]]:
    """The curves of A3 dies, and by "library kernel" the log errors of what was left out."""
    cluster = cluster or load_cluster("cloudmatrix384")
    libraries: dict[str, dict[str, EfficiencyCurve]] = {}
    errors = {}
    for (library, kernel), part in read_rows().group_by("library", "kernel", maintain_order=True):
        work, seconds = COUNTS[str(kernel)](Rows(part), cluster), part["seconds"].to_numpy()
        by_token = library == NORMAL
        costs = fit_exchange(work, seconds, by_token=by_token)
        wire, _ = _crossed(work)
        # The band is put on the share alone, so it grows by what the rest takes of the time.
        weight = float(np.median(wire / costs.link_ratio / seconds))
        apart = held_out(work, seconds, by_token=by_token)
        errors[f"{library} {kernel}"] = apart
        spread = float(np.quantile(np.abs(apart), 0.9)) / weight
        found = libraries.setdefault(str(library), {})
        found[str(kernel)] = costs.curve(spread)
    curves = Curves(
        name="ascend-a3",
        source="sgl-project/sgl-kernel-npu @ f425bdf README, DeepEP-Ascend on an A3 SuperPOD, "
        f"fitted by hwprofiles/calibration/ascend.py; conflicting: {CONFLICTS}",
        date=READ_ON, certainty="derived", base="npu-default", families={}, libraries=libraries,
    )  # fmt: skip
    return curves, errors
