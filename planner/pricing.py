"""Forward passes priced: load of the busiest rank, work sheet, seconds, resident bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from planner.engines import Engine, load_engine
from planner.moe_model import MoeModel
from planner.offload import Offload
from planner.routing import Routing, expert_shares
from planner.routing.passes import LOAD, Passes, pass_load
from planner.routing.policies import Policy, TopKPolicy
from planner.scenario import Scenario
from planner.timing.engine_layer import Layer, find_layer, fitted_passes, shape_of
from planner.timing.offloaded import time_offloaded, with_prefix_fetch
from planner.timing.overlap import (
    alternate_halves,
    hide_exchange,
    hide_shared,
    in_parts,
    queue_experts,
    take_turns,
)
from planner.timing.step import step_seconds, time_sheet
from planner.work.engine_rows import with_drafts, with_separate_kernels
from planner.work.exchange import expert_nodes
from planner.work.memory import add_memory
from planner.work.resident import keep_experts
from planner.work.rows import Array, Formats, Points, routed_ranks, tokens
from planner.work.sheet import build_sheet, formats_of
from planner.work.volumes import HIDES_BEHIND

USUAL = TopKPolicy()
"""The model's own router."""


@dataclass(frozen=True)
class Question:
    """What every pass of one question shares."""

    model: MoeModel
    cluster: Cluster
    engine: Engine
    routing: Routing
    formats: Formats
    policy: Policy = USUAL
    offload: Offload | None = None
    """Where experts lie that the device does not keep; none: it keeps all."""
    prefix_bytes_per_s: float | None = None
    """Rate at which cached prompt tokens are fetched; none: they are on the device."""

    @cached_property
    def layer(self) -> Layer | None:
        """The fitted engine layer that holds, or none where nothing was measured."""
        return find_layer(
            self.engine, self.cluster.device, shape_of(self.model), self.formats.weights.routed
        )

    @property
    def capacity_bytes(self) -> float:
        """Memory of one device, or what of it may be used."""
        stated = self.offload.memory_bytes if self.offload else None
        return self.cluster.device.capacity_bytes if stated is None else stated

    @property
    def limit_bytes(self) -> float:
        """Bytes that weights, cache, activations and buffers may fill."""
        if self.offload is not None and self.offload.memory_bytes is not None:
            return self.offload.memory_bytes
        return self.capacity_bytes * self.engine.memory_fraction.value


@dataclass(frozen=True)
class Priced:
    """Passes with seconds and bytes, and the timed sheet that explains them."""

    passes: pl.DataFrame
    timed: pl.DataFrame
    layer: Layer | None = None
    """The fitted engine layer that the passes went through."""


def question_of(scenario: Scenario) -> Question:
    """The shared part of a scenario."""
    choices = scenario.choices
    plain = formats_of(scenario.model, choices.precision, choices.kv_dtype, choices.exchange)
    formats = replace(plain, layout=choices.layout)
    engine = load_engine(choices.backend)
    offload = scenario.offload
    if offload is not None:  # experts fill what the limit on memory leaves
        usable = scenario.device_memory_bytes * scenario.limits.memory_share
        offload = offload.model_copy(update={"memory_bytes": usable})
    return Question(
        scenario.model, scenario.cluster, engine, scenario.routing, formats, scenario.policy,
        offload, scenario.workload.prefix_bytes_per_s,
    )  # fmt: skip


def price(points: pl.DataFrame, question: Question, *, fitted: bool = True) -> Priced:
    """Price forward passes.

    Args:
        points: columns `POINT`.
        question: what they share.
        fitted: let the fitted engine layer weigh the parts of each pass.

    Returns:
        `passes`: the points with `busy_ratio`, `active_experts`, `low_s`, `typical_s`, `high_s`,
        `raw_s` (kernels and host before the fitted engine layer), the columns of `STEP`, `MEMORY`
        and `total_bytes`; `timed`: the timed work sheet.
    """
    loaded = add_load(points, question)
    sized = add_memory(loaded, question.model, question.formats, question.engine.buffer_bytes)
    if question.offload is None:
        timed = _timed(points, loaded, question)
    else:
        sheet = _sheet(loaded, question)
        sized = keep_experts(sized, question.model, question.offload, question.limit_bytes)
        timed = time_offloaded(
            sheet, sized, (question.cluster, question.engine),
            (question.offload, question.model, question.formats),
        )  # fmt: skip
    if question.prefix_bytes_per_s is not None:
        timed = with_prefix_fetch(timed, sized, question.prefix_bytes_per_s)
    seconds = step_seconds(timed, loaded, question.engine, question.model.layer_count)
    passes = sized.join(seconds, on="point", maintain_order="left")
    layer = layer_of(question) if fitted else None
    return Priced(fitted_passes(passes, layer), timed, layer)


