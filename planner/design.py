"""Which model to build for a machine: a question with `design`, ranges of sizes under limits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.library import resolve_cluster
from planner.model_library import resolve_model
from planner.moe_model import GqaAttention, LayerKind, LayerRun, MoeFfn, MoeModel
from planner.parameters import count_parameters
from planner.scenario import Choices, Limits, Price, Scenario, resolved_at
from planner.workload import Workload

Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...], Field(min_length=1)]
Totals = Annotated[tuple[Annotated[int, Field(ge=1_000_000, le=10**14)], ...], Field(min_length=1)]
WIDTH_STEP = 32
"""An expert's inner width is a multiple of this, as matrix units want it."""
MOST_DESIGNS = 20_000


class DesignSpace(Document):
    """Sizes to combine; the expert width follows from the total.

    The default is the range of Pangu Pro MoE's search (arXiv:2505.21411, figure 3): hidden 4,096 to
    8,192, 32 to 64 query heads, 8 to 16 KV heads, 40 to 64 layers, 32 to 64 experts, 60 to 80 B.
    """

    hidden: Sizes = (4096, 5120, 6144, 8192)
    layers: Sizes = (40, 48, 64)
    heads: Sizes | None = None
    """Query heads; none: as many as fill the hidden width (32 to 64 of 128)."""
    kv_heads: Sizes = (8, 16)
    experts: Sizes = (32, 64)
    top_k: Sizes = (8,)
    total_parameters: Totals = (60_000_000_000, 72_000_000_000, 80_000_000_000)
    """Parameters of the whole model to aim at, each."""

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if (count := self.size) > MOST_DESIGNS:
            raise ValueError(f"{count:,} designs are more than {MOST_DESIGNS:,}; give fewer sizes")
        return self

    @property
    def size(self) -> int:
        """Combinations of the lists."""
        count = 1
        for name in type(self).model_fields:
            count *= len(getattr(self, name) or (0,))
        return count


class Design(Document):
    """Sizes of a model that serve fastest on a machine, over how much of it a token runs."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(max_length=200)] = "design"
    design: DesignSpace
    base: Annotated[MoeModel, BeforeValidator(resolved_at("/base", resolve_model))]
    """A model of the family: head width, vocabulary, router, shared experts and formats are its
    own; it is judged beside the designs."""
    cluster: Annotated[Cluster, BeforeValidator(resolved_at("/cluster", resolve_cluster))]
    workload: Workload
    choices: Choices = Choices()
    limits: Limits = Limits()
    device_hour_usd: Price | None = None

    @model_validator(mode="after")
    def _base_is_of_the_family(self) -> Self:
        if self.limits.tpot_s is None:
            raise ValueError("limits.tpot_s is what designs are judged under; give it")
        kinds = [kind for name, kind in self.base.kinds.items() if name in self.base.kind_counts()]
        parts = [(kind.attention, kind.ffn) for kind in kinds]
        if len(parts) != 1 or not (
            isinstance(parts[0][0], GqaAttention) and isinstance(parts[0][1], MoeFfn)
        ):
            raise ValueError(
                f"base {self.base.name} must have layers of one kind, with grouped-query attention "
                "and routed experts"
            )
        return self

    def scenario(self, model: MoeModel) -> Scenario:
        """The question of how one model decodes on this machine."""
        return Scenario(name=model.name, model=model, cluster=self.cluster, workload=self.workload,
                        choices=self.choices, limits=self.limits,
                        device_hour_usd=self.device_hour_usd)  # fmt: skip

    def models(self) -> Iterator[MoeModel]:
        """Every design of the space that its sizes allow."""
        space = self.design
        lists = (space.hidden, space.layers, space.heads or (0,), space.kv_heads, space.experts,
                 space.top_k, space.total_parameters)  # fmt: skip
        seen = set()
        for sizes in itertools.product(*lists):
            model = _sized(self.base, sizes)
            if model is not None and model.name not in seen:
                seen.add(model.name)
                yield model


def _sized(base: MoeModel, sizes: tuple[int, ...]) -> MoeModel | None:
    """The base in other sizes; none where they do not divide or leave nothing for experts."""
    hidden, layers, heads, kv_heads, experts, top_k, total = sizes
    (kind,) = (base.kinds[name] for name in base.kind_counts())
    attention, moe = kind.attention, kind.ffn
    if not isinstance(attention, GqaAttention) or not isinstance(moe, MoeFfn):
        return None
    heads = heads or hidden // attention.head_dim
    groups = moe.groups if moe.router == "grouped" else 1
    if heads % kv_heads or top_k > experts or experts % groups or top_k % groups:
        return None
    wide = attention.model_copy(update={"heads": heads, "kv_heads": kv_heads})
    each = moe.model_copy(update={"experts": experts, "top_k": top_k})
    made = kind.model_copy(update={"attention": wide, "ffn": each})
    plain = base.model_copy(
        update={"hidden": hidden, "kinds": {"design": made},
                "layers": (LayerRun(kind="design", count=layers),), "sources": (),
                "assumptions": (), "mtp_layers": 0, "mtp_kind": None}
    )  # fmt: skip
    width = _width(plain, made, total)
    if width is None:
        return None
    model = _with_width(plain, made, width)
    name = (f"h{hidden} L{layers} {heads}/{kv_heads} heads, {experts} experts of {width}, "
            f"top-{top_k}")  # fmt: skip
    return model.model_copy(update={"name": name})


def _with_width(model: MoeModel, kind: LayerKind, width: int) -> MoeModel:
    moe = kind.ffn
    if not isinstance(moe, MoeFfn):
        return model
    each = moe.model_copy(update={"width": width, "shared_width": moe.shared_experts * width})
    return model.model_copy(update={"kinds": {"design": kind.model_copy(update={"ffn": each})}})


def _width(model: MoeModel, kind: LayerKind, total: int) -> int | None:
    """Expert width that brings the model nearest to a total; parameters are linear in it."""
    least, more = (
        count_parameters(_with_width(model, kind, width)).total
        for width in (WIDTH_STEP, 2 * WIDTH_STEP)
    )
    steps = 1 + round((total - least) / (more - least))
    return steps * WIDTH_STEP if steps >= 1 else None
