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


LEAST_SHARE = 1e-12
"""Experts without load are still chosen where a token has too few others."""


def _capped(shares: Array, top_k: int) -> Array:
    """Chances min(1, scale · share) that sum to top_k in each row: the scale that does so."""
    if top_k >= shares.shape[1]:
        return np.ones_like(shares)
    held = np.maximum(shares, LEAST_SHARE)
    largest = -np.sort(-held, axis=1)
    rest = np.cumsum(largest[:, ::-1], axis=1)[:, ::-1][:, : top_k + 1]
    scales = (top_k - np.arange(top_k + 1)) / rest
    fits = scales * largest[:, : top_k + 1] <= 1
    scale = np.take_along_axis(scales, fits.argmax(axis=1)[:, None], axis=1)
    capped = np.arange(top_k + 1) < fits.argmax(axis=1)[:, None]
    least = np.where(capped, largest[:, : top_k + 1], np.inf).min(axis=1, keepdims=True)
    return np.where(held >= least, 1.0, np.minimum(scale * held, 1.0))


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
    with np.errstate(divide="ignore", over="ignore"):
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
