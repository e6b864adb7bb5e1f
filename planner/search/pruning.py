"""Which experts stay, or how many inner units of each, when memory is short."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.compression.transforms import keep_highest
from planner.search.solver import Programme

Array = NDArray[np.float64]
Whole = NDArray[np.int64]


class PruneQuestion(Document):
    """How many experts may stay."""

    keep_experts: Annotated[int, Field(ge=1)]
    """Experts kept, all layers together."""
    least_per_layer: Annotated[int, Field(ge=1)] = 1
    """No layer keeps fewer (a token's top_k)."""
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.0  # unit: share of a layer's scores
    """Every layer keeps experts with at least this share of its scores."""
    uniform: bool = False
    """The same count in every layer, as engines with one expert count need."""


class PruneAnswer(Document):
    """What stays."""

    keep: tuple[tuple[int, ...], ...]
    """Kept experts of each layer, in order."""
    coverage: tuple[float, ...]
    """Share of each layer's scores that is kept."""
    objective: float
    bound: float
    gap_ratio: float


def choose_experts(scores: Array, question: PruneQuestion) -> PruneAnswer:
    """Keep the experts whose scores, as shares of their layer, add up to most.

    Args:
        scores: [layers, experts], zero or more (TCESS, PEU, frequency, …).
        question: counts and coverage.

    Raises:
        MoesaicError: `invalid` for bad scores, `infeasible` when counts and coverage contradict.
    """
    if not np.isfinite(scores).all() or (scores < 0).any() or (scores.sum(axis=1) <= 0).any():
        raise MoesaicError("invalid", "scores must be finite, zero or more, some in each layer")
    shares = scores / scores.sum(axis=1, keepdims=True)
    layers, experts = shares.shape
    least = np.array([_needed(row, question) for row in shares])
    if question.uniform:
        count = question.keep_experts // layers
        if not max(question.least_per_layer, int(least.max())) <= count <= experts:
            raise _contradiction(question, int(least.max()) * layers, "uniform ")
        kept = keep_highest(shares, count)
        total = float((shares * kept).sum())
        return _answer(shares, kept, total, total)
    counts, bound = _counts(shares, least, question)
    kept = np.stack([keep_highest(row[None], n)[0] for row, n in zip(shares, counts, strict=True)])
    return _answer(shares, kept, float((shares * kept).sum()), bound)


def _needed(row: Array, question: PruneQuestion) -> int:
    """Fewest experts of a layer that keep its coverage."""
    reached = np.cumsum(np.sort(row)[::-1]) >= question.coverage - 1e-12
    return max(int(reached.argmax()) + 1, question.least_per_layer)


def _counts(shares: Array, least: Whole, question: PruneQuestion) -> tuple[Whole, float]:
    """How many experts each layer keeps: a programme over the sorted gains of each layer.

    Inside a layer the best n experts are the n highest scores, so one variable an expert in that
    order is enough; its relaxation is whole because gains fall (the bound is then exact).
    """
    layers, experts = shares.shape
    if not int(least.sum()) <= question.keep_experts or question.keep_experts > layers * experts:
        raise _contradiction(question, int(least.sum()), "")
    gains = np.sort(shares, axis=1)[:, ::-1]
    programme = Programme("prune", maximise=True)
    more = [
        [(programme.number(f"keep_{i}_{k}", 0, 1), float(gains[i, k]))
         for k in range(least[i], experts)]
        for i in range(layers)
    ]  # fmt: skip
    free = [pair for row in more for pair in row]
    room = question.keep_experts - int(least.sum())
    programme.require("keep", programme.total([(x, 1) for x, _ in free]) <= room)
    programme.objective(programme.total(free))
    if not free or room == 0:
        fixed = sum(float(g[:n].sum()) for g, n in zip(gains, least, strict=True))
        return least, fixed
    solution = programme.solve()
    taken = [sum(round(solution.values[str(x)]) for x, _ in row) for row in more]
    fixed = sum(float(g[:n].sum()) for g, n in zip(gains, least, strict=True))
    return least + np.array(taken), fixed + solution.bound


def _contradiction(question: PruneQuestion, needed: int, kind: str) -> MoesaicError:
    return MoesaicError(
        "infeasible",
        f"keep_experts {question.keep_experts} contradicts the other wishes: {kind}layers need "
        f"{needed} experts for coverage {question.coverage:g} and {question.least_per_layer} a "
        "layer at least", "/keep_experts",
    )  # fmt: skip


def _answer(shares: Array, kept: NDArray[np.bool_], objective: float, bound: float) -> PruneAnswer:
    return PruneAnswer(
        keep=tuple(tuple(np.flatnonzero(row).tolist()) for row in kept),
        coverage=tuple((shares * kept).sum(axis=1).tolist()),
        objective=objective,
        bound=bound,
        gap_ratio=abs(bound - objective) / max(objective, 1e-300),
    )


def choose_units(saliency: Array, keep_units: int, tile: int = 1) -> tuple[Whole, float]:
    """Inner units kept by layer and expert, in tiles, least saliency lost.

    Units cost the same, so the optimum is a sort: tiles of each expert's best units by their sum
    (HEAPr, arXiv:2509.22299, section 3). Tiles of one expert fall in value, so no tile is taken
    before a better one of the same expert.

    Args:
        saliency: [layers, experts, units], zero or more.
        keep_units: units kept in all.
        tile: units are kept in such multiples.

    Returns:
        Kept units [layers, experts], and the saliency lost.

    Raises:
        MoesaicError: `invalid` for bad saliency or a tile that does not divide the width.
    """
    if not np.isfinite(saliency).all() or (saliency < 0).any():
        raise MoesaicError("invalid", "saliency must be finite and zero or more")
    layers, experts, units = saliency.shape
    if units % tile or not 0 <= keep_units <= saliency.size:
        raise MoesaicError(
            "invalid", f"tile {tile} must divide {units} units; keep at most {saliency.size} units"
        )
    best_first = -np.sort(-saliency, axis=2)
    tiles = best_first.reshape(layers, experts, units // tile, tile).sum(axis=3)
    take = np.argsort(-tiles, axis=None, kind="stable")[: keep_units // tile]
    mask = np.zeros(tiles.size, dtype=bool)
    mask[take] = True
    kept = mask.reshape(tiles.shape)
    return kept.sum(axis=2) * tile, float(tiles[~kept].sum())
