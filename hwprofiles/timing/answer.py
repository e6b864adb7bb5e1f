"""Add seconds to kernel rows: from measured tables where there are any, from rules elsewhere."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Curves, EfficiencyCurve, load_curves
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import COLLECTIVES, EXCHANGES, KERNEL_ROW, KERNELS
from hwprofiles.timing.arrays import PRODUCTS
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.profile import Found, find
from hwprofiles.timing.rows import TIMED, TIMES, Array, Rows, Work
from hwprofiles.timing.rules import COUNTS, RULES
from hwprofiles.timing.skew import alpha_of, busiest_of
from hwprofiles.timing.tables import Residual, Table, residual_of

FAR_DOUBLINGS = 6.0
"""Sizes more than 64 times outside what was measured are not answered unless asked for."""
WIDEN_BEYOND = 0.1
"""Log seconds added to both sides for each doubling outside the measured sizes."""
LIBRARIES = {
    "deepep_ht": "deepep_normal",
    "deepep_ll": "deepep_low_latency",
    "trtllm_deepep_ht": "deepep_normal",
    "trtllm_deepep_ll": "deepep_low_latency",
    "alltoall": "nvlink_two_sided",
}
"""Other names of exchange libraries."""
LOW_LATENCY_TOKENS = 128
"""DeepEP's default buffer of its low-latency kernels, tokens a rank (README of DeepEP)."""


def time_kernels(
    rows: pl.DataFrame, cluster: Cluster, backend: str | None = None, *, extrapolate: bool = False
) -> pl.DataFrame:
    """Add `low_s`, `typical_s`, `high_s`, `bound_by` and `source` to kernel rows.

    Args:
        rows: columns of `KERNEL_ROW` and any others, which pass through; `skew_alpha` states the
            exponent of a power-law expert load (0: balanced), else `busy_ratio` is used.
        cluster: its device and link tiers.
        backend: engine whose kernels run (trtllm, sglang, vllm).
        extrapolate: answer far outside the measured sizes, with a wider interval.

    Raises:
        MoesaicError: `unknown_name` for a kernel, `invalid` for a missing size,
            `outside_evidence` for a format without a stated peak or a size far outside.
    """
    if rows.is_empty():
        return rows.with_columns(pl.lit(None, kind).alias(name) for name, kind in TIMED.items())
    parts = []
    keyed = _keyed(rows, cluster.devices_per_node)
    groups = keyed.group_by("kernel", "_dtype", "_kv_dtype", "_library", maintain_order=True)
    for (kernel, dtype, kv_dtype, library), part in groups:
        if kernel not in RULES:
            raise unknown_name("kernel", str(kernel), KERNELS)
        wanted = {"dtype": dtype, "kv_dtype": kv_dtype, "library": library}
        found = _find(cluster, backend, str(kernel), wanted)
        if found is None:
            parts.append(_by_rule(str(kernel), part, cluster))
        else:
            parts.append(_by_table(found, part, cluster, extrapolate=extrapolate))
    timed = pl.concat(parts).sort("_row")
    return rows.with_columns(timed.get_column(name) for name in TIMED)


def _keyed(rows: pl.DataFrame, width: int) -> pl.DataFrame:
    """Add absent columns as nulls, a row number, and the names that choose a table.

    One-shot all-reduces write into peers' memory, which ranks of other nodes don't share
    (vLLM and SGLang, custom_all_reduce: one node only): groups wider than a node use NCCL.
    """
    known = rows.columns
    absent = [pl.lit(None, kind).alias(c) for c, kind in KERNEL_ROW.items() if c not in known]
    tokens = pl.col("tokens").cast(pl.Float64)
    devices = pl.col("devices").cast(pl.Float64).fill_null(1)
    usual = (
        pl.when((pl.col("kernel") == "all_reduce") & (devices <= width)).then(pl.lit("custom"))
        .when(pl.col("kernel").is_in(COLLECTIVES)).then(pl.lit("nccl"))
        .when(pl.col("kernel").is_in(EXCHANGES) & (tokens <= LOW_LATENCY_TOKENS))
        .then(pl.lit("deepep_low_latency"))
        .when(pl.col("kernel").is_in(EXCHANGES)).then(pl.lit("deepep_normal"))
    )  # fmt: skip
    return (
        rows.with_columns(absent)
        .with_row_index("_row")
        .with_columns(
            pl.col("dtype").fill_null("bf16").replace("fp16", "bf16").alias("_dtype"),
            pl.col("kv_dtype").fill_null("bf16").replace("fp16", "bf16").alias("_kv_dtype"),
            pl.coalesce(pl.col("library").replace(LIBRARIES), usual).alias("_library"),
        )
    )


def _find(
    cluster: Cluster, backend: str | None, kernel: str, wanted: dict[str, object]
) -> Found | None:
    family = FAMILIES.get(kernel)
    if family is None:
        return None
    values = [(name, wanted[name]) for name in family.keys]
    keys = tuple((name, None if value is None else str(value)) for name, value in values)
    device = cluster.device.name
    found = find(device, backend, kernel, keys)
    if found is None and ("library", "custom") in keys:
        found = find(device, backend, kernel, (("library", "nccl"), *keys[1:]))
    return found


