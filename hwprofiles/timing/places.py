"""Where a kernel row stands among measured shapes: the shape it has, the sizes that vary in it.

Every coordinate is a base-2 logarithm, so that doubling a size is one step everywhere. A shape is
what a model fixes (widths, heads, experts); the inner sizes are what load varies (tokens, batch,
sequence, message).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwprofiles.timing.counts import past_pairs
from hwprofiles.timing.metric import Metric
from hwprofiles.timing.rows import Array, Rows

Sums = tuple[tuple[float, ...], ...]

NO_WINDOW_TOKENS = 2.0**17
"""Attention without a window stands where the longest measured sequence does."""


@dataclass(frozen=True)
class Place:
    """Coordinates of n rows: `shape` [n, d], `outer` [n] and `inner` [n]."""

    shape: Array
    outer: Array
    inner: Array


@dataclass(frozen=True)
class Family:
    """How one kernel family is placed, and how far apart its shapes are.

    `steps` says how many doublings of each shape coordinate count as one unit of distance; found by
    hold-out over whole shapes on the H200 tables, where a table has too few shapes to find its own.
    """

    place: Callable[[Rows], Place]
    steps: tuple[float, ...]
    keys: tuple[str, ...] = ("dtype",)
    """Columns that choose the table."""
    kinds: Mapping[str, Sums] = field(default_factory=dict)
    """Sums of shape coordinates that two shapes of a kind share; hold-out chooses between them."""

    def metric(self, steps: Sequence[float] = (), kind: str = "", jump: float = 0.0) -> Metric:
        """The family's distance, or one that a table found for itself."""
        return Metric(tuple(steps) or self.steps, self.kinds.get(kind, ()), jump)


def _log(*columns: Array) -> Array:
    return np.stack([np.log2(np.maximum(c, 2.0**-10)) for c in columns], axis=1)


def _one(values: Array) -> Array:
    logged: Array = np.log2(np.maximum(values, 2.0**-10))
    return logged


def _gemm(rows: Rows) -> Place:
    m = rows.get("m")
    return Place(_log(rows.get("n"), rows.get("k")), np.zeros_like(m), _one(m))


def _attention_shape(rows: Rows) -> Array:
    """Heads, width, window; and which kernel the ratio of query to kv heads calls for.

    Kernels change where every head has its own keys and where many share them: the fifth
    coordinate separates multi-head from grouped attention and counts doublings above 16 to 1.
    """
    get = rows.get
    window = np.minimum(get("window", NO_WINDOW_TOKENS), NO_WINDOW_TOKENS)
    ratio = _one(get("heads") / get("kv_heads"))
    plain = _log(get("heads"), get("kv_heads"), get("head_dim"), window)
    switch = np.maximum(ratio - 4, 0) + (np.abs(ratio) < 1e-9)  # noqa: PLR2004 - exactly one to one
    return np.concatenate([plain, switch[:, None]], axis=1)


def _attention_prefill(rows: Rows) -> Place:
    spread = rows.get("batch") * rows.get("heads")
    return Place(_attention_shape(rows), _one(spread), _one(_prompt(rows)))


def _prompt(rows: Rows) -> Array:
    """Tokens of a prompt without a past that has as many pairs."""
    seq = rows.get("seq")
    past = past_pairs(rows)
    return np.where(past > 0, np.sqrt(seq**2 + 2 * past), seq)


def _attention_decode(rows: Rows) -> Place:
    spread = rows.get("batch") * rows.get("kv_heads")
    return Place(_attention_shape(rows), _one(spread), _one(rows.get("seq")))


def _mla(rows: Rows) -> Place:
    get = rows.get
    return Place(_log(get("heads")), _one(get("batch")), _one(get("seq")))


def _mla_prefill(rows: Rows) -> Place:
    get = rows.get
    return Place(_log(get("heads")), _one(get("batch")), _one(_prompt(rows)))


def _grouped_gemm(rows: Rows) -> Place:
    get = rows.get
    ep = get("moe_ep", 1)
    shape = _log(get("hidden"), get("inter") / get("moe_tp", 1), get("top_k"),
                 get("experts") / ep, ep, get("matrices", 3) ** 4)  # fmt: skip
    return Place(shape, get("skew_alpha", 0), _one(get("tokens")))


def _router(rows: Rows) -> Place:
    get = rows.get
    shape = _log(get("hidden"), get("experts"), get("top_k"))
    return Place(shape, np.zeros(len(shape)), _one(get("tokens")))


def _collective(rows: Rows) -> Place:
    devices, size = rows.get("devices"), rows.get("message_bytes")
    return Place(_log(devices), np.zeros_like(devices), _one(size))


def _exchange(rows: Rows) -> Place:
    get = rows.get
    shape = _log(get("nodes", 1), get("devices"), get("hidden"), get("top_k"), get("experts"))
    return Place(shape, np.zeros(len(shape)), _one(get("tokens")))


_COMMUNICATION = ("library", "dtype")
_CACHED = ("dtype", "kv_dtype")
_MODEL: dict[str, Sums] = {
    "model": ((1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0), (0, 0, 0, 1, 1, 0), (0, 0, 0, 0, 0, 1))
}
"""Hidden size, top-k, experts of all ranks, matrices: what a model keeps however it is cut."""
_SHARING: dict[str, Sums] = {
    "sharing": ((1, -1, 0, 0, 0), (0, 0, 1, 0, 0)),
    "width": ((0, 0, 1, 0, 0),),
}
"""Query heads that share a key head, and a head's width: what attention kernels are built for."""
_COLUMNS: dict[str, Sums] = {"columns": ((1, 0),)}
FAMILIES: dict[str, Family] = {
    "gemm": Family(_gemm, (4, 4), kinds=_COLUMNS),
    "attention_prefill": Family(_attention_prefill, (8, 8, 1, 2, 4), _CACHED, _SHARING),
    "attention_decode": Family(_attention_decode, (8, 8, 1, 2, 4), _CACHED, _SHARING),
    "mla_prefill": Family(_mla_prefill, (8,), _CACHED),
    "mla_decode": Family(_mla, (8,), _CACHED),
    "grouped_gemm": Family(_grouped_gemm, (8, 8, 8, 8, 8, 2), kinds=_MODEL),
    "router": Family(_router, (4, 4, 4)),
    "all_reduce": Family(_collective, (4,), _COMMUNICATION),
    "all_gather": Family(_collective, (4,), _COMMUNICATION),
    "reduce_scatter": Family(_collective, (4,), _COMMUNICATION),
    "all_to_all": Family(_collective, (4,), _COMMUNICATION),
    "moe_dispatch": Family(_exchange, (1, 2, 4, 4, 8), _COMMUNICATION),
    "moe_combine": Family(_exchange, (1, 2, 4, 4, 8), _COMMUNICATION),
}
"""Families that measured tables exist for."""
