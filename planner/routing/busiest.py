"""The load of the busiest expert-parallel rank, for many candidates at once.

A layer waits for its slowest rank, so what counts is the expected maximum over ranks, not the mean.
Few tokens make it larger than the shares alone say; it is found by drawing tokens (Monte Carlo).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing.draws import DRAWS, Shares, chances, drawn_counts
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
    values = _found(Shares.of(shares), moe, distinct)[where.reshape(-1)]
    return DeviceLoad(values[:, 0], values[:, 1], values[:, 2])


MOST_KNOWN = 100_000
"""Loads that are remembered for one expert block: some 20 MB."""
Loads = dict[tuple[int, ...], tuple[float, float, float]]


@lru_cache(maxsize=64)
def _known(table: Shares, moe: MoeFfn) -> Loads:
    """Loads found so far by ranks, tokens and copies."""
    del table, moe
    return {}


def _found(table: Shares, moe: MoeFfn, keys: NDArray[np.int64]) -> Array:
    """Ratio, active experts and error of distinct (ranks, tokens, copies), [keys, 3]."""
    known, wanted = _known(table, moe), [tuple(key) for key in keys.tolist()]
    if len(known) > MOST_KNOWN:
        known.clear()
    new: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    sizes = np.searchsorted(DRAWN_TOKENS, keys[:, 1], side="right") - 1
    for key, size in zip(wanted, sizes.tolist(), strict=True):
        if key not in known:
            new[key[0], key[2], DRAWN_TOKENS[size]].append(key[1])
    for (ranks, copies, size), tokens in new.items():
        values = _busiest(table, moe, (ranks, copies, size), np.array(tokens))
        known.update(
            ((ranks, count, copies), tuple(value))
            for count, value in zip(tokens, values.tolist(), strict=True)
        )
    return np.array([known[key] for key in wanted])


MOST_NUMBERS = 4_000_000
"""Of an array that is held at once."""


def _busiest(table: Shares, moe: MoeFfn, place: tuple[int, int, int], tokens: Array) -> Array:
    """`place`: ranks, copies, and how many tokens are drawn for these batches."""
    ep, copies, size = place
    step = max(1, MOST_NUMBERS // (max(len(table.array()), DRAWS) * (ep + moe.experts)))
    parts = [tokens[at : at + step] for at in range(0, len(tokens), step)]
    active = np.concatenate([_active(table, moe, (ep, copies), part) for part in parts])
    if ep == 1:
        return np.stack([np.ones_like(active), active, np.zeros_like(active)], axis=1)
    away, expected = _drawn(table, moe, place)
    found = [_ratios(away, expected, (moe.top_k, size, ep), part) for part in parts]
    ratio, error = (np.concatenate(side) for side in zip(*found, strict=True))
    return np.stack([ratio, active, error], axis=1)


@lru_cache(maxsize=256)
def _drawn(table: Shares, moe: MoeFfn, place: tuple[int, int, int]) -> tuple[Array, Array]:
    """Drawn loads less the expected ones, [layers, draws, ranks], and the latter of one token.

    Where ranks expect alike, the one that most is drawn for is the busiest: it stands for all.
    """
    ep, copies, size = place
    owner = _owners(table, moe, ep, copies)
    expected = np.einsum("le,ler->lr", chances(table, moe), owner, optimize=True)
    away = np.matmul(drawn_counts(table, moe, size), owner) - size * expected[:, None, :]
    if (expected == expected[:, :1]).all():
        return away.max(axis=2, keepdims=True), expected[:, :1]
    return away, expected


def _ratios(
    away: Array, expected: Array, choice: tuple[int, int, int], tokens: Array
) -> tuple[Array, Array]:
    """Busiest rank over the mean, and its standard error, [tokens].

    Args:
        away: [layers, draws, ranks], drawn loads less the expected ones.
        expected: [layers, ranks], pairs of one token.
        choice: top_k, how many tokens were drawn, and ranks.
        tokens: tokens of a pass.
    """
    top_k, size, ep = choice
    many = tokens[:, None, None, None]
    deviation = away * np.sqrt(many / size)
    most = (many * expected[:, None, :] + deviation).max(axis=3)
    ratio = most * ep / (tokens * top_k)[:, None, None]
    plain = expected.max(axis=1) * ep / top_k
    drawn = ratio.shape[2] > 1
    within = ratio.std(axis=2).mean(axis=1) if drawn else (ratio[:, :, 0] - plain).std(axis=1)
    count = ratio[0].size
    return ratio.reshape(len(tokens), -1).mean(axis=1), within / np.sqrt(count)


@lru_cache(maxsize=256)
def _most_alike(table: Shares, moe: MoeFfn, ep: int, copies: int) -> float | None:
    """Experts of the fullest rank, mean over layers, where all are chosen alike; else none."""
    if np.ptp(chances(table, moe)) > 0:
        return None
    held = _owners(table, moe, ep, copies) > 0
    return float(held.sum(axis=1).max(axis=1).mean())


def _active(table: Shares, moe: MoeFfn, place: tuple[int, int], tokens: Array) -> Array:
    """Experts with a token on the busiest rank, mean over layers; `place`: ranks and copies."""
    most = _most_alike(table, moe, *place)
    if most is not None:
        chance = np.minimum(chances(table, moe)[0, :1], 1.0)
        return np.asarray(most * (1 - (1 - chance) ** tokens))
    held = _owners(table, moe, *place) > 0
    touched = [_touched(table, moe, float(count)) for count in tokens]
    if len(touched[0]) == 1 and (held == held[0]).all():
        held = held[:1]
    by_rank = np.matmul(np.stack(touched)[:, :, None, :], held.astype(float))[:, :, 0]
    return np.asarray(by_rank.max(axis=2).mean(axis=1))


@lru_cache(maxsize=64)
def _touched(table: Shares, moe: MoeFfn, tokens: float) -> Array:
    """Chance that an expert has any token, each being missed by all of them with (1 - q)^T.

    Shape [layers, experts], or [1, experts] where layers are alike.
    """
    chosen = chances(table, moe)
    if (chosen == chosen[0]).all():
        chosen = chosen[:1]
    return np.asarray(1 - (1 - np.minimum(chosen, 1.0)) ** tokens)


@lru_cache(maxsize=256)
def _owners(table: Shares, moe: MoeFfn, ep: int, redundant: int) -> Array:
    """Share of each expert's tokens that each rank serves, [layers, experts, ranks]."""
    experts, shares = moe.experts, table.array()
    if redundant == 0:
        rank = np.arange(experts) * ep // experts
        one = (rank[:, None] == np.arange(ep)).astype(float)
        return np.ascontiguousarray(np.broadcast_to(one, (len(shares), experts, ep)))
    slots = (experts + redundant) // ep
    rows, where = np.unique(shares, axis=0, return_inverse=True)
    packed = np.stack([_packed(row, ep, slots, redundant) for row in rows])
    return np.ascontiguousarray(packed[where.reshape(-1)])


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
