"""At most so many moves from today's layout: paths of improving moves, a programme over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.packing import Packing, best_swap, busiest, device_loads
from planner.search.pins import Pins
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS = 60
"""Points of one layer's path at most."""
TIME_LIMIT_S = 20.0
HOT, COLD = 2, 4
"""Experts with the most load per copy that a step tries to copy, and coldest that give one up."""


def moved(old: Ints, new: Ints) -> int:
    """Slots whose expert the device did not hold before."""
    return sum(
        len(set(after.tolist()) - set(before.tolist()))
        for before, after in zip(old, new, strict=True)
    )


@dataclass(frozen=True)
class Budget:
    """What all layers may change together.

    Args:
        moves: slots; none: no limit.
        moved_bytes: bytes; none: no limit.
        expert_bytes: bytes of one expert in each layer, [layers].
    """

    moves: int | None
    moved_bytes: float | None
    expert_bytes: Array

    def alone(self, layer: int) -> int:
        """Moves that one layer could make at most."""
        found = [10**9 if self.moves is None else self.moves]
        if self.moved_bytes is not None:
            found.append(int(self.moved_bytes / self.expert_bytes[layer] * (1 + 1e-9)))
        return min(found)


@dataclass(frozen=True)
class Limited:
    """Layouts within a budget; the sum of their busiest over mean, and the least it could be."""

    packings: list[Packing]
    value: float
    bound: float


def limit_moves(
    today: list[Ints], ideal: list[Packing], shares: Array, speeds: Array,
    budget: Budget, pins: list[Pins],
) -> Limited:  # fmt: skip
    """Choose how far each layer walks from today's layout, all walks together within a budget.

    Args:
        today: layout of each layer, [devices, slots].
        ideal: unrestricted packing of each layer; taken whole where its moves fit.
        shares: [traces, layers, experts].
        speeds: relative speed of each device.
        budget: what may change.
        pins: copies of each layer that must stand somewhere; today's layout keeps them.
    """
    paths, curves = [], []
    for i, (old, best) in enumerate(zip(today, ideal, strict=True)):
        rows, most = shares[:, i], budget.alone(i)
        layouts = [*_walk(old, rows, speeds, most, pins[i])]
        if pins[i].tags(whole := aligned(old, best.experts, speeds)) is not None:
            layouts.append(whole)
        points = [(moved(old, x), busiest(x, rows, speeds), x) for x in layouts]
        paths.append(_useful([p for p in points if p[0] <= most]))
        curves.append(least_after(old, rows, speeds, best.bound, most))
    chosen, value, _ = _choose([[(p[0], p[1]) for p in path] for path in paths], budget)
    _, _, bound = _choose([list(enumerate(curve)) for curve in curves], budget)
    packings = [
        Packing(path[k][2], path[k][1], max(best.bound, float(curve[-1])))
        for path, k, best, curve in zip(paths, chosen, ideal, curves, strict=True)
    ]
    return Limited(packings, value, min(bound, value))


def least_after(old: Ints, rows: Array, speeds: Array, bound: float, most: int) -> list[float]:
    """No layout that so many moves away has a busiest over mean below this, for 0, 1, … moves.

    A move takes one copy's load off a device at most: the copy leaves, or a copy made elsewhere
    takes a part of it.

    Args:
        old: layout before, [devices, slots].
        rows: load shares, [traces, experts].
        speeds: relative speed of each device.
        bound: for any layout.
        most: moves up to which it is said.
    """
    copies = np.bincount(old.ravel(), minlength=rows.shape[1])
    each = rows / np.maximum(copies, 1) * len(speeds)
    held = -np.sort(-each[:, old], axis=2) / speeds[:, None]
    left = held.sum(axis=2, keepdims=True) - np.cumsum(held, axis=2)
    curve = [busiest(old, rows, speeds)]
    for k in range(min(most, old.shape[1])):
        curve.append(max(float(left[:, :, k].max()), bound))
        if curve[-1] <= bound:
            break
    return [max(value, bound) for value in curve]


Path = list[tuple[int, float, Ints]]
Curve = list[tuple[int, float]]


def _useful(points: Path) -> Path:
    """Points that no other beats in moves and balance."""
    kept: Path = []
    for point in sorted(points, key=lambda p: (p[0], p[1])):
        if not kept or point[1] < kept[-1][1] - 1e-12:
            kept.append(point)
    return kept


def _choose(curves: list[Curve], budget: Budget) -> tuple[list[int], float, float]:
    """One point a layer; which, the sum of their values, and its bound."""
    programme, picks = state_moves(curves, budget)
    solution = programme.solve_guarded(time_limit_s=TIME_LIMIT_S)
    chosen = [int(np.argmax([solution.values[str(x)] for x in row])) for row in picks]
    return chosen, solution.objective, solution.bound


