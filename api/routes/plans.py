"""`/v1/plans` and `/v1/estimates`: questions that are answered at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.encoders import jsonable_encoder

from api.problems import PROBLEMS
from hwprofiles.files import read_document
from planner.estimate import estimate_one
from planner.pipeline import make_plan, parse_scenario
from planner.plan import Plan
from planner.point import Estimated
from planner.scenario import inline_files

router = APIRouter(prefix="/v1", tags=["plans"], responses=PROBLEMS)
EXAMPLES = Path(__file__).parents[2] / "tests" / "scenarios"


@cache
def examples() -> dict[str, dict[str, Any]]:
    """The scenarios of the test suite as OpenAPI examples; none in an installation without them."""
    return {
        path.stem: {
            "summary": path.stem,
            "value": jsonable_encoder(inline_files(read_document(path), path.parent)),
        }
        for path in sorted(EXAMPLES.glob("*.yaml"))
    }


@router.post("/plans")
def post_plan(
    scenario: Annotated[dict[str, Any], Body(openapi_examples=examples())],
) -> Plan:
    """Answer a scenario with a plan; the body is the scenario document."""
    return make_plan(parse_scenario(scenario))


@router.post("/estimates", response_model_exclude_none=True)
def post_estimate(point: Annotated[dict[str, Any], Body()]) -> Estimated:
    """Estimate one given configuration; the body is one line of `estimate --batch`."""
    return estimate_one(point)
