"""`/v1/plans` and `/v1/estimates`: questions that are answered at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.encoders import jsonable_encoder

from api.jobs import JOBS
from api.problems import PROBLEMS
from api.routes.jobs import accepted
from hwprofiles.files import read_document
from planner.design import Design
from planner.design_plan import DesignPlan
from planner.estimate import estimate_one
from planner.fleet import inline_class_files
from planner.fleet_plan import FleetPlan
from planner.pipeline import answer, parse_question
from planner.plan import Plan
from planner.point import Estimated
from planner.scenario import inline_files

router = APIRouter(prefix="/v1", tags=["plans"], responses=PROBLEMS)
EXAMPLES = Path(__file__).parents[2] / "tests" / "scenarios"


def _inlined(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    return inline_class_files(data, folder) if "classes" in data else inline_files(data, folder)


@cache
def examples() -> dict[str, dict[str, Any]]:
    """The scenarios of the test suite as OpenAPI examples; none in an installation without them."""
    return {
        path.stem: {
            "summary": path.stem,
            "value": jsonable_encoder(_inlined(read_document(path), path.parent)),
        }
        for path in sorted(EXAMPLES.glob("*.yaml"))
    }


MOST_DESIGNS = 32
"""Designs judged while a client waits, some seconds; more become a job."""


@router.post("/plans", response_model=Plan | FleetPlan | DesignPlan)
def post_plan(
    question: Annotated[dict[str, Any], Body(openapi_examples=examples())],
) -> Response:
    """Answer a scenario, a fleet (`classes`) or a design (`design`); the body is the document.

    A design of many sizes is answered with 202, `Location` and `Retry-After`: see `/v1/jobs`.
    """
    asked = parse_question(question)
    if isinstance(asked, Design) and asked.design.size > MOST_DESIGNS:
        return accepted(JOBS.start(lambda seen: answer(asked, seen).model_dump(mode="json")))
    # The document writes itself three times as fast as it is taken apart and written.
    said = answer(asked).model_dump_json()
    return Response(said, media_type="application/json")


@router.post("/estimates", response_model_exclude_none=True)
def post_estimate(point: Annotated[dict[str, Any], Body()]) -> Estimated:
    """Estimate one given configuration; the body is one line of `estimate --batch`."""
    return estimate_one(point)
