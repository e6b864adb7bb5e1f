"""All that a routing policy makes of a batch: experts a token, loads, experts touched, overhead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn, MoeModel
from planner.routing.busiest import device_load
from planner.routing.choosing import Choosing, capacity_effect, choosing
from planner.routing.draws import Shares, chances
from planner.routing.imbalance import expected_imbalance_score
from planner.routing.load import Array, Routing, UniformRouting, expert_shares
from planner.routing.passes import run_block
from planner.routing.policies import DenseMixturePolicy, Policy, SimilarityPolicy, TopKPolicy


@dataclass(frozen=True)
class Outlook:
    """A batch under a policy, expected values."""

    experts_per_token: Array
    """Probability that a token runs n routed experts, by n."""
    tokens_per_expert: Array
    """[layers, experts]."""
    pairs_per_device: Array
    """Token-expert pairs, [layers, devices]."""
    experts_touched: float
    """Experts of a layer with at least one token, mean over layers."""
    busy_ratio: float
    """Busiest device's pairs over the mean, expected from draws, and their standard error."""
    busy_error_ratio: float
    imbalance_score: float
    """(max - min of device loads) / tokens (Pangu Pro MoE, arXiv:2505.21411), likewise."""
    imbalance_error: float
    entropy_ratio: float
    """Entropy of the experts' shares over the greatest possible; as stated by the policy."""
    churn_share: float | None
    """Tokens whose experts change, where the policy states it."""
    router_flops_per_token: float
    state_bytes_per_token: float
    needs_attention_map: bool
    dropped_ratio: float
    padded_ratio: float


class RoutingQuestion(Document):
    """A batch of a model's tokens on devices that hold its experts."""

    routing: Routing = UniformRouting()
    policy: Policy = TopKPolicy()
    devices: Annotated[int, Field(ge=1, le=65_536)] = 1
    tokens: Annotated[int, Field(ge=1, le=10**9)] = 1024


def answer_routing(question: RoutingQuestion, model: MoeModel) -> dict[str, Any]:
    """The outlook of a model's expert layers as plain data.

    Raises:
        MoesaicError: `invalid` for a model without experts, and what `outlook` raises.
    """
    moe = model.moe
    if moe is None:
        raise MoesaicError("invalid", f"{model.name} has no routed experts", "/model")
    shares = expert_shares(question.routing, moe, len(model.moe_layers))
    batch = question.tokens, question.devices
    found = outlook(question.policy, moe, shares, model.hidden, batch)
    data = {name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(found).items()}  # fmt: skip
    runs = [[count, chance] for count, chance in enumerate(data["experts_per_token"]) if chance > 0]
    asked = {"name": model.name, "tokens": question.tokens, "devices": question.devices}
    return asked | data | {"experts_per_token": runs}


def outlook(
    policy: Policy, moe: MoeFfn, shares: Array, hidden: int, batch: tuple[int, int]
) -> Outlook:
    """What a policy makes of a batch.

    Args:
        policy: how experts are chosen.
        moe: the expert block.
        shares: [layers, experts], rows sum to one.
        hidden: width of a token.
        batch: tokens, and devices that hold equally many experts each, in order.

    Raises:
        MoesaicError: `invalid` for more experts than there are, or devices that do not divide.
    """
    tokens, devices = batch
    chosen = choosing(policy, moe, hidden)
    block, kept = run_block(policy, moe, chosen)
    by_expert = _tokens_per_expert(policy, chosen, shares, (tokens, block, kept))
    load = device_load(shares, block, np.array([devices]), np.array([tokens * kept]))
    counted = max(round(tokens * kept), 1)
    score, error = expected_imbalance_score(shares, block, devices, counted)
    capacity = policy.capacity_factor
    effect = capacity_effect(shares, block, counted, capacity) if capacity is not None else None
    pairs = by_expert.reshape(len(by_expert), devices, -1).sum(axis=2)
    even = chosen.balanced
    busy = float((pairs.max(axis=1) / pairs.mean(axis=1)).mean()) if even else load.busy_ratio[0]
    stated = policy if isinstance(policy, SimilarityPolicy) else SimilarityPolicy(
        kind="similarity", window_tokens=1)  # fmt: skip
    entropy = stated.entropy_ratio
    return Outlook(
        chosen.experts_per_token, by_expert, pairs, _touched(by_expert, counted, chosen),
        float(busy), 0.0 if even else float(load.error_ratio[0]),
        float((np.ptp(pairs, axis=1) / tokens).mean()) if even else score, 0.0 if even else error,
        _entropy(by_expert) if entropy is None else entropy, stated.churn_share,
        chosen.router_flops_per_token, chosen.state_bytes_per_token, chosen.needs_attention_map,
        effect.dropped_ratio if effect else 0.0, effect.padded_ratio if effect else 0.0,
    )  # fmt: skip


def _tokens_per_expert(
    policy: Policy, chosen: Choosing, shares: Array, batch: tuple[int, MoeFfn, float]
) -> Array:
    tokens, block, kept = batch
    if isinstance(policy, DenseMixturePolicy):  # an expert that any gate sees runs every token
        seen = sorted(set().union(*policy.visible))
        found = np.zeros_like(shares)
        found[:, seen] = tokens
        return found
    if chosen.balanced:
        return np.full_like(shares, tokens * chosen.mean_experts / shares.shape[1])
    return np.asarray(chances(Shares.of(shares), block) * tokens * kept)


def _touched(by_expert: Array, tokens: int, chosen: Choosing) -> float:
    """Each expert is missed by all tokens with (1 - chance) to the power of their number."""
    if chosen.balanced:
        return float(np.minimum(by_expert, 1.0).sum(axis=1).mean())
    missed = (1 - np.minimum(by_expert / tokens, 1.0)) ** tokens
    return float((1 - missed).sum(axis=1).mean())


def _entropy(by_expert: Array) -> float:
    """Mean over layers of -sum of p log p over log of the number of experts."""
    parts = by_expert / by_expert.sum(axis=1, keepdims=True)
    logs = np.log(np.where(parts > 0, parts, 1.0))
    return float(-(parts * logs).sum(axis=1).mean() / np.log(max(by_expert.shape[1], 2)))
