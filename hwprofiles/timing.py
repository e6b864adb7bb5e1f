"""How long kernel rows take on a cluster's device: one rule per family, three values each.

Roofline with achieved shares: t = fixed + max(FLOP / (peak · share), bytes / (bandwidth · share))
(Williams et al., CACM 2009), links by their bandwidth and latency (alpha-beta, Hockney 1994).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Band, EfficiencyCurve, load_curves
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import KERNELS, dtype

Array = NDArray[np.float64]
TIMES = ("low_s", "typical_s", "high_s")
TIMED: dict[str, type[pl.DataType]] = {
    "low_s": pl.Float64,
    "typical_s": pl.Float64,
    "high_s": pl.Float64,
    "bound_by": pl.String,
    "source": pl.String,
}
"""Columns that timing adds to a kernel row."""
MLA_RANK, MLA_ROPE, MLA_HEAD, MLA_VALUE = 512.0, 64.0, 192.0, 128.0
"""DeepSeek-V2/V3 latent and head widths, taken where a row leaves them out (config.json)."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kernel family as arrays of equal length; nulls are NaN or given a default."""

    frame: pl.DataFrame

    def get(self, column: str, default: float | None = None) -> Array:
        """One column as floats.

        Raises:
            MoesaicError: `invalid` when the column is needed and holds nulls.
        """
        series = self.frame[column]
        if default is not None:
            series = series.fill_null(default)
        elif series.null_count():
            kernel = self.frame["kernel"][0]
            raise MoesaicError("invalid", f"{kernel} needs {column}", f"/{column}")
        values: Array = series.to_numpy()
        return values

    def by_dtype(self, column: str, look: Callable[[str], float], default: str) -> Array:
        """Map a column of format names to numbers, once per distinct name."""
        names = self.frame[column].fill_null(default)
        table = {name: float(look(name)) for name in names.unique()}
        values: Array = names.replace_strict(table, return_dtype=pl.Float64).to_numpy()
        return values


@dataclass(frozen=True)
class Work:
    """What one family's rows must move and compute, in FLOP, bytes and seconds of link time."""

    flops: Array
    bytes: Array
    peak_flop_per_s: Array
    rows_count: Array | None = None
    """Rows of the left operand, where small ones fall below the arithmetic ceiling."""


def time_kernels(rows: pl.DataFrame, cluster: Cluster, backend: str | None = None) -> pl.DataFrame:
    """Add `low_s`, `typical_s`, `high_s`, `bound_by` and `source` to kernel rows.

    Args:
        rows: columns of `KERNEL_ROW` and any others, which pass through.
        cluster: its device and link tiers.
        backend: engine whose kernels run; the rules so far are the same for every engine.

    Raises:
        MoesaicError: `unknown_name` for a kernel, `invalid` for a missing size,
            `outside_evidence` for a format the device has no stated peak for.
    """
    del backend
    indexed = rows.with_row_index("_row")
    parts = []
    for (kernel,), part in indexed.group_by("kernel", maintain_order=True):
        if kernel not in RULES:
            raise unknown_name("kernel", str(kernel), KERNELS)
        parts.append(_timed(str(kernel), part, cluster))
    if not parts:
        return rows.with_columns(pl.lit(None, kind).alias(name) for name, kind in TIMED.items())
    return pl.concat(parts).sort("_row").drop("_row")


def _timed(kernel: str, part: pl.DataFrame, cluster: Cluster) -> pl.DataFrame:
    curves = load_curves(cluster.device.curves)
    if kernel not in curves.families:
        known = ", ".join(sorted(curves.families))
        raise MoesaicError(
            "outside_evidence", f"curves {curves.name} say nothing of {kernel}; known: {known}"
        )
    times, bound = RULES[kernel](Rows(part), cluster, curves.families[kernel])
    return part.with_columns(
        *(pl.Series(name, values) for name, values in zip(TIMES, times, strict=True)),
        pl.Series("bound_by", bound, dtype=pl.String),
        pl.lit("assumed" if curves.certainty == "assumed" else "modelled").alias("source"),
    )


Timed = tuple[tuple[Array, Array, Array], NDArray[np.str_]]
Rule = Callable[[Rows, Cluster, EfficiencyCurve], Timed]


