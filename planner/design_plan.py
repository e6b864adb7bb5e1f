"""The answer to a design question as one document: designs judged, their frontier, the base."""

from __future__ import annotations

from hwprofiles.document import Document
from planner.design import Design
from planner.plan import LayoutOf
from planner.quantities import Estimate


class DesignPoint(Document):
    """One design and the best that it does under the limits."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    top_k: int
    expert_width: int
    total_parameters: int
    active_parameters: int
    """What one token runs through."""
    output_tokens_per_s_per_device: Estimate
    tpot_s: Estimate
    layout: LayoutOf
    batch: int
    devices: int
    """Of one worker."""


class DesignPlan(Document):
    """Everything that the answer to a design question says; same question, same bytes."""

    schema_version: int = 1
    design_digest: str
    question: Design
    frontier: tuple[DesignPoint, ...]
    """Designs than which no other has more active parameters and is as fast; fastest first."""
    base: DesignPoint | None
    """The base model itself; none where it does not keep the limits."""
    rival: DesignPoint | None
    """The fastest design of at least the base's layers, active and total parameters (the latter two
    less `like_ratio`): a shallower or smaller one is faster, and another model."""
    like_ratio: float
    base_distance_ratio: float | None
    """How much faster the rival is than the base; below zero: the base is the fastest."""
    designs_count: int
    feasible_count: int
    """Designs that keep the limits."""
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
