"""Routing policies as data: how many experts a token runs, what choosing them costs.

A model's `router` states free, group-limited or grouped top-k; a policy here says what is done
instead or on top, and is named in a scenario beside the load.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document

Count = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Policy(Document):
    """What every policy may state besides."""

    capacity_factor: Annotated[float, Field(gt=0, le=64)] | None = None  # unit: ratio to the mean
    """Slots of an expert over its mean load; tokens beyond are dropped, empty slots padded (GShard,
    arXiv:2006.16668). None: experts take what comes."""


class TopKPolicy(_Policy):
    """The model's own router: its top_k, or another."""

    kind: Literal["top_k"] = "top_k"
    top_k: Count | None = None
    scoring: Literal["softmax", "sigmoid"] | None = None
    """What makes scores of logits; counted beside the router's product where it is stated."""


class GroupLimitedPolicy(_Policy):
    """Top-k among the best groups: DeepSeek's n_group and topk_group (arXiv:2412.19437, 2.1.2).

    A group on each node keeps a token to `top_groups` nodes; one group is free top-k.
    """

    kind: Literal["group_limited"]
    groups: Count
    top_groups: Count
    top_k: Count | None = None


class GroupedPolicy(_Policy):
    """Equally many experts in each group (MoGE, arXiv:2505.21411)."""

    kind: Literal["grouped"]
    groups: Count
    top_k: Count | None = None


class SwitchPolicy(_Policy):
    """One expert a token (Switch Transformer, arXiv:2101.03961)."""

    kind: Literal["switch"]


class NullExpertsPolicy(_Policy):
    """Top-k among experts and targets that compute nothing (AdaMoE, arXiv:2406.13233)."""

    kind: Literal["null_experts"]
    null_experts: Count
    top_k: Count
    mean_experts_count: Annotated[float, Field(gt=0)] | None = None  # unit: experts a token
    """Experts that a token runs as measured; none: null experts chosen as often as others."""


class SkipPolicy(_Policy):
    """Some tokens leave out their last expert (MC-MoE's online pruning, arXiv:2410.06270)."""

    kind: Literal["skip"]
    skipped_share: Share
    """Tokens whose last expert is left out."""
    protected_share: Share = 0.0
    """Tokens that attention marks as important and that skip nothing."""


class MainAuxiliaryPolicy(_Policy):
    """`main` experts run; the rest of the top-k act as vectors (arXiv:2503.00634)."""

    kind: Literal["main_auxiliary"]
    main: Count


class ScheduledPolicy(_Policy):
    """From dense to sparse as training goes on: k(t) in steps (EvoMoE, arXiv:2112.14397)."""

    kind: Literal["schedule"]
    schedule: Annotated[tuple[tuple[Annotated[int, Field(ge=0)], Count], ...], Field(min_length=1)]
    """(training step, experts a token runs from then on), steps growing."""
    step: Annotated[int, Field(ge=0)] = 0
    """The training step that is asked about."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        steps = [step for step, _ in self.schedule]
        if steps != sorted(set(steps)) or steps[0] != 0:
            raise ValueError(f"schedule begins at step 0 and grows, not {steps}")
        return self

    @property
    def top_k(self) -> int:
        """Experts a token runs at `step`."""
        return [count for begin, count in self.schedule if begin <= self.step][-1]


class RandomPartitionPolicy(_Policy):
    """Every batch is cut at random into equal parts, one an expert (EWA, arXiv:2308.06093)."""

    kind: Literal["random_partition"]


class DenseMixturePolicy(_Policy):
    """Gates that mix all experts they see; `visible` is their mask (HoME, arXiv:2408.05430)."""

    kind: Literal["dense_mixture"]
    visible: Annotated[tuple[tuple[Annotated[int, Field(ge=0)], ...], ...], Field(min_length=1)]
    """Experts that each gate sees."""


class SimilarityPolicy(_Policy):
    """Tokens choose with regard to similar tokens (arXiv:2505.00792): scores mix in a window."""

    kind: Literal["similarity"]
    window_tokens: Count
    by_attention: bool = False
    """Similarity is the attention map, which fused attention kernels do not give away."""
    entropy_ratio: Share | None = None
    """Entropy of the choices over the greatest possible, as measured."""
    churn_share: Share | None = None
    """Tokens whose experts change between two checkpoints or inputs, as measured."""


class MomentumPolicy(_Policy):
    """A momentum tensor rides along the residual stream (MomentumSMoE, arXiv:2410.14574)."""

    kind: Literal["momentum"]


Policy = Annotated[
    TopKPolicy | GroupLimitedPolicy | GroupedPolicy | SwitchPolicy | NullExpertsPolicy | SkipPolicy
    | MainAuxiliaryPolicy | ScheduledPolicy | RandomPartitionPolicy | DenseMixturePolicy
    | SimilarityPolicy | MomentumPolicy,
    Field(discriminator="kind"),
]  # fmt: skip
"""Every policy by its `kind`."""
