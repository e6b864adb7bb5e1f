"""`/v1/placements` and `/v1/compressions`: experts onto devices, and what they give up."""

from __future__ import annotations

from typing import Annotated, Any

import polars as pl
from fastapi import APIRouter, Body
from pydantic import Field

from api.problems import PROBLEMS
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.search.bits import BitsAnswer, BitsQuestion, choose_bits
from planner.search.placement import Matrix, Placement, PlacementQuestion, place

router = APIRouter(prefix="/v1", tags=["layouts"], responses=PROBLEMS)
EXAMPLE = {
    "loads": [[[9, 4, 3, 2, 1, 1, 1, 1], [1, 8, 1, 5, 1, 1, 2, 1]]],
    "devices": 2,
    "redundant": 2,
}


class PlacementBody(PlacementQuestion):
    """A placement question and, if wanted, another load to judge the layout on."""

    score: Matrix | None = None


class FactorRow(Document):
    """One expert's importance and its output error at each width."""

    layer: Annotated[int, Field(ge=0)]
    expert: Annotated[int, Field(ge=0)]
    activation_count: Annotated[float, Field(ge=0)]
    routing_weight_sum: Annotated[float, Field(ge=0)]
    quant_loss: dict[Annotated[int, Field(ge=1, le=16)], Annotated[float, Field(ge=0)]]
    """Output error by bits."""


class BitsBody(BitsQuestion):
    """A bit budget and the factors of every expert."""

    factors: Annotated[tuple[FactorRow, ...], Field(min_length=1)]


@router.post("/placements")
def post_placement(
    body: Annotated[dict[str, Any], Body(openapi_examples={"small": {"value": EXAMPLE}})],
) -> Placement:
    """Place experts on devices; the body is the question `moesaic place` asks."""
    question = PlacementBody.parse(body, what="placement")
    plain = PlacementQuestion.model_validate(question.model_dump(exclude={"score"}))
    return place(plain, question.score)


@router.post("/compressions")
def post_compression(body: Annotated[dict[str, Any], Body()]) -> BitsAnswer:
    """Choose each expert's bits under a budget (MC-MoE's programme)."""
    asked = BitsBody.parse(body, what="bit budget")
    question = BitsQuestion.model_validate(asked.model_dump(exclude={"factors"}))
    return choose_bits(_frame(asked.factors), question)


def _frame(factors: tuple[FactorRow, ...]) -> pl.DataFrame:
    widths = {tuple(sorted(row.quant_loss)) for row in factors}
    if len(widths) != 1:
        raise MoesaicError(
            "invalid", f"every expert needs the same widths, not {sorted(widths)}", "/factors"
        )
    return pl.DataFrame([
        row.model_dump(exclude={"quant_loss"})
        | {f"quant_loss_{bits}bit": loss for bits, loss in row.quant_loss.items()}
        for row in factors
    ])  # fmt: skip
