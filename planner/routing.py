"""Who gets which tokens: expert shares by layer, and the load of the busiest expert-parallel rank.

A layer waits for its slowest rank, so what counts is the expected maximum over ranks, not the mean.
Few tokens make it larger than the shares alone say; it is found by drawing tokens (Monte Carlo).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn

Array = NDArray[np.float64]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class UniformRouting(Document):
    """Every expert equally likely."""

    kind: Literal["uniform"] = "uniform"


class ZipfRouting(Document):
    """The expert of rank i is chosen in proportion to i to the power of -alpha."""

    kind: Literal["zipf"]
    alpha: Annotated[float, Field(ge=0, le=10)]  # unit: exponent


class DirichletRouting(Document):
    """Shares drawn once a layer from a symmetric Dirichlet distribution; small alpha, more skew."""

    kind: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0, le=1e6)]  # unit: concentration
    seed: Annotated[int, Field(ge=0)] = 0


class HotRouting(Document):
    """One expert a layer takes `hottest_share` of token-expert pairs, the rest share equally."""

    kind: Literal["hot"]
    hottest_share: Annotated[float, Field(gt=0, lt=1)]


class MeasuredRouting(Document):
    """Counted tokens by layer and expert; rows of zeros are dense layers and are passed over."""

    kind: Literal["measured"]
    counts: Annotated[tuple[tuple[Weight, ...], ...], Field(min_length=1)]
    source: str = ""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        widths = {len(row) for row in self.counts}
        if len(widths) != 1:
            raise ValueError(f"layers name {sorted(widths)} experts; they must name equally many")
        if not any(sum(row) > 0 for row in self.counts):
            raise ValueError("no layer has any token")
        return self


Routing = Annotated[
    UniformRouting | ZipfRouting | DirichletRouting | HotRouting | MeasuredRouting,
    Field(discriminator="kind"),
]


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


def expert_shares(routing: Routing, moe: MoeFfn, layers: int) -> Array:
    """Share of a layer's token-expert pairs that each expert takes, shape [layers, experts].

    Raises:
        MoesaicError: `invalid` when counts do not match the model's layers or experts.
    """
    experts = moe.experts
    if isinstance(routing, MeasuredRouting):
        return _measured(routing, experts, layers)
    if isinstance(routing, ZipfRouting):
        weights = np.arange(1, experts + 1, dtype=float) ** -routing.alpha
        order = np.random.default_rng(0)
        return np.stack([order.permutation(weights / weights.sum()) for _ in range(layers)])
    if isinstance(routing, DirichletRouting):
        draws = np.random.default_rng(routing.seed)
        return draws.dirichlet(np.full(experts, routing.alpha), size=layers)
    shares = np.full((layers, experts), 1 / experts)
    if isinstance(routing, HotRouting):
        shares[:] = (1 - routing.hottest_share) / max(experts - 1, 1)
        shares[np.arange(layers), np.arange(layers) % experts] = routing.hottest_share
    return shares


def _measured(routing: MeasuredRouting, experts: int, layers: int) -> Array:
    counts = np.array(routing.counts, dtype=float)
    used = counts[counts.sum(axis=1) > 0]
    if counts.shape[1] != experts:
        raise MoesaicError(
            "invalid",
            f"the load counts {counts.shape[1]} experts, the model has {experts}",
            "/routing/counts",
        )
    if len(used) not in (1, layers):
        raise MoesaicError(
            "invalid",
            f"the load has {len(used)} layers with tokens, the model has {layers} MoE layers",
            "/routing/counts",
        )
    shares = used / used.sum(axis=1, keepdims=True)
    return np.repeat(shares, layers, axis=0) if len(used) == 1 else shares


DRAWS = 64
"""Batches drawn for one batch size at least; every layer is drawn equally often."""
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
    """
    ranks = np.asarray(ep, dtype=int)
    counts = np.maximum(np.rint(np.asarray(tokens)), 1).astype(int)
    copies = np.broadcast_to(np.asarray(redundant, dtype=int), ranks.shape)
    keys = np.stack([ranks, counts, copies], axis=1)
    distinct, where = np.unique(keys, axis=0, return_inverse=True)
    table = _Shares(shares.tobytes(), shares.shape)
    found = np.array([_busiest(table, moe, *(int(v) for v in key)) for key in distinct])
    values = found[where.reshape(-1)]
    return DeviceLoad(values[:, 0], values[:, 1], values[:, 2])


@dataclass(frozen=True)
class _Shares:
    """Shares as a hashable value, so that repeated questions are answered from memory."""

    data: bytes
    shape: tuple[int, ...]

    def array(self) -> Array:
        return np.frombuffer(self.data).reshape(self.shape)


