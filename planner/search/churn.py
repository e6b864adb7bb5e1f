"""At most so many moves from today's layout: paths of improving moves, a programme over them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.search.packing import Packing, best_swap, busiest, device_loads
from planner.search.solver import Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS = 60
"""Points of one layer's path at most."""
HOT, COLD = 2, 4
"""Experts with the most load per copy that a step tries to copy, and coldest that give one up."""


def moved(old: Ints, new: Ints) -> int:
    """Slots whose expert the device did not hold before."""
    return sum(
        len(set(after.tolist()) - set(before.tolist()))
        for before, after in zip(old, new, strict=True)
    )


def limit_moves(
    today: list[Ints], ideal: list[Packing], shares: Array, speeds: Array, most: int
) -> list[Packing]:
    """Choose how far each layer walks from today's layout, all walks together at most `most` moves.

    Args:
        today: layout of each layer, [devices, slots].
        ideal: unrestricted packing of each layer; taken whole where its moves fit.
        shares: [traces, layers, experts].
        speeds: relative speed of each device.
        most: slots that may change.
    """
    paths = []
    for i, (old, best) in enumerate(zip(today, ideal, strict=True)):
        rows = shares[:, i]
        layouts = [*_walk(old, rows, speeds, most), aligned(old, best.experts, speeds)]
        points = [(moved(old, x), busiest(x, rows, speeds), x) for x in layouts]
        paths.append(_useful([p for p in points if p[0] <= most]))
    chosen = _choose(paths, most)
    return [
        Packing(path[k][2], path[k][1], best.bound)
        for path, k, best in zip(paths, chosen, ideal, strict=True)
    ]


Path = list[tuple[int, float, Ints]]


def _useful(points: Path) -> Path:
    """Points that no other beats in moves and balance."""
    kept: Path = []
    for point in sorted(points, key=lambda p: (p[0], p[1])):
        if not kept or point[1] < kept[-1][1] - 1e-12:
            kept.append(point)
    return kept


def _choose(paths: list[Path], most: int) -> list[int]:
    """One point a layer, the sum of busiest over mean least, moves within the limit."""
    programme = Programme("moves", maximise=False)
    picks = [
        [programme.binary(f"take_{i}_{k}") for k in range(len(path))]
        for i, path in enumerate(paths)
    ]
    pairs = [(pick, point) for row, path in zip(picks, paths, strict=True)
             for pick, point in zip(row, path, strict=True)]  # fmt: skip
    for i, row in enumerate(picks):
        programme.require(f"one_{i}", programme.total([(pick, 1) for pick in row]) == 1)
    programme.require("moves", programme.total([(pick, p[0]) for pick, p in pairs]) <= most)
    programme.objective(programme.total([(pick, p[1]) for pick, p in pairs]))
    values = programme.solve(time_limit_s=20).values
    return [
        int(np.argmax([values[f"take_{i}_{k}"] for k in range(len(path))]))
        for i, path in enumerate(paths)
    ]


def _walk(start: Ints, rows: Array, speeds: Array, most: int) -> Iterator[Ints]:
    """Layouts reached by the best single change each time: a copy given away, or two swapped."""
    layout = start.copy()
    value = busiest(layout, rows, speeds)
    yield layout
    for _ in range(STEPS):
        options = [*_copies(layout, rows, speeds), *_swap(layout, rows, speeds)]
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
    swap = best_swap(layout, each, loads, speeds, fullest)
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