def state_moves(curves: list[Curve], budget: Budget) -> tuple[Programme, list[list[Expression]]]:
    """Write the programme: one point a layer, the sum of busiest over mean least.

    Args:
        curves: moves and busiest over mean of each point, by layer.
        budget: what all layers may change together.
    """
    programme = Programme("moves", maximise=False)
    picks = [
        [programme.binary(f"take_{i}_{k}") for k in range(len(curve))]
        for i, curve in enumerate(curves)
    ]
    taken = [(pick, point, float(budget.expert_bytes[i]))
             for i, (row, curve) in enumerate(zip(picks, curves, strict=True))
             for pick, point in zip(row, curve, strict=True)]  # fmt: skip
    for i, row in enumerate(picks):
        programme.require(f"one_{i}", programme.total([(pick, 1) for pick in row]) == 1)
    if budget.moves is not None:
        moves = programme.total([(pick, point[0]) for pick, point, _ in taken])
        programme.require("moves", moves <= budget.moves)
    if budget.moved_bytes is not None:
        share = [(pick, point[0] * size / max(budget.moved_bytes, 1.0))
                 for pick, point, size in taken]  # fmt: skip
        limit = min(budget.moved_bytes, 1.0)
        programme.require("moved_bytes", programme.total(share) <= limit * (1 + 1e-9))
    programme.objective(programme.total([(pick, point[1]) for pick, point, _ in taken]))
    return programme, picks


def _walk(start: Ints, rows: Array, speeds: Array, most: int, pins: Pins) -> Iterator[Ints]:
    """Layouts reached by the best single change each time: a copy given away, or two swapped."""
    layout = start.copy()
    value = busiest(layout, rows, speeds)
    yield layout
    for _ in range(STEPS):
        options = [*_copies(layout, rows, speeds), *_swap(layout, rows, speeds)]
        options = [option for option in options if pins.tags(option[1]) is not None]
        if not options:
            return
        found, after = min(options, key=lambda option: option[0])
        if found >= value - 1e-12 or moved(start, after) > most:
            return
        layout, value = after, found
        yield layout


Option = tuple[float, Ints]


def _copies(layout: Ints, rows: Array, speeds: Array) -> Iterator[Option]:
    """A slot of a cold expert with copies to spare goes to the expert with most load per copy."""
    counts = np.bincount(layout.ravel(), minlength=rows.shape[1])
    load = rows.max(axis=0)
    hot = np.argsort(-(load / counts), kind="stable")[:HOT]
    spare = np.where(counts > 1, load / np.maximum(counts - 1, 1), np.inf)
    for cold in np.argsort(spare, kind="stable")[:COLD]:
        if not np.isfinite(spare[cold]):
            return
        for device, slot in np.argwhere(layout == cold):
            for expert in hot:
                if expert not in layout[device]:
                    after = layout.copy()
                    after[device, slot] = expert
                    yield busiest(after, rows, speeds), after


def _swap(layout: Ints, rows: Array, speeds: Array) -> Iterator[Option]:
    """The best swap between the fullest device and any other."""
    loads = device_loads(layout, rows, speeds)
    counts = np.bincount(layout.ravel(), minlength=rows.shape[1])
    each = rows / np.maximum(counts, 1) * len(speeds)
    fullest = int(loads.max(axis=0).argmax())
    swap = best_swap(layout, each, (loads, speeds), fullest)
    if swap is not None:
        mine, device, theirs = swap
        after = layout.copy()
        after[fullest, mine], after[device, theirs] = layout[device, theirs], layout[fullest, mine]
        yield busiest(after, rows, speeds), after


def aligned(old: Ints, new: Ints, speeds: Array) -> Ints:
    """Give each new device the label of the old one it shares most experts with, where equal."""
    if not np.allclose(speeds, speeds[0]):
        return new
    devices = len(old)
    experts = int(max(old.max(), new.max())) + 1
    held, wanted = (np.zeros((devices, experts)) for _ in range(2))
    held[np.arange(devices)[:, None], old] = 1
    wanted[np.arange(devices)[:, None], new] = 1
    common = held @ wanted.T
    result = np.empty_like(new)
    for flat in np.argsort(-common, axis=None, kind="stable"):
        label, device = divmod(int(flat), devices)
        if np.isfinite(common[label, device]):
            result[label] = new[device]
            common[label, :] = common[:, device] = -np.inf
    return result
