"""Bits of each expert under a budget: MC-MoE's programme, one block at a time or over all layers.

    minimise   Σ φ_i^α w_i^β ε_ij^γ x_ij      φ: share of selections, w: share of routing weight,
                                               ε: output error of expert i at j bits
    subject to Σ_j x_ij = 1 for every expert,  Σ_ij j x_ij <= budget,
               one expert at least at each of the two highest widths of a block
(arXiv:2410.06270, section 3.2; the shipped solver's exponents are 1, 1.5 and 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.search.reasons import Explained, Status
from planner.search.solver import Programme, Solution

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
LOSS = "quant_loss_"
TIME_LIMIT_S = 600.0
EXACT_GAP_RATIO = 1e-9
"""The smallest distance between best and second best in the authors' problems is 1.8e-6."""


class BitsQuestion(Document):
    """How many bits there are and how an expert's importance is weighed."""

    budget_bits: Annotated[float, Field(gt=0)]
    """Bits of one block's experts together: mean bits an expert times experts."""
    scope: Literal["layer", "model"] = "layer"
    """A budget for each layer, or one for all of them (errors of layers are then compared)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the share of selections."""
    beta: Annotated[float, Field(ge=0)] = 1.5
    """Exponent of the share of routing weight."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the output error."""
    keep_high: bool = True
    """At least one expert of a block at each of the two highest widths."""
    uniform: bool = False
    """As many experts of each width in every layer, as grouped kernels with one shape need."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.budget_bits > 1e6:  # noqa: PLR2004 - far beyond any block
            raise ValueError("budget_bits is the budget of one block, not of a file")
        return self


class ExpertBits(Document):
    """One expert's width."""

    layer: int
    expert: int
    bits: int


class BitsAnswer(Explained):
    """The allocation, with the sum of the programmes' objectives and bounds."""

    status: Status
    allocation: tuple[ExpertBits, ...]
    objective: float
    bound: float
    gap_ratio: float
    average_bits: float


def choose_bits(factors: pl.DataFrame, question: BitsQuestion) -> BitsAnswer:
    """Solve the programme.

    Args:
        factors: columns layer, expert, activation_count, routing_weight_sum, quant_loss_{j}bit for
            each width j; one row an expert.
        question: budget and exponents.

    Raises:
        MoesaicError: `invalid` for missing columns or numbers that are not finite and positive;
            `infeasible` when the budget cannot hold every expert.
    """
    table, parts = _parts(factors, question)
    bits = np.zeros(table.height, dtype=int)
    solutions = []
    for part in parts:
        solution, bits[part.rows] = _solve(part, question)
        solutions.append(solution)
    objective = sum(s.objective for s in solutions)
    bound = sum(s.bound for s in solutions)
    gap = abs(objective - bound) / max(abs(objective), 1e-300)
    return BitsAnswer(
        status="optimal" if all(s.status == "optimal" for s in solutions) else "feasible",
        allocation=tuple(
            ExpertBits(layer=layer, expert=expert, bits=int(b))
            for layer, expert, b in zip(table["layer"], table["expert"], bits, strict=True)
        ),
        objective=objective,
        bound=bound,
        gap_ratio=gap,
        average_bits=float(bits.mean()),
    )


@dataclass(frozen=True)
class _Part:
    """Experts that share a budget: rows of the table, costs [experts, widths], layer of each."""

    rows: Whole
    costs: Array
    layers: Whole
    widths: list[int]
    budget: float


def _parts(factors: pl.DataFrame, question: BitsQuestion) -> tuple[pl.DataFrame, list[_Part]]:
    """The table in order, and its programmes: one a layer, or one for all."""
    widths = _widths(factors)
    table = factors.sort("layer", "expert")
    costs = weighed_losses(table, widths, question)
    layer_of = table["layer"].to_numpy()
    layers = np.unique(layer_of)
    joined = question.scope == "model" or question.uniform
    parts = []
    for group in [layers] if joined else [np.array([layer]) for layer in layers]:
        rows = np.flatnonzero(np.isin(layer_of, group))
        budget = question.budget_bits * len(group)
        parts.append(_Part(rows, costs[rows], layer_of[rows], widths, budget))
    return table, parts


def second_bits(factors: pl.DataFrame, question: BitsQuestion, answer: BitsAnswer) -> str | None:
    """The next best allocation, by a cut, and what it loses; none where there is no other.

    Args:
        factors: as `choose_bits`.
        question: budget and exponents.
        answer: the best allocation.
    """
    table, parts = _parts(factors, question)
    bits = np.array([cell.bits for cell in answer.allocation])
    best, found = np.inf, None
    for part in parts:
        here = bits[part.rows]
        other = _next(part, question, here)
        if other is None:
            continue
        column = np.searchsorted(part.widths, np.stack([here, other]))
        now, then = part.costs[np.arange(len(here)), column].sum(axis=1)
        if then - now < best:
            best, found = then - now, (part.rows[here != other], here, other, part.rows)
    if found is None:
        return None
    changed, here, other, rows = found
    names = dict(zip(rows.tolist(), zip(here.tolist(), other.tolist(), strict=True), strict=True))
    said = [
        f"expert {table['expert'][row]} of layer {table['layer'][row]} at {names[row][1]} bits in "
        f"place of {names[row][0]}" for row in changed[:MOST_NAMED].tolist()
    ]  # fmt: skip
    more = [f"{len(changed) - MOST_NAMED} more"] if len(changed) > MOST_NAMED else []
    return f"{', '.join(said + more)}: error {max(float(best), 0.0):.3g} greater"


