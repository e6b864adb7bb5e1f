"""Which experts share weights: dominant experts by use, or the owners that lose least.

    minimise   Σ u_li d_lij x_lij     u: use, d: 1 - likeness (cosine of router logits)
    subject to Σ_j x_lij = 1, x_lij <= y_lj, Σ_lj y_lj = groups
The second is a p-median programme over all layers; its relaxation is nearly always whole.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.search.reasons import Explained, Status, status_of
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
MOST_PAIRS = 60_000
"""Layers times experts squared up to which owners are decided by the programme."""
TIME_LIMIT_S = 60.0
GAP_RATIO = 1e-6
Grid = list[list[list[Expression]]]


class MergeQuestion(Document):
    """How many experts stay, and how their groups are formed."""

    groups: Annotated[int, Field(ge=1)]
    """Experts that stay, all layers together."""
    by: Literal["use", "loss"] = "use"
    """The most used stay (M-SMoE); or those that lose least, by the programme."""
    keep_first: bool = True
    """The first layer, which loses most when merged, keeps its experts."""
    uniform: bool = False
    """As many experts stay in every layer that is merged."""


class MergeAnswer(Explained):
    """Owner of each expert, and what merging loses."""

    status: Status

    owner: tuple[tuple[int, ...], ...]
    groups: int
    lost_likeness_share: float
    """Share of all use that is unlike the expert that takes its place, 1 - cosine."""
    bound_share: float
    """No choice of owners loses less."""
    gap_ratio: float


def merge(frequency: Array, logits: Array, question: MergeQuestion) -> MergeAnswer:
    """Choose which experts stay and whom the others join.

    Args:
        frequency: use of each expert, [layers, experts].
        logits: router logits, [tokens, layers, experts].
        question: how many stay.

    Raises:
        MoesaicError: `invalid` for shapes that differ or more experts than the programme takes,
            `infeasible` for too few groups.
    """
    _check(frequency, logits, question)
    lost = lost_shares(frequency, logits)
    if question.by == "use":
        owners, bound = choose_owners(frequency, logits, question), 0.0
        if lost.size <= MOST_PAIRS:
            bound = state_merging(lost, question)[0].relax().objective
    else:
        owners, bound = _least_loss(frequency, logits, question)
    value = float(np.take_along_axis(lost, owners[:, :, None], axis=2).sum())
    least = max(min(bound, value), 0.0)
    gap = (value - least) / max(value, 1e-12)
    return MergeAnswer(
        status=status_of(gap),
        owner=tuple(map(tuple, owners.tolist())),
        groups=sum(len(set(row)) for row in owners.tolist()),
        lost_likeness_share=value, bound_share=least, gap_ratio=gap,
    )  # fmt: skip


def lost_shares(frequency: Array, logits: Array) -> Array:
    """Use times unlikeness of each expert to each owner, over all use, [layers, experts, experts].

    Use of each layer counts alike.
    """
    use = frequency / np.maximum(frequency.sum(axis=1, keepdims=True), 1e-300) / len(frequency)
    lost = np.stack([1 - _likeness(logits[:, i]) for i in range(len(frequency))])
    return np.asarray(use[:, :, None] * lost.clip(0))


def state_merging(lost: Array, question: MergeQuestion) -> tuple[Programme, Grid]:
    """Write the programme.

    Args:
        lost: what each expert loses with each owner, [layers, experts, experts].
        question: how many stay.
    """
    programme = Programme("merge", maximise=False)
    layers, experts, _ = lost.shape
    stay = [[programme.binary(f"stay_{i}_{j}") for j in range(experts)] for i in range(layers)]
    joins: Grid = [[[programme.number(f"join_{i}_{e}_{j}", 0, 1) for j in range(experts)]
                    for e in range(experts)] for i in range(layers)]  # fmt: skip
    first = int(question.keep_first)
    count = programme.integer("count", 1, experts) if question.uniform else None
    for i in range(layers):
        held = [(x, 1) for x in stay[i]]
        if i < first:
            programme.require(f"whole_{i}", programme.total(held) == experts)
        elif count is not None:
            programme.require(f"count_{i}", programme.total([*held, (count, -1)]) == 0)
        for e in range(experts):
            programme.require(f"one_{i}_{e}", programme.total([(x, 1) for x in joins[i][e]]) == 1)
            for j in range(experts):
                pair = programme.total([(joins[i][e][j], 1), (stay[i][j], -1)])
                programme.require(f"only_{i}_{e}_{j}", pair <= 0)
    every = programme.total([(x, 1) for row in stay for x in row])
    programme.require("groups", every <= question.groups)
    programme.objective(
        programme.total([(joins[i][e][j], float(lost[i, e, j])) for i in range(layers)
                         for e in range(experts) for j in range(experts)])
    )  # fmt: skip
    return programme, joins


def _least_loss(frequency: Array, logits: Array, question: MergeQuestion) -> tuple[Whole, float]:
    layers, experts = frequency.shape
    if layers * experts**2 > MOST_PAIRS:
        raise MoesaicError(
            "invalid",
            f"{layers} layers of {experts} experts are {layers * experts**2} pairs; the programme "
            f"takes {MOST_PAIRS}; by: use takes any number", "/by",
        )  # fmt: skip
    programme, joins = state_merging(lost_shares(frequency, logits), question)
    solution = programme.solve_guarded(time_limit_s=TIME_LIMIT_S, gap_ratio=GAP_RATIO)
    joined = np.array([[[solution.values[str(x)] for x in row] for row in grid] for grid in joins])
    owners = joined.argmax(axis=2)
    for layer in owners:
        # An expert that others joined stays, even where a twin would serve it as well.
        layer[np.unique(layer)] = np.unique(layer)
    return owners, solution.bound


def _check(frequency: Array, logits: Array, question: MergeQuestion) -> None:
    layers, experts = frequency.shape
    if logits.shape[1:] != frequency.shape:
        raise MoesaicError("invalid", f"use is {frequency.shape}, logits {logits.shape[1:]}")
    first = int(question.keep_first)
    least = experts * first + layers - first
    if not least <= question.groups:
        raise MoesaicError(
            "infeasible",
            f"{question.groups} groups; {least} to {layers * experts} work: one a layer"
            + (f", and the first layer keeps its {experts} experts" if first else ""),
            "/groups",
        )


def choose_owners(frequency: Array, logits: Array, question: MergeQuestion) -> Whole:
    """Owner of each expert (M-SMoE, arXiv:2310.01334, section 3.2).

    Use is normalised so that a layer's busiest expert is 1; the `groups` highest over all layers
    stay. Every other expert joins the dominant one of its layer whose router logits are most alike
    (cosine over the trace). The busiest expert of every layer stays always.

    Args:
        frequency: use of each expert, [layers, experts].
        logits: router logits, [tokens, layers, experts].
        question: how many stay, those of the first layer included.
    """
    layers, experts = frequency.shape
    rank = frequency / np.maximum(frequency.max(axis=1, keepdims=True), 1e-300)
    rank[np.arange(layers), frequency.argmax(axis=1)] = np.inf
    first = int(question.keep_first)
    if first:
        rank[0] = np.inf
    if question.uniform:
        count = (question.groups - first * experts) // max(layers - first, 1)
        dominant = np.argsort(np.argsort(-rank, axis=1, kind="stable"), axis=1) < count
        dominant[:first] = True
    else:
        dominant = np.zeros(rank.shape, dtype=bool)
        dominant.flat[np.argsort(-rank, axis=None, kind="stable")[: question.groups]] = True
    return np.stack([_joined(logits[:, i], dominant[i]) for i in range(layers)])


def _joined(logits: Array, dominant: NDArray[np.bool_]) -> Whole:
    """Owner of each expert of one layer."""
    alike = _likeness(logits)
    alike[:, ~dominant] = -np.inf
    owners = alike.argmax(axis=1)
    owners[dominant] = np.flatnonzero(dominant)
    return np.asarray(owners, dtype=np.int64)


def _likeness(logits: Array) -> Array:
    """Cosine of the experts' router logits, [experts, experts]."""
    unit = logits / np.maximum(np.linalg.norm(logits, axis=0), 1e-300)
    alike: Array = unit.T @ unit
    return alike
