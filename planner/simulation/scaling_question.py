"""A scale operation as a question: every strategy side by side, from bytes and rates."""

from __future__ import annotations

from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Share
from planner.formats.perfetto import SLICE
from planner.simulation.elastic import STRATEGIES, ScaleCosts, WorkerBytes, scale
from planner.simulation.passes import PassLayout, PassQuestion, price_part
from planner.simulation.planned_steps import worker_bytes
from planner.simulation.priced import PricedQuestion
from planner.simulation.question import ScaleRates
from planner.simulation.told import StrategyCost, told

Count = Annotated[int, Field(ge=1, le=65_536)]


class ScalingQuestion(PricedQuestion):
    """A worker that changes its data-parallel ranks."""

    schema_version: Literal[1] = 1
    kind: Literal["scaling"] = "scaling"
    name: Annotated[str, Field(max_length=200)] = "scaling"
    layout: PassLayout
    """Today's; its experts spread over all ranks, before and after."""
    dp: Count
    """Ranks afterwards."""
    scale_rates: ScaleRates
    memory_share: Share = 0.9
    """Of a device's memory; what weights leave of it is KV cache."""


class ScalingAnswer(Document):
    """Every strategy, the quickest first."""

    schema_version: Literal[1] = 1
    kind: Literal["scaling"] = "scaling"
    name: str
    strategies: tuple[StrategyCost, ...]
    assumptions: tuple[str, ...]


def answer_scaling(question: ScalingQuestion) -> ScalingAnswer:
    """Answer a question.

    Raises:
        MoesaicError: `invalid` where nothing changes or a layout does not divide, `infeasible`
            when the weights alone do not fit.
    """
    if question.dp == question.layout.dp:
        raise MoesaicError("invalid", f"dp {question.dp} before and after: nothing to do", "/dp")
    before, after = (_held(question, dp) for dp in (question.layout.dp, question.dp))
    room = question.cluster.device.capacity_bytes * question.memory_share
    kv_bytes = room - max(before.weight_bytes, after.weight_bytes)
    if kv_bytes <= 0:
        raise MoesaicError(
            "infeasible",
            f"the weights of a device, {room - kv_bytes:.4g} B, leave no room in {room:.4g} B",
            "/layout",
        )
    held = [
        WorkerBytes(w.devices, w.attention_bytes, w.expert_bytes, kv_bytes) for w in (before, after)
    ]
    costs = _costs(question)
    found = [_cost(name, held[0], held[1], costs) for name in STRATEGIES]
    found.sort(key=lambda c: (c.duration_s is None, c.duration_s or 0.0))
    return ScalingAnswer(
        name=question.name, strategies=tuple(found),
        assumptions=(
            "all devices load side by side, each over a link and a disk path of its own",
            f"KV cache: what weights leave of {question.memory_share:.0%} of a device",
        ),
    )  # fmt: skip


def scaling_slices(answer: ScalingAnswer) -> pl.DataFrame:
    """Phases of every strategy one after the other, one track a strategy; columns `SLICE`."""
    rows = []
    for cost in answer.strategies:
        at_s = 0.0
        for phase in cost.phases:
            end_s = at_s + phase.seconds_s
            rows.append(("scaling", cost.strategy, phase.phase, at_s, end_s))
            at_s = end_s
    return pl.DataFrame(rows, schema=SLICE, orient="row")


def _held(question: ScalingQuestion, dp: int) -> WorkerBytes:
    layout = question.layout.model_copy(update={"dp": dp, "moe_ep": None})
    asked = PassQuestion(
        **{name: getattr(question, name) for name in PricedQuestion.model_fields},
        layout=layout, phase="decode", batch=1, micro_batches=1, past_tokens=1.0,
    )  # fmt: skip
    return worker_bytes(price_part(asked, "typical", 1, None).priced.passes, 0.0)


def _costs(question: ScalingQuestion) -> ScaleCosts:
    rates, cluster = question.scale_rates, question.cluster
    tier = cluster.tier_for(cluster.device_count)
    return ScaleCosts(
        rates.link_bytes_per_s or tier.bandwidth_bytes_per_s.value, rates.disk_bytes_per_s,
        rates.boot_s, rates.warm_up_s, rates.regroup_s,
    )  # fmt: skip


def _cost(name: str, before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> StrategyCost:
    try:
        return told(scale(name, before, after, costs))
    except MoesaicError as error:
        return StrategyCost(strategy=name, refused=error.message)
