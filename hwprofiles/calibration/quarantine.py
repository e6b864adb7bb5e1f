"""Measurements that cannot be true are set apart with the reason, and never fitted."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Band, EfficiencyCurve
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import COLLECTIVES, EXCHANGES
from hwprofiles.timing import RULES, Rows

LIMIT_RATIO = 0.9
"""A time below this share of the bound is impossible; the rest is clock and rounding."""
LINK_LIMIT_RATIO = 0.5
"""Reduction inside the switch (NVLS) moves up to half of what a ring has to."""
_ONE = Band(low=1, typical=1, high=1)
IDEAL = EfficiencyCurve(compute=_ONE, memory=_ONE, link=_ONE, fixed_s=0)
_ENDLESS = 1e30


def bound_s(rows: pl.DataFrame, cluster: Cluster) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Shortest time that peaks allow, in seconds a row; NaN where no peak is known.

    Arithmetic at its peak, and link bandwidth for collectives. Memory bandwidth is left out: caches
    beat it.
    """
    tier = cluster.device.memory[0]
    endless = tier.bandwidth_bytes_per_s.model_copy(update={"value": _ENDLESS})
    tiers = (tier.model_copy(update={"bandwidth_bytes_per_s": endless}), *cluster.device.memory[1:])
    device = cluster.device.model_copy(update={"memory": tiers})
    machine = cluster.model_copy(update={"device": device})
    bounds = np.full(rows.height, math.nan)
    for (kernel, dtype), part in rows.with_row_index("_row").group_by("kernel", "dtype"):
        try:
            times, _ = RULES[str(kernel)](Rows(part), machine, IDEAL)
        except MoesaicError as error:
            if error.kind != "outside_evidence":
                raise
            del dtype
            continue
        bounds[part["_row"].to_numpy()] = times[1]
    return bounds


def reasons(table: pl.DataFrame, cluster: Cluster) -> list[str | None]:
    """Why each measurement is impossible or not to be trusted; none where it is fine."""
    bounds = bound_s(table, cluster)
    times = table["median_s"].to_list()
    fastest = table["min_s"].to_list()
    kernels, disturbed = table["kernel"].to_list(), table["disturbed"].to_list()
    return [
        _reason(time, least if least is not None else time, bound, kernel, bool(upset))
        for time, least, bound, kernel, upset in zip(
            times, fastest, bounds, kernels, disturbed, strict=True
        )
    ]


def _reason(
    time: float | None, least: float | None, bound: float, kernel: str, disturbed: bool,  # noqa: FBT001
) -> str | None:  # fmt: skip
    if time is None or least is None or not math.isfinite(time):
        return "no time"
    if time <= 0 or least <= 0:
        return "zero or negative time"
    if least > time * (1 + 1e-9):
        return "minimum above the median"
    linked = kernel in COLLECTIVES or kernel in EXCHANGES
    limit = bound * (LINK_LIMIT_RATIO if linked else LIMIT_RATIO)
    if time < limit:
        what = "link bandwidth" if linked else "arithmetic peak"
        return f"above the {what}: {time:.3g} s, which allows no less than {bound:.3g} s"
    return "disturbed by other load" if disturbed else None


def split(table: pl.DataFrame, cluster: Cluster) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part measurements into trusted ones and quarantined ones with a column `reason`."""
    found = pl.Series("reason", reasons(table, cluster), dtype=pl.String)
    marked = table.with_columns(found)
    good = marked.filter(pl.col("reason").is_null()).drop("reason")
    return good, marked.filter(pl.col("reason").is_not_null())
