"""Experts, copies and shared experts on the ranks of published deployments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.expert_layout import ExpertLayout
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

    @property
    def layout(self) -> ExpertLayout:
        """What an estimate is asked to lay experts out like this."""
        copies = self.slots_per_rank * self.routed_ranks - self.routed
        return ExpertLayout(redundant_experts=copies, shared_ranks=self.shared)

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