@lru_cache(maxsize=4096)
def _busiest(
    table: _Shares, moe: MoeFfn, ep: int, tokens: int, redundant: int
) -> tuple[float, float, float]:
    owner = _owners(table, moe, ep, redundant)
    active = _active(table.array(), owner, moe.top_k, tokens)
    if ep == 1:
        return 1.0, active, 0.0
    size = max(drawn for drawn in DRAWN_TOKENS if drawn <= tokens)
    expected = np.einsum("le,ler->lr", _chances(table, moe), owner, optimize=True)
    counts = _drawn(table, moe, size)
    loads = np.matmul(counts, owner)
    deviation = (loads - size * expected[:, None, :]) * np.sqrt(tokens / size)
    ratio = (tokens * expected[:, None, :] + deviation).max(axis=2) * ep / (tokens * moe.top_k)
    within = ratio.std(axis=1).mean() if counts.shape[1] > 1 else _spread(ratio, expected, moe, ep)
    return float(ratio.mean()), active, float(within / np.sqrt(ratio.size))


def _spread(ratio: Array, expected: Array, moe: MoeFfn, ep: int) -> Array:
    """Deviation of single draws from what the layer's shares alone give."""
    plain = expected.max(axis=1) * ep / moe.top_k
    return np.asarray((ratio[:, 0] - plain).std())


@lru_cache(maxsize=64)
def _chances(table: _Shares, moe: MoeFfn) -> Array:
    """Chance that a token chooses each expert, [layers, experts]; a row sums to top_k.

    A share above 1 / top_k cannot be met without repeating an expert; its surplus goes to the rest.
    """
    chances = table.array() * moe.top_k
    for _ in range(8):
        over = chances > 1
        if not over.any():
            break
        room = np.where(over, 0.0, chances)
        missing = moe.top_k - np.minimum(chances, 1).sum(axis=1, keepdims=True)
        total = np.maximum(room.sum(axis=1, keepdims=True), 1e-300)
        chances = np.where(over, 1.0, chances) + room * missing / total
    return chances


@lru_cache(maxsize=256)
def _drawn(table: _Shares, moe: MoeFfn, tokens: int) -> Array:
    """Tokens of each expert in drawn batches, [layers, draws of a layer, experts].

    The k smallest of exponential times are k experts without replacement (Efraimidis and Spirakis,
    2006); at rates -log(1 - chance) each expert is among them as often as its chance says.
    """
    draws = np.random.default_rng(tokens)
    rates = -np.log1p(-np.minimum(_chances(table, moe), 1 - 1e-9)).astype(np.float32)
    layers, each = len(rates), max(-(-DRAWS // len(rates)), 1)
    with np.errstate(divide="ignore"):
        times = draws.standard_exponential((layers, each * tokens, moe.experts), np.float32)
        times /= rates[:, None, :]
    chosen = _top(-times.reshape(-1, moe.experts), moe).reshape(layers * each, -1)
    offset = np.arange(layers * each)[:, None] * moe.experts
    flat = np.bincount((chosen + offset).ravel(), minlength=layers * each * moe.experts)
    return flat.reshape(layers, each, moe.experts).astype(float)


def _top(scores: NDArray[np.float32], moe: MoeFfn) -> NDArray[np.intp]:
    """Chosen experts of each token; MoGE takes equally many in each group."""
    if moe.router == "grouped" and moe.groups > 1:
        size, each = moe.experts // moe.groups, moe.top_k // moe.groups
        grouped = scores.reshape(len(scores), moe.groups, size)
        chosen = np.argpartition(grouped, size - each, axis=2)[:, :, size - each :]
        return (chosen + np.arange(moe.groups)[None, :, None] * size).reshape(len(scores), -1)
    start = moe.experts - moe.top_k
    return np.argpartition(scores, start, axis=1)[:, start:] if start else _all(scores)


def _all(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)


def _active(shares: Array, owner: Array, top_k: int, tokens: int) -> float:
    """Experts with a token on the busiest rank: each is missed by all tokens with (1 - q)^T."""
    chosen = np.minimum(shares * top_k, 1.0)
    touched = 1 - (1 - chosen) ** tokens
    by_rank = np.einsum("le,ler->lr", touched, owner > 0, optimize=True)
    return float(by_rank.max(axis=1).mean())


@lru_cache(maxsize=256)
def _owners(table: _Shares, moe: MoeFfn, ep: int, redundant: int) -> Array:
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
