"""One question for every way of compressing experts, and one answer with the four costs.

The shell reads files and the REST server bodies into the same documents; what is decided, and what
it costs on a model, is the same for both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from hwprofiles.document import Document, invalid
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Bytes
from planner.compression import importance
from planner.compression.costs import CompressionCosts, costs_of
from planner.compression.experts import ExpertTable, expert_table
from planner.compression.transforms import masked, merged, narrowed, with_bits
from planner.moe_model import MoeModel
from planner.search.bits import BitsAnswer, BitsQuestion, choose_bits
from planner.search.merging import MergeAnswer, MergeQuestion, merge
from planner.search.pruning import (
    PruneAnswer,
    PruneQuestion,
    UnitAnswer,
    UnitQuestion,
    choose_experts,
    choose_units,
)
from planner.search.shrinking import ShrinkAnswer, ShrinkQuestion, shrink
from planner.search.solver import MEMORY_BYTES, limited

Array = NDArray[np.float64]


def _numbers(axes: int) -> BeforeValidator:
    """Take nested rows, or an array as the shell reads it, as finite numbers of so many axes."""

    def read(values: object) -> Array | None:
        if values is None:
            return None
        try:
            array = np.asarray(values, dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError("must be rows of numbers of equal length") from error
        if array.ndim != axes or not array.size or not np.isfinite(array).all():
            raise ValueError(f"must be finite numbers of {axes} axes, none of them empty")
        return array

    return BeforeValidator(read)


Scores = Annotated[Any, _numbers(2)]
Cube = Annotated[Any, _numbers(3)]
TopK = Annotated[int, Field(ge=1)]


class FactorRow(Document):
    """One expert's importance and its output error at each width."""

    layer: Annotated[int, Field(ge=0)]
    expert: Annotated[int, Field(ge=0)]
    activation_count: Annotated[float, Field(ge=0)]
    routing_weight_sum: Annotated[float, Field(ge=0)]
    quant_loss: dict[Annotated[int, Field(ge=1, le=16)], Annotated[float, Field(ge=0)]]
    """Output error by bits."""


