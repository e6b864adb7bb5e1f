"""Experts that do not all fit as a question: a cache, the storage behind it, tokens a second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from hwprofiles.cluster import Cluster
from hwprofiles.device import MemoryTier
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.library import cluster_for, resolve_cluster
from hwprofiles.units import Bytes, BytesPerS, Seconds, Share
from planner.model_library import resolve_model
from planner.moe_model import MoeFfn, MoeModel
from planner.routing import Routing, UniformRouting, expert_shares
from planner.simulation.offload import (
    Choices,
    OffloadCosts,
    build_cache,
    cache_misses,
    token_seconds,
)
from planner.simulation.passes import PassQuestion, Played, price_part

Count = Annotated[int, Field(ge=1, le=10_000_000)]


MOST_SCORES = 100_000_000
"""Scores of tokens for experts that are drawn at once: 1.6 GB with their logarithms."""


class Storage(Document):
    """Where experts come from that are not cached."""

    bandwidth_bytes_per_s: Annotated[BytesPerS, Field(gt=0)]
    latency_s: Seconds = 0.0


class OffloadQuestion(Document):
    """Decoding one sequence while a part of the experts stays in storage."""

    schema_version: Literal[1] = 1
    kind: Literal["offload"] = "offload"
    name: Annotated[str, Field(max_length=200)] = "offload"
    model: Annotated[MoeModel, BeforeValidator(resolve_model)]
    cluster: Annotated[Cluster, BeforeValidator(resolve_cluster)] | None = None
    device: str | None = None
    """In place of a cluster."""
    backend: str = "llamacpp"
    precision: str | None = None
    context_tokens: Annotated[float, Field(gt=0, le=1e8)] = 1024.0
    policy: Literal["lru", "lfu", "pinned"] = "lru"
    cached_experts: Count | None = None
    """Experts of all layers together that stay in memory."""
    memory_bytes: Bytes | None = None
    """In place of cached_experts: memory for cached experts."""
    pinned_ratio: Share = 0.75
    """Of the cache, for `pinned`; chosen from the first half of the tokens."""
    prefetch: bool = True
    """Whether the router runs before attention, so that fetching starts with the layer."""
    storage: Storage | str = "ssd"
    """A memory tier of the device, or bandwidth and latency."""
    choices: Path | None = None
    """NumPy archive with `expert_ids` [layer, token, k], in the order they were routed; none: drawn
    from the routing, token by token anew."""
    routing: Routing = UniformRouting()
    tokens: Annotated[int, Field(ge=2, le=1_000_000)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.cached_experts is None) == (self.memory_bytes is None):
            raise ValueError("give cached_experts or memory_bytes")
        if (self.cluster is None) == (self.device is None):
            raise ValueError("give cluster or device")
        return self


class OffloadAnswer(Document):
    """What the cache reaches."""

    schema_version: Literal[1] = 1
    kind: Literal["offload"] = "offload"
    name: str
    hit_ratio: float
    misses_per_token: float  # unit: experts
    expert_bytes: float
    cached_experts: int
    tokens_per_s: float
    in_memory_tokens_per_s: float
    token_p50_s: float
    token_p95_s: float
    stalled_ratio: float
    """Share of the time spent waiting for storage."""
    assumptions: tuple[str, ...]


def answer_offload(question: OffloadQuestion) -> OffloadAnswer:
    """Answer a question.

    Raises:
        MoesaicError: `invalid` for a model without experts, a trace of another shape or a cache
            without room, `unknown_name` for a memory tier that the device has not.
    """
    moe = question.model.moe
    if moe is None:
        raise MoesaicError("invalid", f"{question.model.name} has no experts to offload", "/model")
    cluster = question.cluster or cluster_for(str(question.device))
    played = price_part(_pass(question, cluster), "typical", 1, None)
    layers = len(question.model.moe_layers)
    expert_bytes = _expert_bytes(played, moe, layers)
    capacity = question.cached_experts or int((question.memory_bytes or 0.0) / expert_bytes)
    choices = _choices(question, moe, layers)
    history = choices[:, : choices.shape[1] // 2]
    cache = build_cache(question.policy, capacity, history, question.pinned_ratio)
    misses = cache_misses(choices, cache)
    tier = _storage(question, cluster)
    costs = OffloadCosts(
        played.layer.attention_s, played.layer.experts_s + played.layer.shared_s, played.once_s,
        expert_bytes, tier.bandwidth_bytes_per_s, tier.latency_s, question.prefetch,
    )  # fmt: skip
    seconds = token_seconds(misses, costs)
    memory_s = float(token_seconds(np.zeros_like(misses), costs)[0])
    mean = float(seconds.mean())
    return OffloadAnswer(
        name=question.name,
        hit_ratio=1 - float(misses.sum()) / choices.size,
        misses_per_token=float(misses.sum(axis=1).mean()),
        expert_bytes=expert_bytes,
        cached_experts=capacity,
        tokens_per_s=1 / mean,
        in_memory_tokens_per_s=1 / memory_s,
        token_p50_s=float(np.quantile(seconds, 0.5)),
        token_p95_s=float(np.quantile(seconds, 0.95)),
        stalled_ratio=1 - memory_s / mean,
        assumptions=_assumptions(question),
    )


def _pass(question: OffloadQuestion, cluster: Cluster) -> PassQuestion:
    return PassQuestion(
        model=question.model, cluster=cluster, backend=question.backend,
        precision=question.precision, phase="decode", batch=1, micro_batches=1,
        past_tokens=question.context_tokens, routing=question.routing,
    )  # fmt: skip


def _expert_bytes(played: Played, moe: MoeFfn, layers: int) -> float:
    row = played.priced.passes.row(0, named=True)
    return float(row["routed_bytes"] * row["devices"] / (moe.experts * layers))


def _choices(question: OffloadQuestion, moe: MoeFfn, layers: int) -> Choices:
    if question.choices is None:
        if layers * question.tokens * moe.experts > MOST_SCORES:
            most = MOST_SCORES // (layers * moe.experts)
            raise MoesaicError(
                "invalid", f"{question.tokens} drawn tokens of this model; at most {most}",
                "/tokens",
            )  # fmt: skip
        shares = expert_shares(question.routing, moe, layers)
        random = np.random.default_rng(question.seed)
        # The k largest of log share plus Gumbel noise are k draws without repetition.
        noise = random.gumbel(size=(layers, question.tokens, moe.experts))
        scores = np.log(np.maximum(shares, np.finfo(float).tiny))[:, None, :] + noise
        return np.argpartition(-scores, moe.top_k - 1, axis=2)[:, :, : moe.top_k]
    return _read(question.choices, (layers, moe.experts))[:, : question.tokens]


def _read(path: Path, sizes: tuple[int, int]) -> Choices:
    """Expert ids [layer, token, k] of a NumPy archive; pickled arrays are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids: Any = archive["expert_ids"]
    except (OSError, ValueError, KeyError) as error:
        raise MoesaicError(
            "invalid", f"{path} holds no expert_ids [layer, token, k]: {error}", "/choices"
        ) from error
    three = 3
    if ids.ndim != three or ids.shape[0] != sizes[0] or not ids.size or ids.max() >= sizes[1]:
        raise MoesaicError(
            "invalid",
            f"{path} has expert_ids of shape {ids.shape}; the model has {sizes[0]} MoE layers of "
            f"{sizes[1]} experts", "/choices",
        )  # fmt: skip
    return ids  # type: ignore[no-any-return]


def _storage(question: OffloadQuestion, cluster: Cluster) -> Storage:
    asked = question.storage
    if isinstance(asked, Storage):
        return asked
    tiers: dict[str, MemoryTier] = {tier.name: tier for tier in cluster.device.memory[1:]}
    if asked not in tiers:
        raise unknown_name("storage tier", asked, tiers, "/storage")
    tier = tiers[asked]
    return Storage(
        bandwidth_bytes_per_s=tier.bandwidth_bytes_per_s.value,
        latency_s=0.0 if tier.latency_s is None else tier.latency_s.value,
    )


def _assumptions(question: OffloadQuestion) -> tuple[str, ...]:
    order = "in the order of the trace" if question.choices else "drawn anew for every token"
    start = "with the layer" if question.prefetch else "when attention is done"
    return (
        f"choices {order}; one cache for all layers, empty at first",
        f"a layer's fetches start {start}; storage serves one after another",
    )
