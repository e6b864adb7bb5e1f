"""How long kernel rows take where nothing was measured: one rule per family, three values each.

Roofline with achieved shares: t = fixed + max(FLOP / (peak · share), bytes / (bandwidth · share))
(Williams et al., CACM 2009), links by their bandwidth and latency (alpha-beta, Hockney 1994).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Band, EfficiencyCurve
from hwprofiles.timing import counts, links
from hwprofiles.timing.rows import Array, Rows, Work

Timed = tuple[tuple[Array, Array, Array], NDArray[np.str_]]
Rule = Callable[[Rows, Cluster, EfficiencyCurve], Timed]
Count = Callable[[Rows, Cluster], Work]


def _roofline(work: Work, curve: EfficiencyCurve) -> Timed:
    scale = np.ones_like(work.compute_s)
    if work.rows_count is not None and curve.half_rows:
        scale = work.rows_count / (work.rows_count + curve.half_rows)
    times = tuple(
        curve.fixed_s
        + np.maximum(
            work.compute_s / (share(curve.compute) * scale), work.memory_s / share(curve.memory)
        )
        for share in (_high, _typical, _low)
    )
    compute = work.compute_s / (curve.compute.typical * scale)
    memory = work.memory_s / curve.memory.typical
    bound = np.where(compute >= memory, "compute", "memory")
    bound = np.where(np.maximum(compute, memory) < curve.fixed_s, "latency", bound)
    return (times[0], times[1], times[2]), bound


def _high(band: Band) -> float:
    return band.high


def _typical(band: Band) -> float:
    return band.typical


def _low(band: Band) -> float:
    return band.low


def _linked(wire: Array, hops: Array, tokens: Array, curve: EfficiencyCurve) -> Timed:
    band = curve.link or curve.memory
    crossed = (wire > 0) | (hops > 0)
    fixed = np.where(crossed, curve.fixed_s + curve.token_s * tokens + hops, 0.0)
    times = tuple(fixed + wire / share for share in (band.high, band.typical, band.low))
    bound = np.where(wire / band.typical > fixed, "link", "latency")
    return (times[0], times[1], times[2]), bound


def timed(work: Work, curve: EfficiencyCurve) -> Timed:
    """Low, typical and high seconds of counted work, and what bounds it."""
    if work.wire_s is not None and work.hops_s is not None:
        tokens = np.zeros_like(work.wire_s) if work.rows_count is None else work.rows_count
        times, bound = _linked(work.wire_s, work.hops_s, tokens, curve)
    else:
        times, bound = _roofline(work, curve)
    if curve.time is not None:
        times = (times[1] * curve.time.low, times[1], times[1] * curve.time.high)
    return times, bound


def _rule(count: Count) -> Rule:
    def rule(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
        return timed(count(rows, cluster), curve)

    return rule


COUNTS: dict[str, Count] = {
    "gemm": counts.gemm,
    "grouped_gemm": counts.grouped_gemm,
    "router": counts.router,
    "attention_prefill": counts.attention_prefill,
    "attention_decode": counts.attention_decode,
    "mla_prefill": counts.attention_prefill,
    "mla_decode": counts.mla_decode,
    "elementwise": counts.moved_bytes,
    "copy": counts.copy,
    "all_reduce": links.ring(2),
    "all_gather": links.ring(1),
    "reduce_scatter": links.ring(1),
    "all_to_all": links.all_to_all,
    "send_recv": links.all_to_all,
    "moe_dispatch": links.exchange,
    "moe_combine": links.exchange,
}
"""What each family must do; adding a family is one entry here and one in `kernels.py`."""

RULES: dict[str, Rule] = {kernel: _rule(count) for kernel, count in COUNTS.items()}
"""One rule a kernel family: seconds from work and an efficiency curve."""
