"""Forward passes priced: load of the busiest rank, work sheet, seconds, resident bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from planner.timing.engine_layer import Layer, Layers, find_layer, fitted_passes, shape_of
from planner.timing.offloaded import time_offloaded, with_prefix_fetch
from planner.timing.overlap import (
    alternate_halves,
    hide_exchange,
    hide_shared,
    in_parts,
    queue_experts,
    take_turns,
)
from planner.timing.step import host_seconds, step_seconds, time_sheet, time_sheets
from planner.work.engine_rows import with_drafts, with_separate_kernels
from planner.work.exchange import expert_nodes
from planner.work.memory import MEMORY, add_memory, memory_of
from planner.work.resident import keep_experts
from planner.work.rows import (
    Array,
    Codes,
    Formats,
    Part,
    Points,
    routed_ranks,
    sheet_of,
    tokens,
)
from planner.work.sheet import formats_of, sheet_parts
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
    layers: Layers
    """The fitted engine layers that the passes went through."""

    @property
    def layer(self) -> Layer | None:
        """The layer of a single question."""
        return self.layers.layers[0]


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
    if is_plain(question):
        return price_all(points, [question], fitted=fitted)
    loaded = add_load(points, question)
    sized = add_memory(loaded, question.model, question.formats, question.engine.buffer_bytes)
    if question.offload is None:
        timed = _timed(points, loaded, question)
    else:
        sheet = sheet_of(_rows_of(Points.of(loaded), question))
        sized = keep_experts(sized, question.model, question.offload, question.limit_bytes)
        timed = time_offloaded(
            sheet, sized, (question.cluster, question.engine),
            (question.offload, question.model, question.formats),
        )  # fmt: skip
    if question.prefix_bytes_per_s is not None:
        timed = with_prefix_fetch(timed, sized, question.prefix_bytes_per_s)
    host = host_seconds(Points.of(loaded), question.engine, question.model.layer_count)
    return _summed(sized, timed, host, Layers((layer_of(question) if fitted else None,)))


def price_all(
    points: pl.DataFrame, questions: Sequence[Question], *, fitted: bool = True
) -> Priced:
    """Price forward passes of several plain questions at once, as `price` does those of one.

    Args:
        points: columns `POINT`, and `QUESTION`, a place among the questions, where there are
            several.
        questions: each all plain (`is_plain`).
        fitted: let the fitted engine layers weigh the parts of each pass.
    """
    whole = Points.of(points)
    of = Layers(()).places(points)
    each = [
        (whole if len(questions) == 1 else whole.where(of == number), question)
        for number, question in enumerate(questions)
    ]
    _fill_in(whole, LOAD, [load_of(part, question) for part, question in each], of)
    use = [memory_of(part, q.model, q.formats, q.engine.buffer_bytes) for part, q in each]
    _fill_in(whole, SIZED, use, of)
    sized = points.with_columns(pl.Series(name, whole[name]) for name in (*LOAD, *SIZED))
    sheet = sheet_of([row for part, question in each for row in _rows_of(part, question)])
    timed = _plainly_timed(sheet, whole, questions, of)
    host = [{"host_s": host_seconds(part, q.engine, q.model.layer_count)} for part, q in each]
    _fill_in(whole, ("host_s",), host, of)
    layers = Layers(tuple(layer_of(q) if fitted else None for q in questions))
    return _summed(sized, timed, whole["host_s"], layers)


SIZED = (*MEMORY, "total_bytes")


def size_all(points: pl.DataFrame, questions: Sequence[Question]) -> pl.DataFrame:
    """Passes of plain questions with `MEMORY` and `total_bytes`; arguments as of `price_all`."""
    whole = Points.of(points)
    of = Layers(()).places(points)
    use = [
        memory_of(whole.where(of == number), q.model, q.formats, q.engine.buffer_bytes)
        for number, q in enumerate(questions)
    ]
    _fill_in(whole, SIZED, use, of)
    return points.with_columns(pl.Series(name, whole[name]) for name in SIZED)


def is_plain(question: Question) -> bool:
    """Whether everything a pass waits for is a row of its work sheet or hidden beside another."""
    layout = question.formats.layout
    apart = layout.apart or layout.shared_ranks or layout.order == "queue"
    asked = question.offload is not None or question.prefix_bytes_per_s is not None
    return not (asked or apart or layout.overlap == "micro_batch")


def _fill_in(
    whole: Points, names: Sequence[str], found: Sequence[Mapping[str, Array]], of: Codes
) -> None:
    """Write what was found of each question's passes into columns of all passes."""
    for name in names:
        if len(found) == 1:
            whole.columns[name] = found[0][name]
            continue
        values = np.empty(whole.count)
        for number, part in enumerate(found):
            values[of == number] = part[name]
        whole.columns[name] = values


def _plainly_timed(
    sheet: pl.DataFrame, whole: Points, questions: Sequence[Question], of: Codes
) -> pl.DataFrame:
    """The timed work sheet of plain questions, less exchanges that run beside something longer."""
    machines: dict[tuple[int, str], int] = {}
    kinds = [machines.setdefault((id(q.cluster), q.engine.name), len(machines)) for q in questions]
    clusters = {id(q.cluster): q.cluster for q in questions}
    rows = _by_point(whole, of)[sheet["point"].to_numpy()]
    known = [(clusters[cluster], engine) for cluster, engine in machines]
    timed = time_sheets(sheet, known, np.array(kinds)[rows])
    ways = np.array([overlap_of(question) for question in questions])
    for way in ("shared", "experts"):
        if (ways == way).any():
            timed = hide_exchange(timed, way, (ways == way)[rows])
    return timed


def _by_point(whole: Points, of: Codes) -> Codes:
    """Which question each point's number belongs to."""
    numbers = whole["point"].astype(np.intp)
    found = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.intp)
    found[numbers] = of
    return found


def _summed(sized: pl.DataFrame, timed: pl.DataFrame, host_s: Array, layers: Layers) -> Priced:
    """Rows summed to passes, and weighed by the fitted engine layers."""
    seconds = step_seconds(timed, sized, host_s)
    passes = sized.hstack(seconds.drop("point"))
    return Priced(fitted_passes(passes, layers), timed, layers)


def _rows_of(points: Points, question: Question) -> list[Part]:
    """Rows of the work sheet as the engine runs them."""
    engine, model = question.engine, question.model
    parts = sheet_parts(points, model, question.formats)
    if engine.separate_moe_kernels:
        parts = with_separate_kernels(parts)
    return with_drafts(parts, model.layer_count) if engine.draft_passes else parts


def _timed(points: pl.DataFrame, loaded: pl.DataFrame, question: Question) -> pl.DataFrame:
    """The timed work sheet, less what runs beside something longer."""
    layout, layers = question.formats.layout, question.model.layer_count
    way = overlap_of(question)
    parts = layout.micro_batches if layout.apart else 2 if way == "micro_batch" else 1
    asked = in_parts(points, parts)
    run = loaded if parts == 1 else add_load(asked, question)
    sheet = sheet_of(_rows_of(Points.of(run), question))
    timed = time_sheet(sheet, question.cluster, question.engine)
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