MOST_NAMED = 4
"""Experts of a runner-up that are named."""


def _next(part: _Part, question: BitsQuestion, here: Whole) -> Whole | None:
    """The best allocation of a part other than `here`."""
    programme, picks = _stated(part, question)
    same = [(row[part.widths.index(int(j))], 1) for row, j in zip(picks, here, strict=True)]
    programme.require("other", programme.total(same) <= len(here) - 1)
    solution = programme.solve_guarded(gap_ratio=EXACT_GAP_RATIO, time_limit_s=TIME_LIMIT_S)
    return _bits_of(solution, picks, part.widths) if solution.values else None


def _widths(factors: pl.DataFrame) -> list[int]:
    needed = {"layer", "expert", "activation_count", "routing_weight_sum"}
    missing = needed - set(factors.columns)
    names = [c for c in factors.columns if c.startswith(LOSS) and c.endswith("bit")]
    if missing or not names:
        raise MoesaicError(
            "invalid", f"factors lack columns {sorted(missing) or f'{LOSS}<j>bit'}", "/factors"
        )
    if factors.select("layer", "expert").is_duplicated().any():
        raise MoesaicError("invalid", "factors name an expert twice", "/factors")
    return sorted(int(name.removeprefix(LOSS).removesuffix("bit")) for name in names)


def weighed_losses(table: pl.DataFrame, widths: list[int], question: BitsQuestion) -> Array:
    """φ^α w^β ε^γ, shape [experts, widths]; shares are taken inside each layer."""
    shares = table.select(
        phi=pl.col("activation_count") / pl.col("activation_count").sum().over("layer"),
        weight=pl.col("routing_weight_sum") / pl.col("routing_weight_sum").sum().over("layer"),
    )
    losses = table.select([f"{LOSS}{j}bit" for j in widths]).to_numpy().astype(float)
    importance = (
        shares["phi"].to_numpy() ** question.alpha * shares["weight"].to_numpy() ** question.beta
    )
    costs: Array = importance[:, None] * losses**question.gamma
    if not np.isfinite(costs).all() or (losses < 0).any():
        raise MoesaicError(
            "invalid", "factors must be finite, losses zero or more, each layer with some load",
            "/factors",
        )  # fmt: skip
    return costs


def _stated(part: _Part, question: BitsQuestion) -> tuple[Programme, list[list[object]]]:
    return state_bits(
        part.costs, part.layers, part.widths, part.budget, keep_high=question.keep_high,
        uniform=question.uniform,
    )  # fmt: skip


def _bits_of(solution: Solution, picks: list[list[object]], widths: list[int]) -> Whole:
    chosen = [[solution.values[str(x)] for x in row] for row in picks]
    found: Whole = np.array(widths)[np.array(chosen).argmax(axis=1)]
    return found


def _solve(part: _Part, question: BitsQuestion) -> tuple[Solution, Whole]:
    programme, picks = _stated(part, question)
    solution = programme.solve_guarded(gap_ratio=EXACT_GAP_RATIO, time_limit_s=TIME_LIMIT_S)
    if not solution.values:
        least = len(part.costs) * part.widths[0]
        raise MoesaicError(
            "infeasible",
            f"a budget of {part.budget:g} bits cannot hold {len(part.costs)} experts; at "
            f"{part.widths[0]} bits each they take {least}, and the two highest widths need one "
            "expert each",
            "/budget_bits",
        )
    scale = float(part.costs.max()) or 1.0
    scaled = Solution(
        solution.status, solution.objective * scale, solution.bound * scale, solution.gap_ratio,
        solution.solve_s, solution.values,
    )  # fmt: skip
    return scaled, _bits_of(solution, picks, part.widths)


def state_bits(
    costs: Array,
    layers: NDArray[np.int64],
    widths: list[int],
    budget: float,
    *,
    keep_high: bool,
    uniform: bool = False,
) -> tuple[Programme, list[list[object]]]:
    """Write the programme; costs are scaled to one, so that tolerances always mean the same."""
    programme = Programme("bits", maximise=False)
    picks = [[programme.binary(f"x_{i}_{j}") for j in widths] for i in range(len(costs))]
    scaled = costs / (float(costs.max()) or 1.0)
    for i, row in enumerate(picks):
        programme.require(f"one_{i}", programme.total([(x, 1) for x in row]) == 1)
    every = [(x, j) for row in picks for x, j in zip(row, widths, strict=True)]
    programme.require("budget", programme.total(every) <= budget)
    high = range(max(len(widths) - 2, 1), len(widths)) if keep_high else range(0)
    for layer in np.unique(layers):
        for k in high:
            some = [(picks[i][k], 1) for i in np.flatnonzero(layers == layer)]
            programme.require(f"some_{layer}_{widths[k]}", programme.total(some) >= 1)
    if uniform:
        _equal_counts(programme, picks, layers, widths)
    programme.objective(
        programme.total(
            [(x, float(c)) for row, cost in zip(picks, scaled, strict=True)
             for x, c in zip(row, cost, strict=True)]
        )
    )  # fmt: skip
    return programme, picks


def _equal_counts(
    programme: Programme, picks: list[list[object]], layers: NDArray[np.int64], widths: list[int]
) -> None:
    """Every layer has as many experts of each width."""
    for k, width in enumerate(widths):
        count = programme.integer(f"count_{width}")
        for layer in np.unique(layers):
            here = [(picks[i][k], 1) for i in np.flatnonzero(layers == layer)]
            equal = programme.total([*here, (count, -1)]) == 0
            programme.require(f"equal_{layer}_{width}", equal)
