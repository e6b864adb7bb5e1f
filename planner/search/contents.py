"""Layers of few slots a device, exactly: how many devices hold which copies.

    is there   Σ_c z_c = devices,  Σ_c∋(e,r) z_c = r n_er,  Σ_r n_er = 1     z, n whole
    over contents c: sets of copies (e, r), an r-th of expert e's load each, whose load is at most F
Equal devices are counted, not told apart, so that nothing is tried twice. The least F with an
answer is searched among the loads that contents have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.packing import Packing, busiest
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Copy = tuple[int, int]
MOST_TRIED = 60_000
"""Partial contents looked at; layers with more are left to the packing."""
MOST_CONTENTS = 1_500
NODES = 100
TIME_LIMIT_S = 20.0
EASE = 1e-9


def counted(packing: Packing, weights: Array) -> Packing:
    """The best layout on equal devices and its bound, from a packing; as it was where it is large.

    Args:
        packing: what is known so far.
        weights: [traces, experts], rows sum to one.
    """
    held = _contents(packing, weights)
    if held is None:
        return packing
    contents, loads = held
    levels = np.unique(loads[(loads < packing.max_over_mean - EASE)])
    levels = levels[levels >= packing.bound - EASE]
    low, high, bound, best = 0, len(levels), packing.bound, packing
    while low < high:
        middle = (low + high) // 2
        kept = [c for c, load in zip(contents, loads, strict=True) if load <= levels[middle]]
        programme, picks = state_contents(kept, packing.experts.shape[0], weights.shape[1])
        solution = programme.attempt(time_limit_s=TIME_LIMIT_S, most_nodes=NODES)
        if solution is None or solution.status == "open":
            return Packing(best.experts, best.max_over_mean, min(bound, best.max_over_mean))
        if not solution.values:
            low = middle + 1
            bound = float(levels[low]) if low < len(levels) else packing.max_over_mean
            continue
        high = middle
        rows = [[e for e, _ in c] for c, z in zip(kept, picks, strict=True)
                for _ in range(round(solution.values[str(z)]))]  # fmt: skip
        layout = np.array(rows)
        best = Packing(layout, busiest(layout, weights, np.ones(len(layout))), bound)
    return Packing(best.experts, best.max_over_mean, best.max_over_mean)


def state_contents(
    contents: list[tuple[Copy, ...]], devices: int, experts: int
) -> tuple[Programme, list[Expression]]:
    """Write the programme.

    Args:
        contents: what a device may hold: expert and number of its copies, for each slot.
        devices: how many.
        experts: of the layer.
    """
    programme = Programme("contents", maximise=False)
    picks = [programme.integer(f"held_{k}", 0, devices) for k in range(len(contents))]
    holding: dict[Copy, list[Expression]] = {}
    for pick, content in zip(picks, contents, strict=True):
        for copy in content:
            holding.setdefault(copy, []).append(pick)
    ways: list[list[Expression]] = [[] for _ in range(experts)]
    for (expert, copies), held in sorted(holding.items(), key=lambda item: item[0]):
        pick = programme.binary(f"copies_{expert}_{copies}")
        ways[expert].append(pick)
        total = programme.total([*((x, 1) for x in held), (pick, -copies)])
        programme.require(f"count_{expert}_{copies}", total == 0)
    nothing = programme.number("nothing", 0, 0)
    for expert, some in enumerate(ways):
        one = programme.total([*((x, 1) for x in some), (nothing, 1)]) == 1
        programme.require(f"one_{expert}", one)
    every = programme.total([*((x, 1) for x in picks), (nothing, 1)])
    programme.require("devices", every == devices)
    programme.objective(programme.total([(nothing, 1)]))
    return programme, picks


def _contents(packing: Packing, weights: Array) -> tuple[list[tuple[Copy, ...]], Array] | None:
    """What a device may hold and its busiest load over the mean; none: too many to look at."""
    devices, width = packing.experts.shape
    slots, experts = devices * width, weights.shape[1]
    most, top = min(slots - experts + 1, devices), packing.max_over_mean - EASE
    copies = [(e, r) for e in range(experts) for r in range(1, most + 1)
              if weights[:, e].max() * devices / r <= top]  # fmt: skip
    load = np.array([weights[:, e] * devices / r for e, r in copies]).reshape(-1, len(weights))
    # The others carry no more than `top` each, so that none can carry less than this.
    least = devices - (devices - 1) * top
    found: list[tuple[Copy, ...]] = []
    loads: list[float] = []
    stack: list[tuple[int, tuple[Copy, ...], Array]] = [(0, (), np.zeros(len(weights)))]
    tried = 0
    while stack:
        start, held, carried = stack.pop()
        if len(held) == width:
            if carried.min() >= least - EASE:
                found.append(held)
                loads.append(float(carried.max()))
            continue
        after = carried + load[start:]
        light: list[int] = np.flatnonzero((after <= top).all(axis=1)).tolist()
        fits = [k for k in light if not held or copies[start + k][0] != held[-1][0]]
        tried += len(fits)
        if tried > MOST_TRIED or len(found) > MOST_CONTENTS:
            return None
        stack += [(start + k + 1, (*held, copies[start + k]), after[k]) for k in fits]
    return found, np.array(loads)
