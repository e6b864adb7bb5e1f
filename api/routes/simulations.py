"""`/v1/simulations`: service in motion, for questions short enough to be answered at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from api.problems import PROBLEMS
from hwprofiles.errors import MoesaicError
from planner.simulation.question import SimulationAnswer, SimulationQuestion
from planner.simulation.simulate import simulate

router = APIRouter(prefix="/v1", tags=["simulations"], responses=PROBLEMS)
MOST_REQUESTS = 50_000
"""Requests of all runs together: some seconds of work; longer questions belong to the shell."""


@router.post("/simulations")
def post_simulation(question: Annotated[dict[str, Any], Body()]) -> SimulationAnswer:
    """Answer a simulation question; the body is the document of `moesaic simulate`.

    It may name no files: traces and measured lengths are the shell's.
    """
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
        if isinstance(holder, dict) and holder.get("file") is not None:
            raise MoesaicError(
                "invalid", "files of the server cannot be named over REST; use the shell", name
            )
