"""Drawn tokens: which experts each of them chooses, by the shares of its layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.moe_model import MoeFfn
from planner.routing.load import Array

Chosen = NDArray[np.bool_]
Times = NDArray[np.float32]
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


@lru_cache(maxsize=64)
def drawn_choices(table: Shares, moe: MoeFfn, tokens: int, *, limited: bool = False) -> Chosen:
    """Whether drawn tokens choose an expert, [layers, batches, tokens, experts].

    The k smallest of exponential times are k experts without replacement (Efraimidis and Spirakis,
    2006); at rates -log(1 - chance) each expert is among them as often as its chance says.

    Args:
        table: shares of each layer.
        moe: the expert block.
        tokens: tokens of a batch.
        limited: also keep to the best `top_groups` groups, which moves load between experts of
            unequal share; counted shares hold that already.
    """
    times = _times(table, moe, tokens)
    layers, rows, experts = times.shape
    chosen = _soonest(times.reshape(-1, experts), moe, limited=limited)
    return chosen.reshape(layers, rows // tokens, tokens, experts)


@lru_cache(maxsize=2)
def _times(table: Shares, moe: MoeFfn, tokens: int) -> Times:
    """Drawn times of each expert, [layers, batches x tokens, experts]."""
    draws = np.random.default_rng(tokens)
    rates = -np.log1p(-np.minimum(chances(table, moe), 1 - 1e-9)).astype(np.float32)
    layers, each = len(rates), max(-(-DRAWS // len(rates)), 1)
    with np.errstate(divide="ignore", over="ignore"):
        times = draws.standard_exponential((layers, each * tokens, moe.experts), np.float32)
        times /= rates[:, None, :]
    return times


@lru_cache(maxsize=256)
def drawn_counts(table: Shares, moe: MoeFfn, tokens: int) -> Array:
    """Tokens of each expert in drawn batches, [layers, batches, experts]."""
    counts = drawn_choices(table, moe, tokens).sum(axis=2)
    return np.asarray(counts, dtype=float)


def _soonest(times: Times, moe: MoeFfn, *, limited: bool) -> Chosen:
    """Chosen experts of each token; MoGE takes equally many in each group."""
    if moe.router == "grouped" and moe.groups > 1:
        inside = times.reshape(len(times) * moe.groups, -1)
        return _smallest(inside, moe.top_k // moe.groups).reshape(times.shape)
    if limited and moe.router == "group_limited":
        times = _limited(times, moe)
    return _smallest(times, moe.top_k)


def _smallest(times: Times, count: int) -> Chosen:
    """The `count` smallest of each row: a comparison with the last of them is quicker than a list.

    Where others are as small as the last, a list decides.
    """
    if count >= times.shape[1]:
        return np.ones(times.shape, dtype=bool)
    last = np.partition(times, count - 1, axis=1)[:, count - 1 : count]
    chosen: Chosen = times <= last
    for row in np.flatnonzero(chosen.sum(axis=1) != count):
        chosen[row] = False
        chosen[row, np.argpartition(times[row], count - 1)[:count]] = True
    return chosen


def _limited(times: Times, moe: MoeFfn) -> Times:
    """Times with all but the best groups out of reach."""
    size, out = moe.experts // moe.groups, moe.groups - moe.top_groups
    grouped = times.reshape(len(times), moe.groups, size)
    best = min(GROUP_BEST, size)
    soonest = np.partition(grouped, best - 1, axis=2)[:, :, :best]
    rank = np.exp(-soonest).sum(axis=2)
    near = np.ones(rank.shape, dtype=bool)
    if out:
        np.put_along_axis(near, np.argpartition(rank, out, axis=1)[:, :out], False, axis=1)  # noqa: FBT003
    return np.where(near[:, :, None], grouped, np.float32(np.inf)).reshape(times.shape)
