"""The load of the busiest expert-parallel rank, for many candidates at once.

A layer waits for its slowest rank, so what counts is the expected maximum over ranks, not the mean.
Few tokens make it larger than the shares alone say; it is found by drawing tokens (Monte Carlo).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing.draws import Shares, chances, drawn_counts
from planner.routing.load import Array


@dataclass(frozen=True)
class DeviceLoad:
    """What the busiest expert-parallel rank has to do, one value a candidate.

    `busy_ratio`: its token-expert pairs over the mean of all ranks, mean over layers.
    `active_experts`: expected experts with at least one token on it, mean over layers.
    `error_ratio`: standard error of `busy_ratio` from the draws.
    """

    busy_ratio: Array
    active_experts: Array
    error_ratio: Array


DRAWN_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes drawn token by token; larger ones scale the deviations of the next smaller by the
square root of the size (central limit theorem)."""


def device_load(
    shares: Array, moe: MoeFfn, ep: Array, tokens: Array, redundant: Array | float = 0.0
) -> DeviceLoad:
    """Load of the busiest rank of each candidate.

    Args:
        shares: [layers, experts], rows sum to one.
        moe: the expert block: top_k, groups.
        ep: expert-parallel ranks, [candidates].
        tokens: tokens of a pass over all ranks, [candidates].
        redundant: extra expert copies, [candidates] or one number. Without copies experts lie in
            order; with copies the hottest are copied and packed onto the fullest ranks last.

    Raises:
        MoesaicError: `invalid` when ranks do not divide the experts and their copies.
    """
    ranks = np.asarray(ep, dtype=int)
    counts = np.maximum(np.rint(np.asarray(tokens)), 1).astype(int)
    copies = np.broadcast_to(np.asarray(redundant, dtype=int), ranks.shape)
    uneven = (moe.experts + copies) % np.maximum(ranks, 1) > 0
    if uneven.any() or (ranks < 1).any():
        at = int(np.argmax(uneven | (ranks < 1)))
        raise MoesaicError(
            "invalid", f"moe_ep {ranks[at]} does not divide {moe.experts + copies[at]} experts",
            "/moe_ep",
        )  # fmt: skip
    keys = np.stack([ranks, counts, copies], axis=1)
    distinct, where = np.unique(keys, axis=0, return_inverse=True)
    table = Shares.of(shares)
    found = np.array([_busiest(table, moe, *(int(v) for v in key)) for key in distinct])
    values = found[where.reshape(-1)]
    return DeviceLoad(values[:, 0], values[:, 1], values[:, 2])


@lru_cache(maxsize=4096)
def _busiest(
    table: Shares, moe: MoeFfn, ep: int, tokens: int, redundant: int
) -> tuple[float, float, float]:
    owner = _owners(table, moe, ep, redundant)
    active = _active(chances(table, moe), owner, tokens)
    if ep == 1:
        return 1.0, active, 0.0
    size = max(drawn for drawn in DRAWN_TOKENS if drawn <= tokens)
    expected = np.einsum("le,ler->lr", chances(table, moe), owner, optimize=True)
    counts = drawn_counts(table, moe, size)
    loads = np.matmul(counts, owner)
    deviation = (loads - size * expected[:, None, :]) * np.sqrt(tokens / size)
    ratio = (tokens * expected[:, None, :] + deviation).max(axis=2) * ep / (tokens * moe.top_k)
    within = ratio.std(axis=1).mean() if counts.shape[1] > 1 else _spread(ratio, expected, moe, ep)
    return float(ratio.mean()), active, float(within / np.sqrt(ratio.size))


def _spread(ratio: Array, expected: Array, moe: MoeFfn, ep: int) -> Array:
    """Deviation of single draws from what the layer's shares alone give."""
    plain = expected.max(axis=1) * ep / moe.top_k
    return np.asarray((ratio[:, 0] - plain).std())


def _active(chosen: Array, owner: Array, tokens: int) -> float:
    """Experts with a token on the busiest rank: each is missed by all tokens with (1 - q)^T."""
    touched = 1 - (1 - np.minimum(chosen, 1.0)) ** tokens
    by_rank = np.einsum("le,ler->lr", touched, owner > 0, optimize=True)
    return float(by_rank.max(axis=1).mean())


@lru_cache(maxsize=256)
def _owners(table: Shares, moe: MoeFfn, ep: int, redundant: int) -> Array:
    """Share of each expert's tokens that each rank serves, [layers, experts, ranks]."""
    experts, shares = moe.experts, table.array()
    if redundant == 0:
        rank = np.arange(experts) * ep // experts
        one = (rank[:, None] == np.arange(ep)).astype(float)
        return np.ascontiguousarray(np.broadcast_to(one, (len(shares), experts, ep)))
    slots = (experts + redundant) // ep
    return np.stack([_packed(row, ep, slots, redundant) for row in shares])


def _packed(shares: Array, ep: int, slots: int, redundant: int) -> Array:
    """Copy the expert with the most load per copy; place largest first on the emptiest rank."""
    copies = np.ones(len(shares))
    for _ in range(redundant):
        copies[np.argmax(np.where(copies < ep, shares / copies, -1))] += 1
    load, free = np.zeros(ep), np.full(ep, slots)
    owner = np.zeros((len(shares), ep))
    for expert in np.argsort(-shares / copies, kind="stable"):
        for _ in range(int(copies[expert])):
            taken = (free == 0) | (owner[expert] > 0)
            if taken.all():
                taken = free == 0
            rank = int(np.argmin(np.where(taken, np.inf, load)))
            owner[expert, rank] += 1 / copies[expert]
            load[rank] += shares[expert] / copies[expert]
            free[rank] -= 1
    return owner
