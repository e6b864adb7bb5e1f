"""What a routing policy makes of a layer: experts a token runs, load, drops, and overhead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing.draws import DRAWN_AT_MOST, Shares, chances, drawn_counts
from planner.routing.load import Array
from planner.routing.policies import (
    DenseMixturePolicy,
    GroupedPolicy,
    GroupLimitedPolicy,
    MainAuxiliaryPolicy,
    MomentumPolicy,
    NullExpertsPolicy,
    Policy,
    RandomPartitionPolicy,
    ScheduledPolicy,
    SimilarityPolicy,
    SkipPolicy,
    SwitchPolicy,
    TopKPolicy,
)

BF16_BYTES = 2


@dataclass(frozen=True)
class Choosing:
    """One layer under a policy.

    `experts_per_token[n]` is the probability that a token runs n routed experts.
    """

    experts_per_token: Array
    router_flops_per_token: float
    state_bytes_per_token: float = 0.0
    """Carried from layer to layer beside the residual stream."""
    needs_attention_map: bool = False
    balanced: bool = False
    """Every expert gets equally many tokens by construction."""

    @property
    def mean_experts(self) -> float:
        """Routed experts that a token runs on average; drives FLOP and exchanged bytes."""
        return float(self.experts_per_token @ np.arange(len(self.experts_per_token)))


def choosing(policy: Policy, moe: MoeFfn, hidden: int) -> Choosing:
    """What a policy makes of an expert block.

    Raises:
        MoesaicError: `invalid` when a policy asks for more experts than the block has.
    """
    return _RULES[type(policy)](policy, moe, hidden)


def _exactly(count: int, moe: MoeFfn) -> Array:
    if count > moe.experts:
        raise MoesaicError(
            "invalid", f"the policy runs {count} experts a token, the model has {moe.experts}",
            "/policy",
        )  # fmt: skip
    found = np.zeros(moe.experts + 1)
    found[count] = 1.0
    return found


SCORING_FLOPS = {"softmax": 3, "sigmoid": 4}
"""FLOP an expert: exponential, sum and quotient; sign, exponential, sum and reciprocal."""


def _top_k(policy: TopKPolicy | ScheduledPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    work = 2 * hidden * moe.experts
    if isinstance(policy, TopKPolicy) and policy.scoring is not None:
        work += SCORING_FLOPS[policy.scoring] * moe.experts
    return Choosing(_exactly(policy.top_k or moe.top_k, moe), work)


def _in_groups(policy: GroupLimitedPolicy | GroupedPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    block = block_of(policy, moe)
    return Choosing(_exactly(block.top_k, moe), 2 * hidden * moe.experts)


def block_of(policy: Policy, moe: MoeFfn) -> MoeFfn:
    """The expert block with the router that a policy puts in place of the model's.

    Raises:
        MoesaicError: `invalid`, naming both sides, for groups that experts or top_k do not allow.
    """
    if not isinstance(policy, GroupLimitedPolicy | GroupedPolicy):
        return moe
    best = policy.top_groups if isinstance(policy, GroupLimitedPolicy) else policy.groups
    top_k, held = policy.top_k or moe.top_k, moe.experts // policy.groups * best
    if top_k > held:
        raise MoesaicError(
            "invalid", f"top_k {top_k} of {held} experts in {best} of {policy.groups} groups",
            "/policy",
        )  # fmt: skip
    router = {"router": policy.kind, "groups": policy.groups, "top_groups": best, "top_k": top_k}
    return MoeFfn.parse(moe.model_dump() | router, what="policy")


def _momentum(policy: MomentumPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    """The update p = mu·p + gamma·f(x), x = x - p on every token."""
    del policy
    work = 2 * hidden * moe.experts + 4 * hidden
    return Choosing(_exactly(moe.top_k, moe), work, state_bytes_per_token=BF16_BYTES * hidden)


def _similarity(policy: SimilarityPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    """Scores of the window are mixed; without the attention map tokens are compared first."""
    compare = 0 if policy.by_attention else 2 * policy.window_tokens * hidden
    work = 2 * hidden * moe.experts + compare + 2 * policy.window_tokens * moe.experts
    return Choosing(_exactly(moe.top_k, moe), work, needs_attention_map=policy.by_attention)


def _switch(policy: SwitchPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    del policy
    return Choosing(_exactly(1, moe), 2 * hidden * moe.experts)


def _null_experts(policy: NullExpertsPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    """Hypergeometric where null experts are chosen as often as others; k·n / (n + m) on average.

    A measured mean is met by a binomial of k chances.
    """
    k, n, m = policy.top_k, moe.experts, policy.null_experts
    if k > n + m:
        raise MoesaicError("invalid", f"top_k {k} of {n} experts and {m} null experts", "/policy")
    found = np.zeros(n + 1)
    runs = range(max(k - m, 0), min(k, n) + 1)
    if policy.mean_experts_count is None:
        for count in runs:
            found[count] = comb(n, count) * comb(m, k - count) / comb(n + m, k)
    else:
        chance = policy.mean_experts_count / k
        if chance > 1:
            raise MoesaicError(
                "invalid", f"{policy.mean_experts_count} experts of top_k {k}", "/policy"
            )
        for count in range(min(k, n) + 1):
            found[count] = comb(k, count) * chance**count * (1 - chance) ** (k - count)
        found /= found.sum()
    return Choosing(found, 2 * hidden * (n + m))


def _skip(policy: SkipPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    found = _exactly(moe.top_k, moe)
    left = policy.skipped_share * (1 - policy.protected_share)
    found[moe.top_k] -= left
    found[moe.top_k - 1] += left
    marked = policy.protected_share > 0
    return Choosing(found, 2 * hidden * moe.experts, needs_attention_map=marked)


def _main_auxiliary(policy: MainAuxiliaryPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    if policy.main > moe.top_k:
        raise MoesaicError("invalid", f"{policy.main} main experts of top_k {moe.top_k}", "/policy")
    vectors = 2 * hidden * (moe.top_k - policy.main)
    return Choosing(_exactly(policy.main, moe), 2 * hidden * moe.experts + vectors)


def _random_partition(policy: RandomPartitionPolicy, moe: MoeFfn, hidden: int) -> Choosing:
    del policy, hidden
    return Choosing(_exactly(1, moe), 0.0, balanced=True)


def _dense_mixture(policy: DenseMixturePolicy, moe: MoeFfn, hidden: int) -> Choosing:
    """An expert that any gate sees runs once; every gate scores and mixes what it sees."""
    seen = set().union(*policy.visible)
    if not seen or max(seen) >= moe.experts:
        raise MoesaicError(
            "invalid", f"gates see experts {sorted(seen)[-3:]}, the model has {moe.experts}",
            "/policy/visible",
        )  # fmt: skip
    pairs = sum(len(set(mask)) for mask in policy.visible)
    return Choosing(_exactly(len(seen), moe), 4.0 * hidden * pairs, balanced=True)


_RULES: dict[type, Callable[..., Choosing]] = {
    TopKPolicy: _top_k,
    GroupLimitedPolicy: _in_groups,
    GroupedPolicy: _in_groups,
    ScheduledPolicy: _top_k,
    SwitchPolicy: _switch,
    NullExpertsPolicy: _null_experts,
    SkipPolicy: _skip,
    MainAuxiliaryPolicy: _main_auxiliary,
    RandomPartitionPolicy: _random_partition,
    DenseMixturePolicy: _dense_mixture,
    SimilarityPolicy: _similarity,
    MomentumPolicy: _momentum,
}


@dataclass(frozen=True)
class Capacity:
    """What a capacity factor does to a batch, shares of its token-expert pairs."""

    slots_per_expert: int
    dropped_ratio: float
    padded_ratio: float
    """Empty slots that are computed all the same."""


def capacity_effect(shares: Array, moe: MoeFfn, tokens: int, factor: float) -> Capacity:
    """Drops and padding when experts hold `factor` times their mean load (GShard).

    Args:
        shares: [layers, experts], rows sum to one.
        moe: the expert block.
        tokens: tokens of a batch.
        factor: slots over the mean load.
    """
    slots = int(np.ceil(factor * tokens * moe.top_k / moe.experts))
    table = Shares.of(shares)
    drawn = min(tokens, DRAWN_AT_MOST)
    expected = chances(table, moe)[:, None, :]
    noise = (drawn_counts(table, moe, drawn) - drawn * expected) * np.sqrt(tokens / drawn)
    counts = np.maximum(tokens * expected + noise, 0)
    pairs = counts.sum()
    dropped = np.maximum(counts - slots, 0).sum() / pairs
    padded = np.maximum(slots - counts, 0).sum() / pairs
    return Capacity(slots, float(dropped), float(padded))
