"""A training pipeline as a question: its schedule played with given or priced seconds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Seconds, Share
from planner.model_library import load_model
from planner.simulation.dualpipe import DualPipeSeconds, simulate_dualpipe
from planner.simulation.layer_pipeline import Cores, LayerSeconds, simulate_pass
from planner.simulation.schedules import (
    ChunkSeconds,
    bubble_closed_form,
    dualpipe_bubble_s,
    simulate_schedule,
)
from planner.training import TrainingPoint, estimate_training

Count = Annotated[int, Field(ge=1, le=4096)]
FORWARD_SHARE = 1 / 3
"""Of a chunk's device time: backward repeats every matrix product twice (arXiv:2205.05198)."""
EXCHANGE = ("dispatch", "combine")


class StageSeconds(Document):
    """Seconds of one model chunk and micro-batch."""

    forward_s: Seconds
    backward_s: Seconds
    send_s: Seconds = 0.0
    """From one stage to the next."""
    weight_s: Seconds | None = None
    """Part of the backward pass that makes weight gradients; none: half of it."""
    pair_s: Seconds | None = None
    """A forward and a backward pass side by side; none: one after the other."""

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.forward_s + self.backward_s <= 0:
            raise ValueError("a forward and a backward pass that take no time leave no bubble")
        return self


class ScheduleQuestion(Document):
    """One optimizer step's forward and backward passes under a pipeline schedule."""

    schema_version: Literal[1] = 1
    kind: Literal["schedule"] = "schedule"
    name: Annotated[str, Field(max_length=200)] = "schedule"
    schedule: Literal["gpipe", "1f1b", "interleaved", "dualpipe"] = "1f1b"
    stages: Count | None = None
    micro_batches: Count | None = None
    chunks: Count = 1
    """Model chunks a stage, for `interleaved`."""
    seconds: StageSeconds | None = None
    training: TrainingPoint | None = None
    """In place of seconds, stages, micro_batches and chunks: priced, with pp, vp and the batch."""
    overlap_exchange: bool = False
    """Whether forward and backward of two micro-batches hide each other's all-to-all."""
    exchange_cores_ratio: Share = 0.0
    """Cores that the exchange's kernels hold meanwhile."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = (self.seconds, self.stages, self.micro_batches)
        if self.training is None and None in given:
            raise ValueError("give seconds, stages and micro_batches, or a training point")
        if self.training is not None and any(part is not None for part in given):
            raise ValueError("a training point says seconds, stages and micro_batches itself")
        return self


class ScheduleAnswer(Document):
    """How long the step's passes take and how much of it devices wait."""

    schema_version: Literal[1] = 1
    kind: Literal["schedule"] = "schedule"
    name: str
    schedule: str
    stages: int
    micro_batches: int
    chunks: int
    chunk: StageSeconds
    """What was played."""
    seconds_s: float
    bubble_ratio: float
    """Waiting over computing on the device that waits most."""
    closed_form_ratio: float
    """What the closed form says; sends are not in it."""
    assumptions: tuple[str, ...] = ()


def answer_schedule(question: ScheduleQuestion) -> tuple[ScheduleAnswer, pl.DataFrame]:
    """Answer a question.

    Returns:
        The answer, and the slices of every stage.

    Raises:
        MoesaicError: `invalid` for sizes that the schedule does not allow.
    """
    sizes, chunk, said = _given(question) if question.training is None else _priced(question)
    play = _dualpipe if question.schedule == "dualpipe" else _plain
    seconds, bubble, closed, slices = play(question.schedule, sizes, chunk)
    return ScheduleAnswer(
        name=question.name, schedule=question.schedule, stages=sizes[0], micro_batches=sizes[1],
        chunks=sizes[2], chunk=chunk, seconds_s=seconds, bubble_ratio=bubble,
        closed_form_ratio=closed, assumptions=said,
    ), slices  # fmt: skip


Sizes = tuple[int, int, int]
"""Stages, micro-batches, chunks a stage."""
_Played = tuple[float, float, float, pl.DataFrame]


def _given(question: ScheduleQuestion) -> tuple[Sizes, StageSeconds, tuple[str, ...]]:
    # The document refuses a question without training that lacks one of them.
    assert question.seconds and question.stages and question.micro_batches  # noqa: S101, PT018
    sizes = (question.stages, question.micro_batches, question.chunks)
    return sizes, question.seconds, ()


