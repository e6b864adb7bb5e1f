"""What an exchange algorithm makes a rank send: bytes inside the node and across, by the routing.

Dispatch carries tokens to their experts, combine carries results back over the same paths, so both
have one volume at their own bytes a number (8-bit out, BF16 back where the engine does that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprofiles.crossing import Crossing
from hwprofiles.errors import MoesaicError, unknown_name
from planner.moe_model import MoeFfn
from planner.routing import parts_reached
from planner.routing.load import Array


@dataclass(frozen=True)
class Exchange:
    """Groups that exchange tokens, one value a candidate.

    `tokens` are those of one rank, `token_bytes` what one of them weighs on the wire.
    `ranks_reached` and `nodes_reached` are the distinct places that hold a token's experts.
    """

    ranks: Array
    nodes: Array
    tokens: Array
    token_bytes: Array
    top_k: float
    ranks_reached: Array
    nodes_reached: Array

    @property
    def inside(self) -> Array:
        """Ranks that share a node."""
        return self.ranks / self.nodes


def exchange_of(
    moe: MoeFfn, shares: Array, ranks: Array, nodes: Array, tokens: Array, token_bytes: Array
) -> Exchange:
    """Find the places that tokens reach from the routing.

    Args:
        moe: the expert block.
        shares: [layers, experts], rows sum to one.
        ranks: expert-parallel ranks, [candidates]; they must divide the experts.
        nodes: nodes over which the ranks spread; they must divide the ranks.
        tokens: tokens of one rank.
        token_bytes: bytes of one token on the wire.

    Raises:
        MoesaicError: `invalid`, naming both numbers, when one does not divide the other.
    """
    count, apart = np.asarray(ranks, dtype=float), np.asarray(nodes, dtype=float)
    if ((count % apart) > 0).any():
        at = int(np.argmax(count % apart > 0))
        raise MoesaicError("invalid", f"{apart[at]:g} nodes do not divide {count[at]:g} ranks")
    return Exchange(
        count, apart, np.asarray(tokens, dtype=float), np.asarray(token_bytes, dtype=float),
        moe.top_k, parts_reached(shares, moe, count), parts_reached(shares, moe, apart),
    )  # fmt: skip


def flat_pairwise(of: Exchange) -> Crossing:
    """Every token-expert pair goes straight to its rank: k copies, R - 1 peers."""
    pairs = of.tokens * of.token_bytes * of.top_k
    near = pairs * (of.inside - 1) / of.ranks
    return Crossing(near, pairs * (1 - 1 / of.nodes), of.ranks - 1)


def hierarchical(of: Exchange) -> Crossing:
    """Two stages: to the neighbour with the target's place, then across (Tutel, arXiv:2206.03382).

    As many bytes cross as in the flat form, in N - 1 larger messages; what moves to a neighbour
    first moves in addition.
    """
    pairs = of.tokens * of.token_bytes * of.top_k
    near = pairs * (1 - 1 / of.inside)
    peers = (of.inside - 1) + (of.nodes - 1)
    return Crossing(near, pairs * (1 - 1 / of.nodes), peers, rounds=2)


def node_deduplicated(of: Exchange) -> Crossing:
    """A token crosses once per node it needs, then once per rank inside (DeepEP, normal kernels).

    It arrives at the peer with the sender's place in its node; both cuts work at once.
    """
    token = of.tokens * of.token_bytes
    near = token * of.ranks_reached * (1 - 1 / of.inside)
    far = token * of.nodes_reached * (1 - 1 / of.nodes)
    return Crossing(near, far, (of.nodes - 1) + (of.inside - 1), pipelined=True)


def low_latency(of: Exchange) -> Crossing:
    """One message a token-expert pair, no forwarding (DeepEP, low-latency kernels)."""
    flat = flat_pairwise(of)
    return Crossing(flat.near_bytes, flat.far_bytes, of.tokens * of.top_k * (1 - 1 / of.ranks))


def gather_scatter(of: Exchange) -> Crossing:
    """All-gather every token to every rank, reduce-scatter the results: k does not matter.

    A node's tokens cross once to each other node, then spread inside.
    """
    token = of.tokens * of.token_bytes
    near = token * of.nodes * (of.inside - 1)
    return Crossing(near, token * (of.nodes - 1), (of.inside - 1) + (of.nodes - 1), rounds=2)


def fused(of: Exchange) -> Crossing:
    """Exchange inside the grouped product's kernel (Ascend MC2): flat volume, both cuts at once."""
    flat = flat_pairwise(of)
    return Crossing(flat.near_bytes, flat.far_bytes, flat.messages, pipelined=True)


ALGORITHMS: dict[str, Callable[[Exchange], Crossing]] = {
    "flat_pairwise": flat_pairwise,
    "hierarchical": hierarchical,
    "node_deduplicated": node_deduplicated,
    "low_latency": low_latency,
    "gather_scatter": gather_scatter,
    "fused": fused,
}
"""Every algorithm by name; a new one is one function here."""


HIDES_BEHIND: dict[str, tuple[str, ...]] = {
    "library": ("shared", "micro_batch"),
    "flat_pairwise": ("shared", "micro_batch"),
    "hierarchical": ("shared", "micro_batch"),
    "node_deduplicated": ("shared", "micro_batch"),
    "low_latency": ("shared", "micro_batch"),
    "gather_scatter": (),
    "group_gather": (),
    "fused": ("experts",),
}
"""What an exchange may run beside: shared experts (Megatron-Core's moe_shared_expert_overlap, for
its all-to-all dispatcher alone), another micro-batch (DeepSeek-V3, section 3.4), the grouped
product itself (MC2). Nothing is hidden unless the engine does so or it is asked for."""


def crossing_of(algorithm: str, of: Exchange) -> Crossing:
    """What one rank sends under an algorithm by name.

    Raises:
        MoesaicError: `unknown_name`, with the known algorithms.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("exchange algorithm", algorithm, ALGORITHMS, "/exchange")
    return ALGORITHMS[algorithm](of)
