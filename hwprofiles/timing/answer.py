"""Add seconds to kernel rows: from measured tables where there are any, from rules elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.efficiency import Curves, load_curves
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import COLLECTIVES, EXCHANGES, KERNEL_ROW, KERNELS
from hwprofiles.timing.arrays import PRODUCTS
from hwprofiles.timing.groups import Group, groups_of
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.profile import Found, find
from hwprofiles.timing.rows import TIMED, Array, Codes, Columns, Rows, Work
from hwprofiles.timing.rules import COUNTS, RULES
from hwprofiles.timing.skew import alpha_of, busiest_of
from hwprofiles.timing.tables import Residual, Table, residual_of

FAR_DOUBLINGS = 6.0
"""Sizes more than 64 times outside what was measured are not answered unless asked for."""
WIDEN_BEYOND = 0.1
"""Log seconds added to both sides for each doubling outside the measured sizes."""
BOUNDS = ("compute", "memory", "link", "latency")
SOURCES = ("measured", "calibrated", "modelled", "assumed", "simulated")
Times = tuple[Array, Array, Array]
Texts = NDArray[np.str_]
Answered = tuple[Times, Texts, Texts]


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
    answers = Answers.of(rows.height)
    fill(answers, Columns(rows), Asked(cluster, backend, extrapolate=extrapolate))
    return rows.with_columns(answers.columns())


@dataclass(frozen=True)
class Asked:
    """Of what machine and engine times are asked, and what becomes of rows that have no answer."""

    cluster: Cluster
    backend: str | None = None
    extrapolate: bool = False
    refused: dict[int, MoesaicError] | None = None
    """Filled with the rows that cannot be answered and why; none: the first such row raises."""


def fill(answers: Answers, columns: Columns, asked: Asked, chosen: Codes | None = None) -> None:
    """Answer rows as `time_kernels` does, or those of them that are `chosen`."""
    for group in groups_of(columns, chosen, asked.cluster.devices_per_node):
        try:
            answers.put(group.chosen, *_answered(columns, asked, group))
        except MoesaicError as error:
            if asked.refused is None:
                raise
            _refuse(answers, columns, asked, group.chosen, error)


def _answered(columns: Columns, asked: Asked, group: Group) -> Answered:
    kernel = str(group.kernel)
    if kernel not in RULES:
        raise unknown_name("kernel", kernel, KERNELS)
    found = _find(asked.cluster, asked.backend, kernel, group.wanted)
    part = Rows(columns.frame, group.chosen, columns, names={"_library": group.wanted["library"]})
    if found is None:
        return _by_rule(kernel, part, asked.cluster)
    return _by_table(found, part, asked)


NAMES = ("dtype", "kv_dtype", "library", "tier")
"""Columns beside the kernel whose texts may have no answer."""
NUMBERS = frozenset(name for name, kind in KERNEL_ROW.items() if kind == pl.Float64)


def _refuse(
    answers: Answers, columns: Columns, asked: Asked, rows: Codes, error: MoesaicError
) -> None:
    """Find the rows of a failed group that are to blame, answer the others.

    An error that blames a name and no size holds for every row with the same names.
    """
    parts = _by_names(columns, rows)
    if len(parts) == 1:
        named = error.kind != "invalid" and error.path.lstrip("/") not in NUMBERS
        if asked.refused is not None and (named or len(rows) == 1):
            asked.refused.update(dict.fromkeys(rows.tolist(), error))
            return
        parts = np.array_split(rows, 2)
    for part in parts:
        fill(answers, columns, asked, part)


def _by_names(columns: Columns, rows: Codes) -> list[Codes]:
    """Rows with the same names together."""
    whole = np.zeros(len(rows), dtype=np.intp)
    for name in NAMES:
        labels, codes = columns.labels(name)
        whole = whole * len(labels) + codes[rows]
    return [rows[whole == code] for code in np.unique(whole)]


@dataclass
class Answers:
    """Times of all rows, and what bounds and sources them as places in `BOUNDS` and `SOURCES`."""

    times: Array
    """[3, n] seconds."""
    bound: NDArray[np.int8]
    source: NDArray[np.int8]

    @classmethod
    def of(cls, count: int) -> Answers:
        """Room for so many rows."""
        return cls(np.empty((3, count)), np.zeros(count, np.int8), np.zeros(count, np.int8))

    def put(self, chosen: Codes, times: Times, bound: Texts, source: Texts) -> None:
        """Write the answers of some rows."""
        self.times[:, chosen] = times
        self.bound[chosen] = _places(bound, BOUNDS)
        self.source[chosen] = _places(source, SOURCES)

    def columns(self) -> list[pl.Series]:
        """The columns of `TIMED`."""
        texts = ((BOUNDS, self.bound), (SOURCES, self.source))
        named = [pl.Series(names, dtype=pl.String).gather(codes) for names, codes in texts]
        values = [*(pl.Series(values) for values in self.times), *named]
        return [column.alias(name) for name, column in zip(TIMED, values, strict=True)]


def _places(texts: Texts, names: Sequence[str]) -> NDArray[np.int8]:
    places = np.zeros(len(texts), np.int8)
    for place, name in enumerate(names[1:], start=1):
        places[texts == name] = place
    return places


def _find(
    cluster: Cluster, backend: str | None, kernel: str, wanted: Mapping[str, str | None]
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


def _by_rule(kernel: str, rows: Rows, cluster: Cluster) -> Answered:
    curves = load_curves(cluster.device.curves)
    if curves.array is not None and kernel in PRODUCTS:
        return PRODUCTS[kernel](rows, curves.array)
    labels, codes = rows.texts("library")
    stated = np.array([label is not None for label in labels])[codes]
    own = curves.libraries.get(str(rows.names["_library"]), {}).get(kernel)
    if own is None or not stated.any():
        return _by_family(kernel, rows, cluster, curves)
    times, bound = RULES[kernel](rows, cluster, own)
    named = (times, bound, np.full(rows.count, "calibrated"))
    if stated.all():
        return named
    return _chosen(stated, named, _by_family(kernel, rows, cluster, curves))


def _by_family(kernel: str, rows: Rows, cluster: Cluster, curves: Curves) -> Answered:
    if kernel not in curves.families:
        known = ", ".join(sorted(curves.families) or sorted(PRODUCTS))
        raise MoesaicError(
            "outside_evidence", f"curves {curves.name} say nothing of {kernel}; known: {known}"
        )
    times, bound = RULES[kernel](rows, cluster, curves.families[kernel])
    unsure = curves.certainty == "assumed" or kernel in curves.assumed
    return times, bound, np.full(rows.count, "assumed" if unsure else "modelled")


def _chosen(first: NDArray[np.bool_], one: Answered, other: Answered) -> Answered:
    """One answer where `first` says so, the other elsewhere."""
    low, typical, high = (np.where(first, a, b) for a, b in zip(one[0], other[0], strict=True))
    bound, source = (np.where(first, a, b) for a, b in zip(one[1:], other[1:], strict=True))
    return (low, typical, high), bound, source


def _by_table(found: Found, part: Rows, asked: Asked) -> Answered:
    table = found.table
    rows = prepared(table, part)
    work = COUNTS[table.kernel](rows, asked.cluster)
    residual = residual_of(table, FAMILIES[table.kernel].place(rows))
    if not asked.extrapolate:
        _refuse_far(table.kernel, residual, part, asked)
    if CROWDING in rows.stated:
        residual = residual.away(rows.stated[CROWDING])
    typical = table.physics.seconds(work) * np.exp(residual.typical)
    low, high = table.bands.offsets(residual.nearest)
    widen = found.widen + WIDEN_BEYOND * np.minimum(residual.beyond, 30)
    times = (typical * np.exp(low - widen), typical, typical * np.exp(high + widen))
    return times, _bound(found, work), _sources(found, residual, rows.get("nodes", 1))


def prepared(table: Table, rows: Rows) -> Rows:
    """Rows as the table counts them: one format where it has none, the load's exponent stated."""
    if table.keys.get("dtype") is None:
        rows = replace(rows, names={**rows.names, "dtype": "bf16"})
    return _skewed(rows, table) if table.kernel == "grouped_gemm" else rows


