"""Drawn tokens: which experts each of them chooses, by the shares of its layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.moe_model import MoeFfn
from planner.routing.load import Array

Choices = NDArray[np.intp]
DRAWS = 64
"""Batches drawn for one batch size at least; every layer is drawn equally often."""
DRAWN_AT_MOST = 64
"""Tokens of a batch that are drawn one by one at most."""
GROUP_BEST = 2
"""A group is scored by the sum of its two best experts (DeepSeek-V3, section 2.1.2)."""


@dataclass(frozen=True)
class Shares:
    """Shares as a hashable value, so that repeated questions are answered from memory."""

    data: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, shares: Array) -> Shares:
        """Shares of [layers, experts] as a key."""
        whole = np.ascontiguousarray(shares, dtype=float)
        return cls(whole.tobytes(), whole.shape)

    def array(self) -> Array:
        """The shares again, [layers, experts]."""
        return np.frombuffer(self.data).reshape(self.shape)


@lru_cache(maxsize=64)
def chances(table: Shares, moe: MoeFfn) -> Array:
    """Chance that a token chooses each expert, [layers, experts]; a row sums to top_k.

    A share above 1 / top_k cannot be met without repeating an expert; its surplus goes to the rest.
    MoGE takes equally many experts in each group, whatever the groups' shares.
    """
    shares, groups = table.array(), moe.groups if moe.router == "grouped" else 1
    inside = shares.reshape(len(shares) * groups, -1)
    total = inside.sum(axis=1, keepdims=True)
    even = np.where(total > 0, inside / np.where(total > 0, total, 1), 1 / inside.shape[1])
    return _capped(even, moe.top_k // groups).reshape(shares.shape)


def _capped(shares: Array, top_k: int) -> Array:
    found = shares * top_k
    for _ in range(8):
        over = found > 1
        if not over.any():
            break
        room = np.where(over, 0.0, found)
        missing = top_k - np.minimum(found, 1).sum(axis=1, keepdims=True)
        total = np.maximum(room.sum(axis=1, keepdims=True), 1e-300)
        found = np.where(over, 1.0, found) + room * missing / total
    return found


@lru_cache(maxsize=256)
def drawn_choices(table: Shares, moe: MoeFfn, tokens: int, *, limited: bool = False) -> Choices:
    """Experts that drawn tokens choose, [layers, batches, tokens, top_k].

    The k smallest of exponential times are k experts without replacement (Efraimidis and Spirakis,
    2006); at rates -log(1 - chance) each expert is among them as often as its chance says.

    Args:
        table: shares of each layer.
        moe: the expert block.
        tokens: tokens of a batch.
        limited: also keep to the best `top_groups` groups, which moves load between experts of
            unequal share; counted shares hold that already.
    """
    draws = np.random.default_rng(tokens)
    rates = -np.log1p(-np.minimum(chances(table, moe), 1 - 1e-9)).astype(np.float32)
    layers, each = len(rates), max(-(-DRAWS // len(rates)), 1)
    with np.errstate(divide="ignore"):
        times = draws.standard_exponential((layers, each * tokens, moe.experts), np.float32)
        times /= rates[:, None, :]
    chosen = _top(-times.reshape(-1, moe.experts), moe, limited=limited)
    return chosen.reshape(layers, each, tokens, -1)


@lru_cache(maxsize=256)
def drawn_counts(table: Shares, moe: MoeFfn, tokens: int) -> Array:
    """Tokens of each expert in drawn batches, [layers, batches, experts]."""
    chosen = drawn_choices(table, moe, tokens)
    layers, each = chosen.shape[:2]
    offset = np.arange(layers * each)[:, None] * moe.experts
    flat = chosen.reshape(layers * each, -1) + offset
    counts = np.bincount(flat.ravel(), minlength=layers * each * moe.experts)
    return counts.reshape(layers, each, moe.experts).astype(float)


def _top(scores: NDArray[np.float32], moe: MoeFfn, *, limited: bool) -> Choices:
    """Chosen experts of each token; MoGE takes equally many in each group."""
    if moe.router == "grouped" and moe.groups > 1:
        size, each = moe.experts // moe.groups, moe.top_k // moe.groups
        grouped = scores.reshape(len(scores), moe.groups, size)
        chosen = np.argpartition(grouped, size - each, axis=2)[:, :, size - each :]
        return (chosen + np.arange(moe.groups)[None, :, None] * size).reshape(len(scores), -1)
    if limited and moe.router == "group_limited":
        scores = _limited(scores, moe)
    start = moe.experts - moe.top_k
    return np.argpartition(scores, start, axis=1)[:, start:] if start else _all(scores)


def _all(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)


def _limited(scores: NDArray[np.float32], moe: MoeFfn) -> NDArray[np.float32]:
    """Scores with all but the best groups out of reach."""
    size, out = moe.experts // moe.groups, moe.groups - moe.top_groups
    grouped = scores.reshape(len(scores), moe.groups, size)
    best = min(GROUP_BEST, size)
    rank = np.partition(np.exp(grouped), size - best, axis=2)[:, :, size - best :].sum(axis=2)
    worst = np.argpartition(rank, out, axis=1)[:, :out] if out else rank[:, :0].astype(int)
    held = grouped.copy()
    np.put_along_axis(held, worst[:, :, None], -np.inf, axis=1)
    return held.reshape(scores.shape)
