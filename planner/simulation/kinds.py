"""Every kind of simulation question by its name, and what answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError, unknown_name
from planner.simulation.offload_question import OffloadQuestion, answer_offload
from planner.simulation.passes import PassQuestion, answer_pass
from planner.simulation.queue_question import QueueQuestion, answer_queue, queue_slices
from planner.simulation.scaling_question import ScalingQuestion, answer_scaling, scaling_slices
from planner.simulation.schedule_question import ScheduleQuestion, answer_schedule

SERVING = "serving"
"""The kind of a question that names none."""


@dataclass(frozen=True)
class Kind:
    """One kind of question."""

    question: type[Document]
    answer: Callable[[Any], tuple[Document, pl.DataFrame | None]]
    """The answer, and slices for a timeline where there are any."""
    files: tuple[str, ...] = ()
    """Fields that name files."""


def _plain(answer: Callable[[Any], Document]) -> Callable[[Any], tuple[Document, None]]:
    return lambda question: (answer(question), None)


def _queue(question: QueueQuestion) -> tuple[Document, pl.DataFrame]:
    return answer_queue(question), queue_slices(question)


def _scaling(question: ScalingQuestion) -> tuple[Document, pl.DataFrame]:
    answer = answer_scaling(question)
    return answer, scaling_slices(answer)


KINDS: dict[str, Kind] = {
    "pass": Kind(PassQuestion, answer_pass),
    "schedule": Kind(ScheduleQuestion, answer_schedule),
    "offload": Kind(OffloadQuestion, _plain(answer_offload), ("choices",)),
    "expert_queue": Kind(QueueQuestion, _queue),
    "scaling": Kind(ScalingQuestion, _scaling),
}
"""All but serving, which also writes tables while it runs."""


def kind_of(data: object) -> Kind | None:
    """The kind that plain data asks for; none for service under load.

    Raises:
        MoesaicError: `unknown_name`, `invalid` for a kind that is no text.
    """
    name = data.get("kind", SERVING) if isinstance(data, dict) else SERVING
    if not isinstance(name, str):
        raise MoesaicError("invalid", "kind must be text (in this simulation)", "/kind")
    if name == SERVING:
        return None
    if name not in KINDS:
        raise unknown_name("simulation kind", name, [SERVING, *KINDS], "/kind")
    return KINDS[name]