def _skewed(rows: Rows, table: Table) -> Rows:
    """State a row's load both ways: by its exponent and by the busiest rank's pairs and experts.

    A stated exponent gives the rest as the measured tables were counted; else the busiest rank's
    ratio, as the planner knows it, gives the exponent. Where the engine's balanced rows count every
    token as local, an unstated load on several ranks takes the least skewed rows instead.
    """
    get = rows.get
    load = [get("tokens"), get("top_k"), get("experts"), get("moe_ep", 1)]
    stated, busy = get("skew_alpha", np.nan), get("busy_ratio", np.nan)
    alpha = np.where(np.isnan(stated), alpha_of(np.nan_to_num(busy, nan=1.0), load), stated)
    if table.local_when_balanced:
        spread = np.isnan(stated) & (get("moe_ep", 1) > 1)
        alpha = np.where(spread, np.maximum(alpha, table.outer[table.outer > 0].min()), alpha)
    unknown = np.isnan(busy)
    busy, active = busy.copy(), np.array(get("active_experts", np.nan))
    if unknown.any():
        steep = np.asarray(np.round(alpha[unknown], 3), dtype=np.float64)
        drawn = busiest_of([steep, *(column[unknown] for column in load)])
        busy[unknown], active[unknown] = drawn
    said: dict[str, Array] = {"skew_alpha": alpha, "busy_ratio": busy, "active_experts": active}
    said[CROWDING] = np.where(unknown | (alpha > 0), 0.0, _crowding(active, load))
    return replace(rows, stated={**rows.stated, **said})


CROWDING = "crowding_doublings"
USUAL_DOUBLINGS = 1.0
"""Loads drawn by chance stay within a factor of two of the measured tables' active experts."""

CROWDING_WEIGHT = 1.5
"""A doubling of tokens an expert says more than one of a size: of 50 loads measured on RTX PRO 6000
(LLMServingSim, moe.csv) those two to four doublings apart are off by up to 0.5 log units."""


def _crowding(stated: Array, load: list[Array]) -> Array:
    """Doublings between the stated active experts and those of a balanced load, as measured."""
    tokens, top_k, experts, ranks = load
    balanced = np.minimum(np.maximum(experts / ranks, 1), np.maximum(tokens * top_k / ranks, 1))
    apart = np.abs(np.log2(np.maximum(stated, 1) / balanced))
    return np.where(apart > USUAL_DOUBLINGS, CROWDING_WEIGHT * apart, 0.0)


def _refuse_far(kernel: str, residual: Residual, rows: Rows, asked: Asked) -> None:
    far = np.flatnonzero(residual.beyond > FAR_DOUBLINGS)
    if kernel in COLLECTIVES or kernel in EXCHANGES or not len(far):
        return
    if asked.refused is None or rows.chosen is None:
        raise _too_far(kernel, float(residual.beyond.max()))
    for place in far.tolist():
        asked.refused[int(rows.chosen[place])] = _too_far(kernel, float(residual.beyond[place]))


def _too_far(kernel: str, doublings: float) -> MoesaicError:
    return MoesaicError(
        "outside_evidence",
        f"a {kernel} size lies a factor of {2**doublings:.3g} outside what was measured; known up "
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
