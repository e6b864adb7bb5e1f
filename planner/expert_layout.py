"""How experts are reached, copied, shared and overlapped, where that is not the usual way."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document

ExchangeName = Literal[
    "library", "flat_pairwise", "hierarchical", "node_deduplicated", "low_latency",
    "gather_scatter", "group_gather", "fused",
]  # fmt: skip
Overlap = Literal["engine", "none", "shared", "micro_batch"]
Degree = Annotated[int, Field(ge=1, le=65_536)]


class ExpertLayout(Document):
    """Experts of one configuration beside tp, dp, moe_tp and moe_ep."""

    exchange: ExchangeName = "library"
    """How tokens reach their experts; `library`: as the engine's own library does, `group_gather`:
    every rank of the worker takes every token (H2P), `fused`: inside the grouped product (MC2)."""
    overlap: Overlap = "engine"
    """What an exchange hides behind: the shared experts, another half of the batch, nothing, or
    what the engine does where no fitted engine layer holds that already."""
    attention_sum: Literal["all_reduce", "split"] = "all_reduce"
    """`split`: reduce-scatter, norms on the own part, all-gather (H2P, arXiv:2505.21411)."""
    shared_tp: Degree | None = None
    """Ranks that cut the shared experts; none: as many as cut attention."""
    shared_ranks: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Expert-parallel ranks that hold the shared experts and no routed ones; 0: every rank does."""
    redundant_experts: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """Copies of routed experts in each layer; none: as few as let every rank hold equally many."""
    apart: bool = False
    """Experts on moe_tp·moe_ep devices of their own beside the tp·dp of attention (xDeepServe)."""
    micro_batches: Annotated[int, Field(ge=1, le=16)] = 2
    """Parts of a batch that alternate between attention and experts, where those are apart."""
    order: Literal["grouped", "queue", "token"] = "grouped"
    """`queue`: one expert after the other, the next one loading meanwhile (Edge-MoE,
    arXiv:2305.18691); `token`: token after token, each loading its experts."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.shared_ranks and self.shared_tp is not None:
            raise ValueError("shared_ranks hold the shared experts whole: give no shared_tp")
        if self.apart and (self.shared_ranks or self.overlap in ("shared", "micro_batch")):
            raise ValueError("experts apart take turns already: no shared_ranks, no overlap")
        return self


USUAL_LAYOUT = ExpertLayout()
"""As engines lay experts out."""
