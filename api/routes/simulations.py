"""`/v1/simulations`: service in motion, for questions short enough to be answered at once."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body

from api.problems import PROBLEMS
from hwprofiles.errors import MoesaicError
from planner.simulation.kinds import kind_of
from planner.simulation.offload_question import OffloadAnswer
from planner.simulation.passes import PassAnswer
from planner.simulation.question import SimulationAnswer, SimulationQuestion
from planner.simulation.queue_question import QueueAnswer
from planner.simulation.scaling_question import ScalingAnswer
from planner.simulation.schedule_question import ScheduleAnswer
from planner.simulation.simulate import simulate

router = APIRouter(prefix="/v1", tags=["simulations"], responses=PROBLEMS)
Answer = (
    SimulationAnswer | PassAnswer | ScheduleAnswer | OffloadAnswer | QueueAnswer | ScalingAnswer
)
MOST_REQUESTS = 50_000
"""Requests of all runs together: some seconds of work; longer questions belong to the shell."""


@router.post("/simulations")
def post_simulation(question: Annotated[dict[str, Any], Body()]) -> Answer:
    """Answer a simulation question of any kind; the body is the document of `moesaic simulate`.

    It may name no files: traces and measured lengths are the shell's.
    """
    kind = kind_of(question)
    if kind is not None:
        for field in kind.files:
            _no_file(question.get(field), f"/{field}")
        return cast("Answer", kind.answer(kind.question.parse(question, what="simulation"))[0])
    _no_files(question)
    asked = SimulationQuestion.parse(question, what="simulation")
    runs = asked.seeds + 2
    if (asked.requests or 0) * runs > MOST_REQUESTS:
        raise MoesaicError(
            "invalid",
            f"{asked.requests} requests in {runs} runs are more than the {MOST_REQUESTS} that are "
            "simulated while a client waits; ask for fewer requests or seeds, or use the shell",
            "/requests",
        )
    return simulate(asked)[0]


def _no_files(question: dict[str, Any]) -> None:
    load = question.get("load")
    lengths = load.get("lengths") if isinstance(load, dict) else None
    for name, holder in (("/load/file", load), ("/load/lengths/file", lengths)):
        if isinstance(holder, dict):
            _no_file(holder.get("file"), name)


def _no_file(value: object, place: str) -> None:
    if value is not None:
        raise MoesaicError(
            "invalid", "files of the server cannot be named over REST; use the shell", place
        )