def _sheet(loaded: pl.DataFrame, question: Question) -> pl.DataFrame:
    """The work sheet as the engine runs it."""
    sheet = build_sheet(loaded, question.model, question.formats)
    if question.engine.separate_moe_kernels:
        sheet = with_separate_kernels(sheet)
    if question.engine.draft_passes:
        sheet = with_drafts(sheet, loaded, question.model.layer_count)
    return sheet


def _timed(points: pl.DataFrame, loaded: pl.DataFrame, question: Question) -> pl.DataFrame:
    """The timed work sheet, less what runs beside something longer."""
    layout, layers = question.formats.layout, question.model.layer_count
    way = overlap_of(question)
    parts = layout.micro_batches if layout.apart else 2 if way == "micro_batch" else 1
    asked = in_parts(points, parts)
    run = loaded if parts == 1 else add_load(asked, question)
    timed = time_sheet(_sheet(run, question), question.cluster, question.engine)
    if layout.order == "queue":
        timed = queue_experts(timed)
    if layout.apart:
        return take_turns(timed, run, layout.micro_batches, layers)
    if layout.shared_ranks:
        timed = hide_shared(timed)
    if way in ("shared", "experts"):
        return hide_exchange(timed, way)
    if way == "micro_batch":
        return alternate_halves(timed, asked["batch"] < points["batch"], layers)
    return timed


def overlap_of(question: Question) -> str:
    """What hides the exchange: `none`, `shared`, `experts` or `micro_batch`.

    A fitted engine layer was fitted on what its engine does, shared experts beside the exchange
    among it; there that is not taken off once more.

    Raises:
        MoesaicError: `invalid` for an exchange that cannot run beside what was asked.
    """
    asked: str = question.formats.layout.overlap
    exchange = question.formats.exchange
    able = HIDES_BEHIND[exchange]
    if able == ("experts",):
        return "experts"
    if asked == "engine":
        does = question.engine.shared_expert_overlap and "shared" in able
        asked = "shared" if does else "none"
    if asked not in ("none", *able):
        raise MoesaicError(
            "invalid",
            f"exchange {exchange} does not run beside {asked}; it runs beside "
            f"{' or '.join(able) or 'nothing'}", "/experts/overlap",
        )  # fmt: skip
    if asked == "shared" and question.engine.shared_expert_overlap and layer_of(question):
        return "none"
    return asked


def layer_of(question: Question) -> Layer | None:
    """The fitted engine layer of a question, or none where nothing was measured."""
    return question.layer


def add_load(points: pl.DataFrame, question: Question) -> pl.DataFrame:
    """Add what the routing says of each pass: columns `LOAD`."""
    load = load_of(Points.of(points), question)
    return points.with_columns(pl.Series(name, load[name]) for name in LOAD)


def load_of(points: Points, question: Question) -> dict[str, Array]:
    """What the routing says of each pass of a model with experts, columns `LOAD`."""
    moe = question.model.moe
    if moe is None:
        idle = dict.fromkeys(LOAD, 1.0) | {"active_experts": 0.0}
        return {name: np.full(points.count, value) for name, value in idle.items()}
    shares = expert_shares(question.routing, moe, len(question.model.moe_layers))
    passes = Passes(
        ranks=routed_ranks(points, question.formats.layout), nodes=expert_nodes(points),
        tokens=tokens(points) * points["dp"], redundant=points["redundant_experts"],
    )  # fmt: skip
    return pass_load(question.policy, moe, shares, question.model.hidden, passes)
