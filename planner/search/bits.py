"""Bits of each expert under a budget: MC-MoE's programme, one block at a time or over all layers.

    minimise   Σ φ_i^α w_i^β ε_ij^γ x_ij      φ: share of selections, w: share of routing weight,
                                               ε: output error of expert i at j bits
    subject to Σ_j x_ij = 1 for every expert,  Σ_ij j x_ij <= budget,
               one expert at least at each of the two highest widths of a block
(arXiv:2410.06270, section 3.2; the shipped solver's exponents are 1, 1.5 and 1).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.search.solver import Programme, Solution

Array = NDArray[np.float64]
LOSS = "quant_loss_"
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


class BitsAnswer(Document):
    """The allocation, with the sum of the programmes' objectives and bounds."""

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
    widths = _widths(factors)
    table = factors.sort("layer", "expert")
    costs = weighed_losses(table, widths, question)
    layer_of = table["layer"].to_numpy()
    layers = np.unique(layer_of)
    joined = question.scope == "model" or question.uniform
    groups = [layers] if joined else [np.array([layer]) for layer in layers]
    bits = np.zeros(table.height, dtype=int)
    solutions = []
    for group in groups:
        rows = np.flatnonzero(np.isin(layer_of, group))
        budget = question.budget_bits * len(group)
        solution, chosen = _solve(costs[rows], layer_of[rows], widths, budget, question)
        bits[rows] = chosen
        solutions.append(solution)
    objective = sum(s.objective for s in solutions)
    bound = sum(s.bound for s in solutions)
    return BitsAnswer(
        allocation=tuple(
            ExpertBits(layer=layer, expert=expert, bits=int(b))
            for layer, expert, b in zip(table["layer"], table["expert"], bits, strict=True)
        ),
        objective=objective,
        bound=bound,
        gap_ratio=abs(objective - bound) / max(abs(objective), 1e-300),
        average_bits=float(bits.mean()),
    )


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


def _solve(
    costs: Array, layers: NDArray[np.int64], widths: list[int], budget: float,
    question: BitsQuestion,
) -> tuple[Solution, NDArray[np.int64]]:  # fmt: skip
    programme, picks = state_bits(
        costs, layers, widths, budget, keep_high=question.keep_high, uniform=question.uniform
    )
    solution = programme.solve(gap_ratio=EXACT_GAP_RATIO)
    if not solution.values:
        least = len(costs) * widths[0]
        raise MoesaicError(
            "infeasible",
            f"a budget of {budget:g} bits cannot hold {len(costs)} experts; at {widths[0]} bits "
            f"each they take {least}, and the two highest widths need one expert each",
            "/budget_bits",
        )
    chosen = [[solution.values[str(x)] for x in row] for row in picks]
    scale = float(costs.max()) or 1.0
    scaled = Solution(
        solution.status, solution.objective * scale, solution.bound * scale, solution.gap_ratio,
        solution.solve_s, solution.values,
    )  # fmt: skip
    return scaled, np.array(widths)[np.array(chosen).argmax(axis=1)]


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