def _by_rule(kernel: str, part: pl.DataFrame, cluster: Cluster) -> pl.DataFrame:
    curves = load_curves(cluster.device.curves)
    if curves.array is not None and kernel in PRODUCTS:
        return _answer(part, *PRODUCTS[kernel](Rows(part), curves.array))
    named = _named(kernel, part, curves)
    if named is not None and part["library"].null_count():
        halves = (part.filter(pl.col("library").is_null()), part.drop_nulls("library"))
        return pl.concat(_by_rule(kernel, half, cluster) for half in halves if half.height)
    if named is not None:
        times, bound = RULES[kernel](Rows(part), cluster, named)
        return _answer(part, times, bound, np.full(part.height, "calibrated"))
    if kernel not in curves.families:
        known = ", ".join(sorted(curves.families) or sorted(PRODUCTS))
        raise MoesaicError(
            "outside_evidence", f"curves {curves.name} say nothing of {kernel}; known: {known}"
        )
    times, bound = RULES[kernel](Rows(part), cluster, curves.families[kernel])
    unsure = curves.certainty == "assumed" or kernel in curves.assumed
    sources = np.full(part.height, "assumed" if unsure else "modelled")
    return _answer(part, times, bound, sources)


def _named(kernel: str, part: pl.DataFrame, curves: Curves) -> EfficiencyCurve | None:
    """The curve of the library that some rows name; rows that name none take the family's."""
    if part["library"].null_count() == part.height:
        return None
    return curves.libraries.get(str(part["_library"][0]), {}).get(kernel)


def _answer(
    part: pl.DataFrame, times: tuple[Array, Array, Array], bound: NDArray[np.str_],
    sources: NDArray[np.str_],
) -> pl.DataFrame:  # fmt: skip
    return pl.DataFrame(
        [
            part["_row"],
            *(pl.Series(name, values) for name, values in zip(TIMES, times, strict=True)),
            pl.Series("bound_by", bound, dtype=pl.String),
            pl.Series("source", sources, dtype=pl.String),
        ]
    )


def _by_table(
    found: Found, part: pl.DataFrame, cluster: Cluster, *, extrapolate: bool
) -> pl.DataFrame:
    table = found.table
    rows = Rows(prepared(table, part))
    work = COUNTS[table.kernel](rows, cluster)
    residual = residual_of(table, FAMILIES[table.kernel].place(rows))
    if not extrapolate:
        _refuse_far(table.kernel, residual)
    typical = table.physics.seconds(work) * np.exp(residual.typical)
    low, high = table.bands.offsets(residual.nearest)
    widen = found.widen + WIDEN_BEYOND * np.minimum(residual.beyond, 30)
    times = (typical * np.exp(low - widen), typical, typical * np.exp(high + widen))
    sources = _sources(found, residual, rows.get("nodes", 1))
    return _answer(part, times, _bound(found, work), sources)


def prepared(table: Table, part: pl.DataFrame) -> pl.DataFrame:
    """Rows as the table counts them: one format where it has none, the load's exponent stated."""
    if table.keys.get("dtype") is None:
        part = part.with_columns(pl.lit("bf16").alias("dtype"))
    return _skewed(part, table) if table.kernel == "grouped_gemm" else part


def _skewed(part: pl.DataFrame, table: Table) -> pl.DataFrame:
    """State a row's load both ways: by its exponent and by the busiest rank's pairs and experts.

    A stated exponent gives the rest as the measured tables were counted; else the busiest rank's
    ratio, as the planner knows it, gives the exponent. Where the engine's balanced rows count every
    token as local, an unstated load on several ranks takes the least skewed rows instead.
    """
    rows = Rows(part)
    get = rows.get
    load = [get("tokens"), get("top_k"), get("experts"), get("moe_ep", 1)]
    stated, busy = get("skew_alpha", np.nan), get("busy_ratio", np.nan)
    alpha = np.where(np.isnan(stated), alpha_of(np.nan_to_num(busy, nan=1.0), load), stated)
    if table.local_when_balanced:
        spread = np.isnan(stated) & (get("moe_ep", 1) > 1)
        alpha = np.where(spread, np.maximum(alpha, table.outer[table.outer > 0].min()), alpha)
    ratio, active = busiest_of([np.asarray(np.round(alpha, 3), dtype=np.float64), *load])
    known = ~np.isnan(busy)
    return part.with_columns(
        pl.Series("skew_alpha", alpha),
        pl.Series("busy_ratio", np.where(known, busy, ratio)),
        pl.Series("active_experts", np.where(known, get("active_experts", np.nan), active)),
    )


def _refuse_far(kernel: str, residual: Residual) -> None:
    if kernel in COLLECTIVES or kernel in EXCHANGES or not len(residual.beyond):
        return
    worst = float(residual.beyond.max())
    if worst > FAR_DOUBLINGS:
        raise MoesaicError(
            "outside_evidence",
            f"a {kernel} size lies a factor of {2**worst:.3g} outside what was measured; known up "
            f"to {2**FAR_DOUBLINGS:.0f}; extrapolation would answer with a wider interval",
        )


def _bound(found: Found, work: Work) -> NDArray[np.str_]:
    compute, slow = found.table.physics.parts(work)
    name = "memory" if work.wire_s is None else "link"
    bound = np.where(compute >= slow, "compute", name)
    return np.where(np.maximum(compute, slow) < found.table.physics.fixed_s, "latency", bound)


def _sources(found: Found, residual: Residual, nodes: Array) -> NDArray[np.str_]:
    if found.because:
        return np.full(len(residual.typical), "modelled")
    close = np.where(residual.measured, "measured", "calibrated")
    if found.table.kernel in EXCHANGES:
        close = np.where(nodes > 1, "modelled", close)
    return np.where(residual.beyond > 1, "modelled", close)