def _roofline(work: Work, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    scale = np.ones_like(work.flops)
    if work.rows_count is not None and curve.half_rows:
        scale = work.rows_count / (work.rows_count + curve.half_rows)
    bandwidth = cluster.device.bandwidth_bytes_per_s

    def seconds(share: Callable[[Band], float]) -> tuple[Array, Array]:
        compute = work.flops / (work.peak_flop_per_s * share(curve.compute) * scale)
        return compute, work.bytes / (bandwidth * share(curve.memory))

    times = []
    for share in (_high, _typical, _low):
        compute, memory = seconds(share)
        times.append(curve.fixed_s + np.maximum(compute, memory))
    compute, memory = seconds(_typical)
    bound = np.where(compute >= memory, "compute", "memory")
    bound = np.where(np.maximum(compute, memory) < curve.fixed_s, "latency", bound)
    return (times[0], times[1], times[2]), bound


def _high(band: Band) -> float:
    return band.high


def _typical(band: Band) -> float:
    return band.typical


def _low(band: Band) -> float:
    return band.low


def _peaks(rows: Rows, cluster: Cluster) -> Array:
    return rows.by_dtype("dtype", lambda name: cluster.device.peak(dtype(name).compute), "bf16")


def _activation(rows: Rows, column: str = "dtype") -> Array:
    return rows.by_dtype(column, lambda name: dtype(name).activation_bytes, "bf16")


def _weight(rows: Rows) -> Array:
    return rows.by_dtype("dtype", lambda name: dtype(name).weight_bytes, "bf16")


def _gemm(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    m, n, k = rows.get("m"), rows.get("n"), rows.get("k")
    moved = m * k * _activation(rows) + n * k * _weight(rows) + 2 * m * n
    return _roofline(Work(2 * m * n * k, moved, _peaks(rows, cluster), m), cluster, curve)


def _grouped_gemm(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    """All expert matrices of one layer on the busiest rank: touched weights once, all rows."""
    get = rows.get
    hidden, inter, matrices = get("hidden"), get("inter") / get("moe_tp", 1), get("matrices", 3)
    pairs = get("tokens") * get("top_k") / get("moe_ep", 1) * get("busy_ratio", 1)
    local = get("experts") / get("moe_ep", 1)
    spread = local * (1 - (1 - 1 / local) ** pairs)
    active = np.where(np.isnan(get("active_experts", np.nan)), spread, get("active_experts", 0))
    flops = 2 * pairs * matrices * hidden * inter
    weights = active * matrices * hidden * inter * _weight(rows)
    moved = weights + pairs * (2 * hidden + 2 * inter) * _activation(rows)
    work = Work(flops, moved, _peaks(rows, cluster), pairs / np.maximum(active, 1))
    return _roofline(work, cluster, curve)


def _visible_pairs(rows: Rows) -> Array:
    """Query-key pairs of a sequence: causal over new tokens, all of the past, cut by window."""
    seq, past = rows.get("seq"), rows.get("past", 0)
    window = rows.get("window", np.inf)
    full = seq * past + seq * (seq + 1) / 2
    return np.minimum(full, seq * window)


def _attention_prefill(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    get = rows.get
    key, value = get("head_dim", MLA_HEAD), _value_dim(rows, MLA_VALUE)
    flops = 2 * get("batch") * get("heads") * (key + value) * _visible_pairs(rows)
    tokens = get("batch") * (get("seq") + get("past", 0))
    caches = tokens * get("kv_heads", 1) * (key + value) * _activation(rows, "kv_dtype")
    moved = caches + get("batch") * get("seq") * get("heads") * (key + value) * 2
    return _roofline(Work(flops, moved, _peaks(rows, cluster)), cluster, curve)


def _value_dim(rows: Rows, default: float) -> Array:
    value = rows.get("v_head_dim", np.nan)
    return np.where(np.isnan(value), rows.get("head_dim", default), value)


def _attention_decode(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    get = rows.get
    width = get("head_dim") + _value_dim(rows, 0)
    cached = get("batch") * np.minimum(get("seq"), get("window", np.inf))
    flops = 2 * cached * get("queries", 1) * get("heads") * width
    moved = cached * get("kv_heads") * width * _activation(rows, "kv_dtype")
    return _roofline(Work(flops, moved, _peaks(rows, cluster)), cluster, curve)


def _mla_decode(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    """Absorbed form: every head attends the shared latent (DeepSeek-V2, appendix C)."""
    get = rows.get
    rank, rope = get("kv_rank", MLA_RANK), get("rope_dim", MLA_ROPE)
    cached = get("batch") * np.minimum(get("seq"), get("window", np.inf))
    flops = 2 * cached * get("queries", 1) * get("heads") * (2 * rank + rope)
    moved = cached * (rank + rope) * _activation(rows, "kv_dtype")
    return _roofline(Work(flops, moved, _peaks(rows, cluster)), cluster, curve)


def _moved_bytes(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    moved = rows.get("bytes")
    zeros = np.zeros_like(moved)
    return _roofline(Work(zeros, moved, zeros + 1), cluster, curve)


@dataclass(frozen=True)
class _Group:
    """A group of ranks split into the part inside a node and the part across nodes."""

    ranks: Array
    nodes: Array
    near_bytes_per_s: Array
    far_bytes_per_s: Array
    near_latency_s: Array
    far_latency_s: Array

    @property
    def ranks_per_node(self) -> Array:
        return self.ranks / self.nodes


def _group(rows: Rows, cluster: Cluster) -> _Group:
    ranks = rows.get("devices")
    if ranks.max(initial=1) > cluster.device_count:
        raise MoesaicError(
            "invalid",
            f"a group of {ranks.max():.0f} ranks on {cluster.name}, which has "
            f"{cluster.device_count} devices",
            "/devices",
        )
    width = cluster.devices_per_node
    nodes = rows.get("nodes", np.nan)
    nodes = np.where(np.isnan(nodes), np.ceil(ranks / width), nodes)
    inside = np.maximum(ranks / nodes, 1).astype(int)
    tiers = {n: cluster.tier_for(int(n)) for n in np.unique(inside)} if cluster.tiers else {}
    joined = np.minimum(nodes * width, cluster.device_count).astype(int)
    far = {n: cluster.tier_for(int(n)) for n in np.unique(joined)} if cluster.tiers else {}
    return _Group(
        ranks, nodes,
        np.array([tiers[n].bandwidth_bytes_per_s.value if tiers else np.inf for n in inside]),
        np.array([far[n].bandwidth_bytes_per_s.value if far else np.inf for n in joined]),
        np.array([tiers[n].latency_s.value if tiers else 0.0 for n in inside]),
        np.array([far[n].latency_s.value if far else 0.0 for n in joined]),
    )  # fmt: skip


def _over_links(near: Array, far: Array, group: _Group, curve: EfficiencyCurve) -> Timed:
    """Seconds for `near` bytes inside the node and `far` bytes across, one after the other."""
    band = curve.link or curve.memory
    wire = near / group.near_bytes_per_s + far / group.far_bytes_per_s
    hops = np.log2(np.maximum(group.ranks_per_node, 1)) * group.near_latency_s
    hops = hops + np.log2(np.maximum(group.nodes, 1)) * group.far_latency_s
    fixed = np.where(group.ranks > 1, curve.fixed_s + hops, 0.0)
    times = tuple(fixed + wire / share for share in (band.high, band.typical, band.low))
    bound = np.where(wire / band.typical > fixed, "link", "latency")
    return (times[0], times[1], times[2]), bound


def _collective(shares: float) -> Rule:
    """A ring or tree that moves `shares` times the buffer: 2 for all-reduce, 1 for its halves."""

    def rule(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
        group, size = _group(rows, cluster), rows.get("message_bytes")
        near = shares * (1 - 1 / group.ranks_per_node) * size
        far = shares * (1 - 1 / group.nodes) * size / group.ranks_per_node
        return _over_links(near, far, group, curve)

    return rule


def _all_to_all(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    group, size = _group(rows, cluster), rows.get("message_bytes")
    near = size * (group.ranks_per_node - 1) / group.ranks
    far = size * (1 - 1 / group.nodes)
    return _over_links(near, far, group, curve)


def _exchange(rows: Rows, cluster: Cluster, curve: EfficiencyCurve) -> Timed:
    """Dispatch or combine: a token travels once per node it needs, then once per rank inside."""
    group, k = _group(rows, cluster), rows.get("top_k")
    token = rows.get("tokens") * rows.get("hidden") * _activation(rows) * rows.get("busy_ratio", 1)
    nodes_hit = group.nodes * (1 - (1 - 1 / group.nodes) ** k)
    ranks_hit = group.ranks * (1 - (1 - 1 / group.ranks) ** k)
    far = token * nodes_hit * (1 - 1 / group.nodes)
    near = token * ranks_hit * (1 - 1 / group.ranks_per_node)
    return _over_links(near, far, group, curve)


RULES: dict[str, Rule] = {
    "gemm": _gemm,
    "grouped_gemm": _grouped_gemm,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "mla_prefill": _attention_prefill,
    "mla_decode": _mla_decode,
    "elementwise": _moved_bytes,
    "copy": _moved_bytes,
    "all_reduce": _collective(2),
    "all_gather": _collective(1),
    "reduce_scatter": _collective(1),
    "all_to_all": _all_to_all,
    "send_recv": _all_to_all,
    "moe_dispatch": _exchange,
    "moe_combine": _exchange,
}
"""One rule a kernel family; adding a family is one entry here and one in `kernels.py`."""
