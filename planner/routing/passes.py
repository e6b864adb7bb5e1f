"""What the routing makes of forward passes: pairs, the busiest rank, places that tokens reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.moe_model import MoeFfn
from planner.routing.busiest import device_load
from planner.routing.choosing import Choosing, block_of, capacity_effect, choosing
from planner.routing.load import Array
from planner.routing.policies import Policy
from planner.routing.reach import parts_reached

LOAD = ("busy_ratio", "active_experts", "ranks_reached", "nodes_reached", "experts_per_token",
        "router_columns")  # fmt: skip
"""What a pass is told: the busiest rank's load, the places a token goes to, the routed experts it
runs on average, and the router's work as columns of a hidden-wide matrix."""


@dataclass(frozen=True)
class Passes:
    """Forward passes, one value each."""

    ranks: Array
    """Expert-parallel ranks."""
    nodes: Array
    """Nodes over which they spread."""
    tokens: Array
    """Tokens over all ranks."""
    redundant: Array
    """Extra expert copies of a layer."""


def pass_load(
    policy: Policy, moe: MoeFfn, shares: Array, hidden: int, passes: Passes
) -> dict[str, Array]:
    """Columns `LOAD` of forward passes.

    Args:
        policy: how many experts a token runs.
        moe: the expert block.
        shares: [layers, experts], rows sum to one.
        hidden: width of a token.
        passes: ranks, nodes, tokens and copies of each pass.

    Raises:
        MoesaicError: `invalid` when ranks do not divide the experts, or the policy asks for more
            experts than there are.
    """
    chosen = choosing(policy, moe, hidden)
    block, kept = run_block(policy, moe, chosen)
    tokens = passes.tokens * kept
    load = device_load(shares, block, passes.ranks, tokens, passes.redundant)
    busy, pairs = load.busy_ratio, np.full(len(passes.ranks), chosen.mean_experts)
    if chosen.balanced:
        busy = np.ones_like(busy)
    if policy.capacity_factor is not None:
        busy, pairs = np.ones_like(busy), pairs * _computed(policy, shares, block, tokens)
    reached = [
        np.minimum(parts_reached(shares, block, parts, uneven=True), np.maximum(parts, 1))
        for parts in (passes.ranks, passes.nodes)
    ]
    columns = np.full(len(busy), chosen.router_flops_per_token / (2 * hidden))
    found = (busy, load.active_experts, *reached, pairs, columns)
    return dict(zip(LOAD, found, strict=True))


def run_block(policy: Policy, moe: MoeFfn, chosen: Choosing) -> tuple[MoeFfn, float]:
    """The block with as many experts a token as a policy runs, and the tokens that run as many.

    A mean of 1.7 experts is two experts for 85 % of the tokens.
    """
    routed = block_of(policy, moe)
    whole = max(int(np.ceil(chosen.mean_experts - 1e-9)), 1)
    block = routed if whole == routed.top_k else _with_top_k(routed, whole)
    return block, chosen.mean_experts / whole


def _with_top_k(moe: MoeFfn, count: int) -> MoeFfn:
    """The block with another top_k; groups that it cannot fill evenly are left out."""
    fits = moe.router != "grouped" or count % moe.groups == 0
    return moe.model_copy(update={"top_k": count, "router": moe.router if fits else "top_k"})


def _computed(policy: Policy, shares: Array, moe: MoeFfn, tokens: Array) -> Array:
    """Rows computed over rows wanted: drops leave, padding joins."""
    factor = policy.capacity_factor or 1.0
    sizes, where = np.unique(np.maximum(np.rint(tokens), 1).astype(int), return_inverse=True)
    effects = [capacity_effect(shares, moe, int(size), factor) for size in sizes]
    kept = np.array([1 - effect.dropped_ratio + effect.padded_ratio for effect in effects])
    return np.asarray(kept[where.reshape(-1)], dtype=float)
