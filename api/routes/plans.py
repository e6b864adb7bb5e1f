"""`/v1/plans` and `/v1/estimates`: questions that are answered at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.encoders import jsonable_encoder

from api.problems import PROBLEMS
from hwprofiles.files import read_document
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


@router.post("/plans", response_model=Plan | FleetPlan | DesignPlan)
def post_plan(
    question: Annotated[dict[str, Any], Body(openapi_examples=examples())],
) -> Response:
    """Answer a scenario, a fleet (`classes`) or a design (`design`); the body is the document."""
    # The document writes itself three times as fast as it is taken apart and written.
    said = answer(parse_question(question)).model_dump_json()
    return Response(said, media_type="application/json")


@router.post("/estimates", response_model_exclude_none=True)
def post_estimate(point: Annotated[dict[str, Any], Body()]) -> Estimated:
    """Estimate one given configuration; the body is one line of `estimate --batch`."""
    return estimate_one(point)
