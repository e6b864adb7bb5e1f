"""`/v1/placements` and `/v1/compressions`: experts onto devices, and what they give up."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from api.problems import PROBLEMS
from planner.model_library import resolve_model
from planner.search.compressing import parse_body
from planner.search.compressing_reasons import compress_explained
from planner.search.placement import Matrix, Placement, PlacementQuestion
from planner.search.placement_reasons import place_explained

router = APIRouter(prefix="/v1", tags=["layouts"], responses=PROBLEMS)
EXAMPLE = {
    "loads": [[[9, 4, 3, 2, 1, 1, 1, 1], [1, 8, 1, 5, 1, 1, 2, 1]]],
    "devices": 2,
    "redundant": 2,
}
PRUNING = {
    "method": "prune",
    "scores": [[9, 4, 3, 2], [1, 8, 1, 5]],
    "keep_experts": 5,
    "top_k": 2,
}


class PlacementBody(PlacementQuestion):
    """A placement question and, if wanted, another load to judge the layout on."""

    score: Matrix | None = None


@router.post("/placements")
def post_placement(
    body: Annotated[dict[str, Any], Body(openapi_examples={"small": {"value": EXAMPLE}})],
) -> Placement:
    """Place experts on devices; the body is the question `moesaic place` asks."""
    question = PlacementBody.parse(body, what="placement")
    plain = PlacementQuestion.model_validate(question.model_dump(exclude={"score"}))
    return place_explained(plain, question.score)


@router.post("/compressions")
def post_compression(
    body: Annotated[dict[str, Any], Body(openapi_examples={"prune": {"value": PRUNING}})],
) -> dict[str, Any]:
    """Decide what experts give up: the body names `method` and asks what `moesaic compress` asks.

    `bits` (where no method is named), `prune`, `atomic`, `merge` or `fit`; `model` is a catalogue
    name or a model, and states the four costs.
    """
    data = dict(body)
    model = data.pop("model", None)
    known = None if model is None else resolve_model(model)
    found = compress_explained(parse_body(data), known)
    answer = {"method": found.method} | found.answer.model_dump(mode="json")
    if found.costs is not None:
        answer["costs"] = found.costs.model_dump(mode="json")
    return answer
