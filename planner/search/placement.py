"""Experts onto devices and nodes, layer by layer, and what joins the layers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.search.churn import Budget, Limited, aligned, limit_moves, moved
from planner.search.copies import choose_copies
from planner.search.layer_placement import Clock, Solved, cost_of, solve_layer
from planner.search.packing import Packing, busiest
from planner.search.pins import resolve
from planner.search.placement_answer import (
    Greedy,
    LayerPlacement,
    Moves,
    Placement,
    proof_of,
)
from planner.search.placement_limits import check, possible, rivals
from planner.search.placement_question import Map, Matrix, PlacementQuestion
from planner.search.reasons import contradiction
from planner.search.solver import limited

__all__ = ["Map", "Matrix", "Placement", "PlacementQuestion", "place"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def place(
    question: PlacementQuestion, score: Matrix | None = None, known: Map | None = None
) -> Placement:
    """Place the experts of every layer.

    Args:
        question: loads and devices.
        score: another load, layers x experts, on which the layout is judged.
        known: layouts to start from; a quick answer by swaps alone, for another question nearby.

    Raises:
        MoesaicError: `invalid` for loads or maps that do not match, `infeasible` for wishes that
            contradict each other: the fewest of them, and the cheapest that would do.
    """
    with limited(question.time_limit_s, question.memory_limit_bytes):
        return _placed(question, score, known)


def _placed(question: PlacementQuestion, score: Matrix | None, known: Map | None) -> Placement:
    clock = Clock(question.time_limit_s, time.perf_counter())
    shares = question.shares()
    if question.robust == "mean":
        shares = shares.mean(axis=0, keepdims=True)
    layers = np.flatnonzero(shares[0].sum(axis=1) > 0)
    speeds = question.relative_speeds()
    today = _today(question, layers)
    try:
        check(question)
    except MoesaicError as error:
        raise contradiction(error, question, rivals(question), possible) from None
    copies = _copies(question, shares, layers)
    solved = [
        solve_layer(question, int(i), shares[:, i], question.experts + count, clock,
                    None if known is None else np.array(known[i]))
        for i, count in zip(layers, copies, strict=True)
    ]  # fmt: skip
    packings = [one.packing for one in solved]
    joined = None
    if question.max_moves is not None or question.max_move_bytes is not None:
        joined = _limited(question, layers, today, packings, shares)
        packings = joined.packings
    elif question.current is not None and _free(question):
        packings = [
            Packing(aligned(old, p.experts, speeds), p.max_over_mean, p.bound)
            for old, p in zip(today, packings, strict=True)
        ]
    solve_s = time.perf_counter() - clock.started_s
    baselines = [one.baseline for one in solved]
    judged = _judged(layers, today, packings, shares, speeds)
    said = _said(question, solved)
    budget = None if joined is None else _moves(question, layers, today, joined)
    proof = proof_of(question.objective, question.traffic_weight, judged,
                     said.get("traffic", ()), budget)  # fmt: skip
    return Placement(
        physical_to_logical_map=_whole_map(question, layers, packings, len(shares[0])),
        layers=judged,
        cross_node_share=_cross_node(question, layers, packings, shares[:, layers].mean(axis=0)),
        moves=sum(moved(old, new.experts) for old, new in zip(today, packings, strict=True)),
        solve_s=solve_s,
        greedy=_greedy(baselines, shares[:, layers], speeds),
        move_budget=budget,
        redundant=() if question.copies == "given" else tuple(copies),
        time_limit_reached=clock.late,
        **said,
        **proof,
        **_scored(question, score, layers, today, packings, baselines),
    )


def _copies(question: PlacementQuestion, shares: Array, layers: Ints) -> list[int]:
    """Copies of each MoE layer."""
    if question.copies != "given":
        return choose_copies(question, shares, layers)
    return [question.redundant] * len(layers)


def _free(question: PlacementQuestion) -> bool:
    """Whether devices may change their names: nothing says which is which."""
    return question.groups == 1 and not question.pins and question.objective == "balance"


def _today(question: PlacementQuestion, layers: Ints) -> list[Ints]:
    """Layouts before: the current map, or experts in order with copies left out."""
    slots = question.experts + question.redundant
    if question.current is None:
        order = np.array_split(np.arange(question.experts), question.devices)
        width = max(len(part) for part in order)
        plain = np.stack([np.pad(p, (0, width - len(p)), constant_values=-1) for p in order])
        return [plain for _ in layers]
    current = question.current
    if len(current) != len(question.loads[0]) or {len(row) for row in current} != {slots}:
        raise MoesaicError(
            "invalid",
            f"current must hold {len(question.loads[0])} layers x {slots} slots, it holds "
            f"{len(current)} x {sorted({len(row) for row in current})}", "/current",
        )  # fmt: skip
    found = [np.array(current[i]).reshape(question.devices, -1) for i in layers]
    for i, layout in zip(layers, found, strict=True):
        missing = set(range(question.experts)) - set(layout.ravel().tolist())
        if missing or layout.max() >= question.experts:
            raise MoesaicError(
                "invalid", f"layer {i} of current lacks experts {sorted(missing)[:5]} or names "
                f"one beyond {question.experts - 1}", f"/current/{i}",
            )  # fmt: skip
    return found


def _limited(
    question: PlacementQuestion, layers: Ints, today: list[Ints], packings: list[Packing],
    shares: Array,
) -> Limited:  # fmt: skip
    """Layouts within the moves or bytes that all layers share."""
    if question.groups > 1:
        raise MoesaicError(
            "invalid", "a limit on moves together with groups is not modelled; leave one out",
            "/groups",
        )  # fmt: skip
    width = (question.experts + question.redundant) // question.devices
    pins = [resolve(question.pins, int(i), question.node_of(), width, question.redundant)
            for i in layers]  # fmt: skip
    budget = Budget(question.max_moves, question.max_move_bytes, question.layer_bytes()[layers])
    return limit_moves(today, packings, shares[:, layers], question.relative_speeds(), budget, pins)


def _moves(question: PlacementQuestion, layers: Ints, today: list[Ints], joined: Limited) -> Moves:
    sizes = question.layer_bytes()[layers]
    carried = [moved(old, new.experts) * size
               for old, new, size in zip(today, joined.packings, sizes, strict=True)]  # fmt: skip
    return Moves(
        max_over_mean_sum=joined.value, bound=joined.bound,
        gap_ratio=joined.value / joined.bound - 1,
        moved_bytes=float(sum(carried)) if question.expert_bytes else 0.0,
    )  # fmt: skip


def _said(question: PlacementQuestion, solved: list[Solved]) -> dict[str, Any]:
    """Traffic and groups, where they were asked."""
    found: dict[str, Any] = {}
    traffic = tuple(one.crossing for one in solved if one.crossing is not None)
    if traffic:
        measure = "pairs" if question.tokens is None else "visits"
        found |= {"traffic": traffic, "traffic_measure": measure}
    if question.form_groups:
        found["groups"] = tuple(tuple(one.member.tolist()) for one in solved)
    return found


def _whole_map(
    question: PlacementQuestion, layers: Ints, packings: list[Packing], count: int
) -> tuple[tuple[int, ...], ...]:
    plain = tuple(i % question.experts for i in range(question.experts + question.redundant))
    rows = [plain] * count
    for i, packing in zip(layers, packings, strict=True):
        rows[i] = tuple(packing.experts.ravel().tolist())
    return tuple(rows)


def _judged(
    layers: Ints, today: list[Ints], packings: list[Packing], shares: Array, speeds: Array
) -> tuple[LayerPlacement, ...]:
    return tuple(
        LayerPlacement(
            layer=int(i),
            max_over_mean_before=_before(old, shares[:, i], speeds),
            max_over_mean=packing.max_over_mean,
            bound=packing.bound,
            gap_ratio=packing.max_over_mean / packing.bound - 1,
        )
        for i, old, packing in zip(layers, today, packings, strict=True)
    )


def _before(layout: Ints, rows: Array, speeds: Array) -> float:
    """Busiest over mean of a layout whose empty slots are -1."""
    padded = np.concatenate([rows, np.zeros((len(rows), 1))], axis=1)
    experts = np.where(layout < 0, rows.shape[1], layout)
    return busiest(experts, padded, speeds)


def _cross_node(
    question: PlacementQuestion, layers: Ints, packings: list[Packing], rows: Array
) -> float:
    """Pairs that leave their node; tokens are anywhere equally unless `sources` says where."""
    plain = question.model_copy(update={"tokens": None})
    units = np.arange(question.experts)
    leaving = []
    for i, packing, row in zip(layers, packings, rows, strict=True):
        nodes = np.repeat(question.node_of(), packing.experts.shape[1])
        cost = cost_of(plain, int(i), row, units)
        leaving.append(cost.value(packing.experts.ravel(), nodes))
    return float(np.mean(leaving))


def _greedy(baseline: list[Ints], shares: Array, speeds: Array) -> Greedy:
    values = [busiest(b, shares[:, i], speeds) for i, b in enumerate(baseline)]
    return Greedy(max_over_mean=tuple(values))


def _scored(
    question: PlacementQuestion, score: Matrix | None, layers: Ints, today: list[Ints],
    packings: list[Packing], baseline: list[Ints],
) -> dict[str, object]:  # fmt: skip
    """The layout on another load."""
    if score is None:
        return {}
    plain = {"loads": (score,), "devices": question.devices, "redundant": question.redundant,
             "copies": question.copies}  # fmt: skip
    other = PlacementQuestion.parse(plain, what="score load").shares()
    if other.shape[1:] != (question.layers, question.experts):
        raise MoesaicError(
            "invalid", f"the score load is of {other.shape[1]} layers x {other.shape[2]} experts, "
            f"the loads of {question.layers} x {question.experts}", "/score",
        )  # fmt: skip
    speeds = question.relative_speeds()
    again = [
        Packing(p.experts, busiest(p.experts, other[:, i], speeds), p.bound)
        for i, p in zip(layers, packings, strict=True)
    ]
    judged = tuple(
        layer.model_copy(update={"bound": 1.0, "gap_ratio": layer.max_over_mean - 1})
        for layer in _judged(layers, today, again, other, speeds)
    )
    return {"scored": judged, "scored_greedy": _greedy(baseline, other[:, layers], speeds)}
