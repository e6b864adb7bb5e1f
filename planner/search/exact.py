"""Copies and devices of one small layer in one programme, where the packing's bound is loose.

    minimise   F        F: busiest device over the mean
    subject to Σ_r n_er = 1                        expert e has r copies
               Σ_d at_erd = r n_er, at_erd <= n_er   on r different devices
               Σ_er at_erd = slots of a device
               Σ_er (load_et / r) at_erd <= F speed_d   for each device d and trace t
Expert counts above a dozen make it slower than the packing and no better; `SMALL` says where.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.packing import Packing, busiest
from planner.search.pins import Pins
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
SMALL = 48
"""Slots times devices up to which the programme is tried."""
NODES = 3000
"""Of the branching tree; most small layers end with a proof before."""
TIME_LIMIT_S = 120.0
"""Never reached on small layers; the nodes end first, so that answers do not depend on speed."""
Share = dict[tuple[int, int], tuple[Expression, list[Expression]]]


def small(packing: Packing) -> bool:
    """Whether a layer is worth the programme."""
    return packing.experts.size * len(packing.experts) <= SMALL


def tightened(packing: Packing, weights: Array, speeds: Array, pins: Pins) -> Packing:
    """The best layout of a small layer and its bound, from a packing of it.

    Args:
        packing: what is known so far; its value cuts choices that cannot be better.
        weights: [traces, experts], rows sum to one.
        speeds: relative speed of each device, mean one.
        pins: copies that must stand somewhere.
    """
    slots = packing.experts.size
    programme, picks = state_layer(weights, slots, speeds, packing.max_over_mean, pins)
    solution = programme.attempt(most_nodes=NODES, time_limit_s=TIME_LIMIT_S)
    if solution is None:
        return packing
    if solution.status == "open":
        return Packing(packing.experts, packing.max_over_mean, max(packing.bound, solution.bound))
    if not solution.values:
        return Packing(packing.experts, packing.max_over_mean, packing.max_over_mean)
    held: list[list[int]] = [[] for _ in speeds]
    for (expert, _), (_, places) in picks.items():
        for device, place in enumerate(places):
            if solution.values[str(place)] > 0.5:  # noqa: PLR2004 - a binary
                held[device].append(expert)
    layout = np.array(held)
    value = busiest(layout, weights, speeds)
    bound = min(max(packing.bound, solution.bound), packing.max_over_mean)
    if value >= packing.max_over_mean or pins.tags(layout) is None:
        return Packing(packing.experts, packing.max_over_mean, bound)
    return Packing(layout, value, min(bound, value))


def state_layer(
    weights: Array, slots: int, speeds: Array, known: float, pins: Pins
) -> tuple[Programme, Share]:
    """Write the programme; `known` is the busiest over mean of some layout."""
    devices, experts = len(speeds), weights.shape[1]
    programme = Programme("layer", maximise=False)
    picks = _copies(programme, weights, (slots, devices), known * float(speeds.max()))
    fullest = programme.number("fullest", 1)
    for expert in range(experts):
        counts = [(pick, 1) for (e, _), (pick, _) in picks.items() if e == expert]
        programme.require(f"one_{expert}", programme.total(counts) == 1)
    for device in range(devices):
        held = [(places[device], 1) for _, places in picks.values()]
        programme.require(f"slots_{device}", programme.total(held) == slots // devices)
        for trace, row in enumerate(weights):
            load = [(places[device], float(row[e]) / r * devices)
                    for (e, r), (_, places) in picks.items() if row[e] > 0]  # fmt: skip
            most = [*load, (fullest, -float(speeds[device]))]
            programme.require(f"load_{device}_{trace}", programme.total(most) <= 0)
    _pinned(programme, picks, pins)
    programme.objective(programme.total([(fullest, 1)]))
    return programme, picks


def _copies(programme: Programme, weights: Array, shape: tuple[int, int], most: float) -> Share:
    """Variables for each expert and number of copies; copies larger than `most` are left out."""
    slots, devices = shape
    experts = weights.shape[1]
    picks: Share = {}
    for expert in range(experts):
        for copies in range(1, min(devices, slots - experts + 1) + 1):
            if float(weights[:, expert].max()) / copies * devices > most * (1 + 1e-9):
                continue
            pick = programme.binary(f"copies_{expert}_{copies}")
            places = [programme.binary(f"at_{expert}_{copies}_{d}") for d in range(devices)]
            count = programme.total([*((x, 1) for x in places), (pick, -copies)])
            programme.require(f"count_{expert}_{copies}", count == 0)
            for device, place in enumerate(places):
                programme.require(
                    f"only_{expert}_{copies}_{device}",
                    programme.total([(place, 1), (pick, -1)]) <= 0,
                )
            picks[expert, copies] = pick, places
    return picks


def _pinned(programme: Programme, picks: Share, pins: Pins) -> None:
    """Each pin has a copy; pins of one expert with the same devices need as many."""
    asked: dict[tuple[int, bytes], int] = {}
    for expert, allowed in zip(pins.experts.tolist(), pins.allowed, strict=True):
        asked[expert, allowed.tobytes()] = asked.get((expert, allowed.tobytes()), 0) + 1
    for number, ((expert, allowed), count) in enumerate(asked.items()):
        devices = np.flatnonzero(np.frombuffer(allowed, dtype=bool))
        here = [(places[d], 1) for (e, _), (_, places) in picks.items() if e == expert
                for d in devices]  # fmt: skip
        programme.require(f"pin_{number}", programme.total(here) >= count)