class SolverLimits(Document):
    """What the programmes of a question may take together."""

    time_limit_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Beyond it the best found so far is the answer, flagged `feasible` with its gap."""
    memory_limit_bytes: Annotated[Bytes, Field(gt=0)] = MEMORY_BYTES
    """What the process of a larger programme may take."""


class BitsBody(BitsQuestion, SolverLimits):
    """A bit budget and the factors of every expert."""

    method: Literal["bits"] = "bits"
    factors: Annotated[tuple[FactorRow, ...], Field(min_length=1)]


class PruneBody(PruneQuestion, SolverLimits):
    """Which experts stay, by scores or by a router trace."""

    method: Literal["prune"] = "prune"
    scores: Scores = None
    """Layers x experts; the higher, the more an expert matters."""
    logits: Cube = None
    """Router trace, tokens x layers x experts, scored by `score`."""
    score: str = "peu"
    top_k: TopK = 8
    """Experts a token runs."""


class AtomicBody(UnitQuestion, SolverLimits):
    """Which inner units stay."""

    method: Literal["atomic"] = "atomic"
    saliency: Cube
    """Layers x experts x units."""


class MergeBody(MergeQuestion, SolverLimits):
    """Which experts share weights."""

    method: Literal["merge"] = "merge"
    logits: Cube
    """Router trace, tokens x layers x experts."""
    top_k: TopK = 8
    router_pruned: bool = False
    """Merged experts lose their router row."""


class FitBody(ShrinkQuestion, SolverLimits):
    """What to drop and to quantise so that a model fits."""

    method: Literal["fit"] = "fit"
    scores: Scores = None
    """Layers x experts, importance; none: all alike."""


Body = Annotated[
    BitsBody | PruneBody | AtomicBody | MergeBody | FitBody, Field(discriminator="method")
]
BODY: TypeAdapter[Any] = TypeAdapter(Body)
METHODS = ("bits", "prune", "atomic", "merge", "fit")


class Compressed(Document):
    """What was decided, and the four costs of the model after it where a model is named."""

    method: Literal["bits", "prune", "atomic", "merge", "fit"]
    answer: BitsAnswer | PruneAnswer | UnitAnswer | MergeAnswer | ShrinkAnswer
    costs: CompressionCosts | None = None


def parse_body(data: dict[str, Any]) -> Any:  # noqa: ANN401 - one of the five bodies
    """Read a question; the method is `bits` where none is named.

    Raises:
        MoesaicError: `invalid`, listing every bad field.
    """
    data = {"method": "bits"} | data
    if data["method"] not in METHODS:
        raise MoesaicError(
            "invalid", f"method {data['method']!r} is not known: {', '.join(METHODS)}", "/method"
        )
    try:
        return BODY.validate_python(data)
    except ValidationError as error:
        found = invalid(error, f"{data['method']} question")
        path = found.path.removeprefix(f"/{data['method']}")
        raise MoesaicError(found.kind, found.message, path or "/") from error


def compress(body: Any, model: MoeModel | None = None) -> Compressed:  # noqa: ANN401 - Body
    """Decide, and cost the decision on a model.

    Args:
        body: one of the five questions.
        model: whose four costs are wanted; `fit` needs one.

    Raises:
        MoesaicError: as each method says; `invalid` when the model has another shape.
    """
    with limited(body.time_limit_s, body.memory_limit_bytes):
        return _compressed(body, model)


def _compressed(body: Any, model: MoeModel | None) -> Compressed:  # noqa: ANN401 - Body
    if isinstance(body, FitBody):
        return _fit(body, model)
    table = None if model is None else expert_table(model)
    answer, after = _decided(body, table)
    costs = None if after is None else costs_of(after)
    return Compressed(method=body.method, answer=answer, costs=costs)


def _decided(body: Any, table: ExpertTable | None) -> tuple[Any, ExpertTable | None]:  # noqa: ANN401
    if isinstance(body, BitsBody):
        return _bits(body, table)
    if isinstance(body, PruneBody):
        return _prune(body, table)
    return _atomic(body, table) if isinstance(body, AtomicBody) else _merge(body, table)


def _bits(body: BitsBody, table: ExpertTable | None) -> tuple[BitsAnswer, ExpertTable | None]:
    answer = choose_bits(frame(body.factors), body)
    if table is None:
        return answer, None
    return answer, with_bits(table, _grid(table, answer))


def frame(factors: tuple[FactorRow, ...]) -> pl.DataFrame:
    """The factors as a table.

    Raises:
        MoesaicError: `invalid` where experts name different widths.
    """
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


def _grid(table: ExpertTable, answer: BitsAnswer) -> Array:
    """Bits in the model's shape; layers are counted among MoE layers."""
    cells = answer.allocation
    layers = {layer: i for i, layer in enumerate(sorted({cell.layer for cell in cells}))}
    if (len(layers), len(cells)) != (table.shape[0], table.shape[0] * table.shape[1]):
        raise MoesaicError(
            "invalid",
            f"the factors name {len(cells)} experts in {len(layers)} layers, {table.model.name} "
            f"has {table.shape[0]} layers of {table.shape[1]}", "/model",
        )  # fmt: skip
    grid = np.zeros(table.shape)
    for cell in cells:
        grid[layers[cell.layer], cell.expert] = cell.bits
    return grid


def _prune(body: PruneBody, table: ExpertTable | None) -> tuple[PruneAnswer, ExpertTable | None]:
    if (body.scores is None) == (body.logits is None):
        raise MoesaicError("invalid", "give scores or logits, one of them", "/scores")
    scores: Array = body.scores
    if body.logits is not None:
        scores = importance.score(body.score, body.logits, body.top_k)
    least = max(body.least_per_layer, body.top_k)
    answer = choose_experts(scores, body.model_copy(update={"least_per_layer": least}))
    if table is None:
        return answer, None
    kept = np.zeros(scores.shape, dtype=bool)
    for layer, experts in enumerate(answer.keep):
        kept[layer, list(experts)] = True
    return answer, masked(table, kept, refill=True)


def _atomic(body: AtomicBody, table: ExpertTable | None) -> tuple[UnitAnswer, ExpertTable | None]:
    answer = choose_units(body.saliency, body)
    if table is None:
        return answer, None
    return answer, narrowed(table, answer.keep, tile=body.tile)


def _merge(body: MergeBody, table: ExpertTable | None) -> tuple[MergeAnswer, ExpertTable | None]:
    logits = body.logits
    answer = merge(importance.frequency(logits, body.top_k), logits, body)
    if table is None:
        return answer, None
    return answer, merged(table, answer.owner, router_pruned=body.router_pruned)


def _fit(body: FitBody, model: MoeModel | None) -> Compressed:
    if model is None:
        raise MoesaicError("invalid", "fit needs a model", "/model")
    answer = shrink(expert_table(model, body.scores), body)
    return Compressed(method="fit", answer=answer, costs=answer.costs)
