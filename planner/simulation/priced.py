"""What every question that prices passes says: model, machine, engine, formats, routing."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.library import resolve_cluster
from planner.candidates import Layout, broken_rule
from planner.engines import load_engine
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.pricing import Question
from planner.routing import Routing, UniformRouting
from planner.work.sheet import formats_of


class PricedQuestion(Document):
    """Fields that passes are priced from; names are resolved when they are read."""

    model: Annotated[MoeModel, BeforeValidator(resolve_model)]
    cluster: Annotated[Cluster, BeforeValidator(resolve_cluster)]
    backend: str = "vllm"
    backend_version: str | None = None
    precision: str | None = None
    kv_dtype: str = "bf16"
    routing: Routing = UniformRouting()

    def shared(self, cluster: Cluster | None = None) -> Question:
        """What all passes share, on the question's cluster or on another one."""
        return Question(
            self.model, cluster or self.cluster, load_engine(self.backend, self.backend_version),
            self.routing, formats_of(self.model, self.precision, self.kv_dtype),
        )  # fmt: skip


def spare_experts(model: MoeModel, moe_ep: int, redundant: int = 0) -> int:
    """Copies: those asked for, and those that make all divide among the ranks, as engines do."""
    if model.moe is None:
        return 0
    return redundant + -(model.moe.experts + redundant) % moe_ep


def check_layout(layout: Layout, question: Question, spare: int, place: str) -> None:
    """Refuse a layout that the model does not allow or the cluster has no devices for.

    Raises:
        MoesaicError: `invalid`, at a place of the question.
    """
    broken = broken_rule(layout, question.model, question.formats.weights.routed, spare)
    if broken is not None:
        raise MoesaicError("invalid", broken, place)
    if layout.devices > question.cluster.device_count:
        raise MoesaicError(
            "invalid",
            f"the layout needs {layout.devices} devices; {question.cluster.name} has "
            f"{question.cluster.device_count}",
            place,
        )