def _priced(question: ScheduleQuestion) -> tuple[Sizes, StageSeconds, tuple[str, ...]]:
    """Seconds of a chunk from the timed sheet of a training point."""
    point = question.training
    assert point is not None  # noqa: S101 - the document says so
    if point.dp is None:
        raise MoesaicError("invalid", "a schedule needs dp said, not nodes", "/training/dp")
    model = load_model(point.model) if isinstance(point.model, str) else None
    if model is None or not model.moe_layers:
        raise MoesaicError(
            "invalid", "a priced schedule takes a model with experts, by name; or give seconds",
            "/training/model",
        )  # fmt: skip
    spent = {s.stage: s.seconds_s for s in estimate_training(point, load_model).breakdown or ()}
    exchange = sum(spent.get(stage, 0.0) for stage in EXCHANGE) / point.vp
    device = sum(s for stage, s in spent.items() if stage not in EXCHANGE) / point.vp
    layers = max(round(len(model.moe_layers) / (point.pp * point.vp)), 1)
    halves = [
        _layer(device * part, exchange / 2, layers) for part in (FORWARD_SHARE, 1 - FORWARD_SHARE)
    ]
    forward, backward = (simulate_pass([[half]], layers).seconds_s for half in halves)
    pair = forward + backward
    if question.overlap_exchange:
        cores = Cores(exchange_ratio=question.exchange_cores_ratio)
        pair = simulate_pass([halves], layers, cores=cores).seconds_s
    chunk = StageSeconds(
        forward_s=forward, backward_s=backward, pair_s=pair,
        weight_s=device * (1 - FORWARD_SHARE) / 2,
    )  # fmt: skip
    micro_batches = point.global_batch // (point.micro_batch * point.dp)
    said = (
        "a chunk's device time splits one to two over forward and backward, its exchange evenly",
        f"{layers} MoE layers a chunk, played layer by layer where passes overlap",
    )
    return (point.pp, micro_batches, point.vp), chunk, said


def _layer(device_s: float, exchange_s: float, layers: int) -> LayerSeconds:
    """One layer of a pass, half of its device time before the experts' exchange."""
    return LayerSeconds(
        device_s / layers / 2, exchange_s / layers / 2, device_s / layers / 2,
        exchange_s / layers / 2,
    )  # fmt: skip


def _plain(name: str, sizes: Sizes, chunk: StageSeconds) -> _Played:
    """Play a schedule whose devices do one pass at a time.

    With overlap every forward and backward in steady state take a pair's time between them; as
    many of each as there are stages, at the start and at the end, have no partner.
    """
    stages, micro_batches, chunks = sizes
    alone = chunk.forward_s + chunk.backward_s
    pair = alone if chunk.pair_s is None else min(chunk.pair_s, alone)
    share = pair / alone if alone else 1.0
    seconds = ChunkSeconds(chunk.forward_s * share, chunk.backward_s * share, chunk.send_s)
    found = simulate_schedule(name, stages, micro_batches, seconds, chunks)
    total = found.seconds_s + stages * (alone - pair)
    busy = chunks * micro_batches * pair + alone - pair
    closed = bubble_closed_form(name, stages, micro_batches, chunks)
    bubble = total / busy - 1 if busy else 0.0
    return total, bubble if stages > 1 else 0.0, closed, found.slices


def _dualpipe(_: str, sizes: Sizes, chunk: StageSeconds) -> _Played:
    stages, micro_batches, chunks = sizes
    if chunks != 1:
        raise MoesaicError("invalid", "DualPipe has one chunk of each direction a stage", "/chunks")
    forward, backward = chunk.forward_s, chunk.backward_s
    weight = backward / 2 if chunk.weight_s is None else chunk.weight_s
    pair = forward + backward if chunk.pair_s is None else chunk.pair_s
    found = simulate_dualpipe(
        stages, micro_batches, DualPipeSeconds(forward, backward, weight, pair)
    )
    bubble = max(found.idle_s)
    busy = found.seconds_s - bubble
    closed = dualpipe_bubble_s(stages, forward, backward, weight, pair)
    return found.seconds_s, bubble / busy, closed / (found.seconds_s - closed), found.slices
