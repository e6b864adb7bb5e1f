"""Expert layouts that deployments use: slots with copies, H2P's split sums, experts set apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprofiles.crossing import Crossing
from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn
from planner.routing import device_load
from planner.routing.load import Array


@dataclass(frozen=True)
class ExpertSlots:
    """Experts of a layer on the ranks of one deployment, redundant and shared copies included."""

    name: str
    ranks: int
    routed: int
    redundant: int
    shared: int
    """Ranks that hold the shared expert instead of routed ones; 0: it is beside the router."""
    source: str

    @property
    def routed_ranks(self) -> int:
        """Ranks among which routed experts and their copies lie."""
        return self.ranks - self.shared

    @property
    def slots_per_rank(self) -> int:
        """Routed experts, copies included, that a rank holds.

        Raises:
            MoesaicError: `invalid` when ranks do not divide the slots.
        """
        slots = self.routed + self.redundant
        if self.routed_ranks < 1 or slots % self.routed_ranks:
            raise MoesaicError(
                "invalid",
                f"{self.routed_ranks} ranks do not divide {self.routed} experts and "
                f"{self.redundant} copies",
                "/redundant_experts",
            )
        return slots // self.routed_ranks

    def busiest(self, moe: MoeFfn, shares: Array, tokens: float) -> float:
        """Busiest routed rank's token-expert pairs over the mean, `tokens` over all ranks."""
        held = self.slots_per_rank * self.routed_ranks - self.routed
        load = device_load(shares, moe, np.array([self.routed_ranks]), np.array([tokens]), held)
        return float(load.busy_ratio[0])


EXPERT_SLOTS: dict[str, ExpertSlots] = {
    slots.name: slots
    for slots in (
        ExpertSlots("deepseek-v3-prefill-ep32", 32, 256, 32, 0,
                    "DeepSeek-V3 (arXiv:2412.19437), section 3.4.1: 32 redundant, 9 a GPU"),
        ExpertSlots("deepseek-v3-decode-ep320", 320, 256, 0, 64,
                    "DeepSeek-V3 (arXiv:2412.19437), section 3.4.2: one expert a GPU, 64 GPUs for "
                    "redundant and shared experts"),
        ExpertSlots("deepseek-r1-decode-ep144", 144, 256, 32, 0,
                    "DeepSeek open-infra-index, day 6 (2025-03-01): EP144 of 18 nodes, 32 "
                    "redundant, 2 a GPU"),
        ExpertSlots("cloudmatrix384-decode-ep320", 320, 256, 32, 32,
                    "CloudMatrix384 (arXiv:2506.12708): 32 shared, 256 routed, 32 redundant"),
    )
}  # fmt: skip
"""Published deployments by name."""


@dataclass(frozen=True)
class BlockSum:
    """What closes a tensor-parallel attention block, on one rank."""

    sent_bytes: float
    """On the way out of attention; the all-gather after the norm is the experts' input."""
    norm_tokens: float


def all_reduced(tokens: float, hidden: int, tp: int) -> BlockSum:
    """All-reduce, then every rank norms every token (Megatron-LM)."""
    return BlockSum(2 * (tp - 1) / tp * tokens * hidden * 2, tokens)


def split_sum(tokens: float, hidden: int, tp: int) -> BlockSum:
    """H2P: reduce-scatter, norm the own part, gather later (Pangu Pro MoE, arXiv:2505.21411).

    Half the bytes on the way out, and 1 / tp of the norms.
    """
    return BlockSum((tp - 1) / tp * tokens * hidden * 2, tokens / tp)


def experts_apart(
    attention_ranks: Array, expert_ranks: Array, tokens: Array, token_bytes: float, moe: MoeFfn
) -> Crossing:
    """One way between attention ranks and expert ranks of their own (xDeepServe, arXiv:2508.02520).

    The slower end counts: what an attention rank sends or what the mean expert rank takes.

    Args:
        attention_ranks: ranks that hold tokens, [candidates].
        expert_ranks: ranks that hold experts.
        tokens: tokens of one attention rank.
        token_bytes: bytes of one token on the wire.
        moe: the expert block; every token goes to its top_k experts.
    """
    sent = np.asarray(tokens, dtype=float) * moe.top_k * token_bytes
    taken = sent * np.asarray(attention_ranks) / np.asarray(expert_ranks)
    pairs = np.asarray(tokens, dtype=float) * moe.top_k
    return Crossing(np.zeros_like(sent), np.maximum(sent, taken), pairs, pipelined=True)
