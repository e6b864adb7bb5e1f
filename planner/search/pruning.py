"""Which experts stay, or how many inner units of each, when memory is short."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Bytes
from planner.compression.transforms import keep_highest
from planner.search.reasons import Explained, Status, status_of
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
EASE = 1 + 1e-12
TIME_LIMIT_S = 20.0


class PruneQuestion(Document):
    """How many experts may stay, or how many bytes they may take."""

    keep_experts: Annotated[int, Field(ge=1)] | None = None
    """Experts kept, all layers together."""
    budget_bytes: Bytes | None = None
    """Memory for routed experts, all layers together; needs `expert_bytes`."""
    expert_bytes: tuple[Annotated[Bytes, Field(gt=0)], ...] | None = None
    """Bytes of one expert in each layer, or one number for all layers."""
    least_per_layer: Annotated[int, Field(ge=1)] = 1
    """No layer keeps fewer (a token's top_k)."""
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.0  # unit: share of a layer's scores
    """Every layer keeps experts with at least this share of its scores."""
    uniform: bool = False
    """The same count in every layer, as engines with one expert count need."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.keep_experts is None) == (self.budget_bytes is None):
            raise ValueError("give keep_experts or budget_bytes, one of them")
        if self.budget_bytes is not None and self.expert_bytes is None:
            raise ValueError("budget_bytes needs expert_bytes")
        return self

    def sizes(self, layers: int) -> Array:
        """Bytes of one expert by layer; one each where experts are counted.

        Raises:
            MoesaicError: `invalid` for another number of layers.
        """
        given = (1.0,) if self.keep_experts is not None else (self.expert_bytes or (1.0,))
        if len(given) not in (1, layers):
            raise MoesaicError(
                "invalid", f"{len(given)} expert_bytes for {layers} layers; one for all or one a "
                "layer", "/expert_bytes",
            )  # fmt: skip
        return np.broadcast_to(np.array(given, dtype=float), (layers,))

    def budget(self) -> float:
        """What experts may take together, in the unit of `sizes`."""
        return float(self.keep_experts or self.budget_bytes or 0)


class UnitQuestion(Document):
    """How many inner units go, and what kernels need."""

    cut_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of all units, or of their bytes, that goes."""
    tile: Annotated[int, Field(ge=1)] = 1
    """Units stay in such multiples."""
    unit_bytes: tuple[Annotated[Bytes, Field(gt=0)], ...] | None = None
    """Bytes of one unit in each layer, where layers differ; none: all alike."""
    uniform: bool = False
    """The same width in every expert, as kernels with one shape need."""

    def sizes(self, layers: int) -> Array:
        """Bytes of one unit by layer, one each where nothing is said.

        Raises:
            MoesaicError: `invalid` for another number of layers.
        """
        given = self.unit_bytes or (1.0,) * layers
        if len(given) != layers:
            raise MoesaicError(
                "invalid", f"{len(given)} unit_bytes for {layers} layers", "/unit_bytes"
            )
        return np.array(given, dtype=float)


class PruneAnswer(Explained):
    """What stays."""

    status: Status

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
    sizes, budget = question.sizes(layers), question.budget()
    if float(least @ sizes) > budget * EASE:
        raise _contradiction(question, least)
    if question.uniform:
        count = min(int(budget * EASE / float(sizes.sum())), experts)
        if int(least.max()) > count:
            raise _contradiction(question, np.full(layers, least.max()))
        kept = keep_highest(shares, count)
        total = float((shares * kept).sum())
        return _answer(shares, kept, total, total)
    counts, bound = _counts(shares, least, sizes, budget)
    kept = np.stack([keep_highest(row[None], n)[0] for row, n in zip(shares, counts, strict=True)])
    return _answer(shares, kept, float((shares * kept).sum()), bound)


def _needed(row: Array, question: PruneQuestion) -> int:
    """Fewest experts of a layer that keep its coverage."""
    reached = np.cumsum(np.sort(row)[::-1]) >= question.coverage - 1e-12
    return max(int(reached.argmax()) + 1, question.least_per_layer)


def _counts(shares: Array, least: Whole, sizes: Array, budget: float) -> tuple[Whole, float]:
    """How many experts each layer keeps: a programme over the sorted gains of each layer."""
    gains = np.sort(shares, axis=1)[:, ::-1]
    fixed = sum(float(g[:n].sum()) for g, n in zip(gains, least, strict=True))
    room = budget - float(least @ sizes)
    programme, more = state_pruning(gains, least, sizes, room)
    if not any(more) or room < float(sizes.min()):
        return least, fixed
    solution = programme.solve_guarded(time_limit_s=TIME_LIMIT_S)
    taken = [sum(round(solution.values[str(x)]) for x in row) for row in more]
    return least + np.array(taken), fixed + solution.bound


def state_pruning(
    gains: Array, least: Whole, sizes: Array, room: float
) -> tuple[Programme, list[list[Expression]]]:
    """Write the programme of experts kept beyond the least.

    Inside a layer the best n experts are the n highest scores, so one variable an expert in that
    order is enough. Experts of one size need no whole numbers: gains fall, so the relaxation is
    whole already and its bound exact.

    Args:
        gains: shares of each layer, falling, [layers, experts].
        least: experts that each layer keeps in any case.
        sizes: what one expert of each layer takes.
        room: what is left for more.
    """
    programme = Programme("prune", maximise=True)
    equal = float(np.ptp(sizes)) == 0
    more: list[list[Expression]] = []
    pairs = []
    for i, row in enumerate(gains):
        names = [f"keep_{i}_{k}" for k in range(int(least[i]), len(row))]
        more.append([
            programme.number(name, 0, 1) if equal else programme.binary(name) for name in names
        ])  # fmt: skip
        pairs += [(x, float(row[int(least[i]) + k]), float(sizes[i]))
                  for k, x in enumerate(more[i])]  # fmt: skip
    unit = float(sizes.max())
    whole = float(np.floor(room / unit * EASE)) if equal else room / unit
    programme.require("keep", programme.total([(x, s / unit) for x, _, s in pairs]) <= whole)
    programme.objective(programme.total([(x, gain) for x, gain, _ in pairs]))
    return programme, more


def _contradiction(question: PruneQuestion, least: Whole) -> MoesaicError:
    name = "budget_bytes" if question.keep_experts is None else "keep_experts"
    kind = "uniform layers need" if question.uniform else "layers need"
    return MoesaicError(
        "infeasible",
        f"{name} {question.budget():g} contradicts the other wishes: {kind} {int(least.sum())} "
        f"experts for coverage {question.coverage:g} and {question.least_per_layer} a layer at "
        "least", f"/{name}",
    )  # fmt: skip


def _answer(shares: Array, kept: NDArray[np.bool_], objective: float, bound: float) -> PruneAnswer:
    gap = abs(bound - objective) / max(objective, 1e-300)
    return PruneAnswer(
        status=status_of(gap),
        keep=tuple(tuple(np.flatnonzero(row).tolist()) for row in kept),
        coverage=tuple((shares * kept).sum(axis=1).tolist()),
        objective=objective,
        bound=bound,
        gap_ratio=gap,
    )


class UnitAnswer(Explained):
    """Inner units kept, and how good any choice could be."""

    status: Status

    keep: tuple[tuple[int, ...], ...]
    """Layers x experts."""
    kept_units: int
    lost_saliency_share: float
    bound_share: float
    """No choice in whole tiles loses less."""
    gap_ratio: float


def choose_units(saliency: Array, question: UnitQuestion) -> UnitAnswer:
    """Inner units kept by layer and expert, in tiles, least saliency lost.

    Units that cost the same are a sort: tiles of each expert's best units by their sum (HEAPr,
    arXiv:2509.22299, section 3). Tiles of one expert fall in value, so no tile is taken before a
    better one of the same expert. Where layers differ in bytes the sort is by saliency a byte, and
    the relaxation it solves is the bound.

    Args:
        saliency: [layers, experts, units], zero or more.
        question: how much is kept.

    Raises:
        MoesaicError: `invalid` for bad saliency or a tile that does not divide the width.
    """
    if saliency.ndim != 3 or not np.isfinite(saliency).all() or (saliency < 0).any():  # noqa: PLR2004
        raise MoesaicError(
            "invalid", "saliency is layers x experts x units, finite and zero or more", "/saliency"
        )
    layers, experts, units = saliency.shape
    if units % question.tile:
        raise MoesaicError("invalid", f"tile {question.tile} must divide {units} units", "/tile")
    sizes = question.sizes(layers)
    best_first = -np.sort(-saliency, axis=2)
    tiles = best_first.reshape(layers, experts, -1, question.tile).sum(axis=3)
    cost = np.broadcast_to(sizes[:, None, None] * question.tile, tiles.shape)
    room = (1 - question.cut_ratio) * float(sizes.sum()) * experts * units
    if question.uniform:
        return _same_width(tiles, cost, room, question.tile)
    order = np.argsort(-(tiles / cost), axis=None, kind="stable")
    spent = np.cumsum(cost.flat[order])
    fits = spent <= room * (1 + 1e-9)
    first = int(fits.sum())
    best = float(tiles.flat[order[:first]].sum())
    if first < len(order):
        before = float(spent[first - 1]) if first else 0.0
        step = order[first]
        best += float(tiles.flat[step] * (room - before) / cost.flat[step])
    taken = np.zeros(tiles.size, dtype=bool)
    taken[order[:first]] = True
    equal = float(np.ptp(sizes)) == 0
    if not equal:
        _rest(taken, order[first:], cost, room - float(cost.flat[order[:first]].sum()))
    else:
        best = float(tiles.flat[order[:first]].sum())
    return _units(tiles, taken.reshape(tiles.shape), best, question.tile)


def _rest(taken: NDArray[np.bool_], order: Whole, cost: Array, room: float) -> None:
    """Tiles that still fit after one that did not; a better tile of the same expert goes first."""
    closed = set()
    width = cost.shape[2]
    for tile in order.tolist():
        expert, price = tile // width, float(cost.flat[tile])
        if price > room * (1 + 1e-9):
            closed.add(expert)
        elif expert not in closed:
            taken[tile] = True
            room -= price


def _same_width(tiles: Array, cost: Array, room: float, tile: int) -> UnitAnswer:
    """Each expert keeps as many tiles."""
    count = int(room * (1 + 1e-9) / float(cost[:, :, 0].sum()))
    taken = np.zeros(tiles.shape, dtype=bool)
    taken[:, :, :count] = True
    return _units(tiles, taken, float(tiles[taken].sum()), tile)


def _units(tiles: Array, taken: NDArray[np.bool_], best: float, tile: int) -> UnitAnswer:
    everything = max(float(tiles.sum()), 1e-300)
    lost = float(tiles[~taken].sum()) / everything
    bound = min(max(1 - best / everything, 0.0), lost)
    counts = taken.sum(axis=2) * tile
    gap = (lost - bound) / max(lost, 1e-12)
    return UnitAnswer(
        status=status_of(gap), keep=tuple(map(tuple, counts.tolist())),
        kept_units=int(counts.sum()), lost_saliency_share=lost, bound_share=bound, gap_ratio=gap,
    )  # fmt: skip
