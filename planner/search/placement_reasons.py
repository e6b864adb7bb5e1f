"""Why a layout is no better: limits that bind, what more of each would give, and what lost."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.search.grouping import Groups
from planner.search.layer_placement import Clock, baseline
from planner.search.packing import device_loads, doubled
from planner.search.placement import place
from planner.search.placement_answer import Placement
from planner.search.placement_limits import limits
from planner.search.placement_question import Matrix, PlacementQuestion
from planner.search.reasons import Binding, bindings

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
WORTH_RATIO = 1e-3
"""Within this of the mean load no limit is said to hold a layout back."""
SAME_RATIO = 1e-9


def place_explained(question: PlacementQuestion, score: Matrix | None = None) -> Placement:
    """As `place`, with the limits that bind and why the runner-up lost.

    A layout as even as the mean has no limit to blame. Layers too large for one programme are asked
    again by swaps alone: what more of a limit gives is then the least it gives. Nothing is asked
    again once the time limit is reached.

    Raises:
        MoesaicError: as `place`.
    """
    clock = Clock(question.time_limit_s, time.perf_counter())
    answer = place(question, score)
    if answer.time_limit_reached:
        return answer
    runner_up = why_lost(question, answer)
    return answer.model_copy(
        update={"binding": _binding(question, answer, clock), "runner_up": runner_up}
    )


def _binding(question: PlacementQuestion, answer: Placement, clock: Clock) -> tuple[Binding, ...]:
    now = answer.objective_value
    if not answer.traffic and now <= 1 + WORTH_RATIO:
        return ()
    known = answer.physical_to_logical_map

    def again(asked: PlacementQuestion) -> float | None:
        left_s = clock.left_s()
        if not left_s:
            return None
        try:
            found = place(asked.model_copy(update={"time_limit_s": left_s}), known=known)
        except MoesaicError:
            return None
        return None if found.time_limit_reached else found.objective_value

    return bindings(question, limits(question), again, now)


def why_lost(question: PlacementQuestion, answer: Placement) -> str:
    """The best of the other layouts that were looked at, and what makes it worse."""
    if answer.traffic:
        return _crossed(answer)
    published = float(np.mean(answer.greedy.max_over_mean))
    before = float(np.mean([layer.max_over_mean_before for layer in answer.layers]))
    ours = float(np.mean([layer.max_over_mean for layer in answer.layers]))
    name = "the current map" if question.current is not None else "experts in order"
    if before < published:
        return f"{name}: busiest over mean {before:.4f} against {ours:.4f}, mean over layers"
    said = f"the published balancing: busiest over mean {published:.4f} against {ours:.4f}"
    if published <= ours * (1 + SAME_RATIO):
        return f"{said}, the same" if published >= ours * (1 - SAME_RATIO) else f"{said}{_broken}"
    return f"{said}, mean over layers; {_worst(question, answer)}"


_broken = ", but it does not keep the limits asked"


def _worst(question: PlacementQuestion, answer: Placement) -> str:
    """What the published balancing does in the layer where it is farthest behind."""
    lost = [there - here.max_over_mean for there, here in
            zip(answer.greedy.max_over_mean, answer.layers, strict=True)]  # fmt: skip
    most = int(np.argmax(lost))
    layer = answer.layers[most].layer
    rows = question.shares()[:, layer]
    if question.robust == "mean":
        rows = rows.mean(axis=0, keepdims=True)
    here = np.array(answer.physical_to_logical_map[layer])
    member = np.array(answer.groups[most]) if answer.groups else question.members()
    there = baseline(question, rows.mean(axis=0), here.size, Groups(member, question.groups))
    loads = device_loads(there, rows, question.relative_speeds())
    device = int(loads.max(axis=0).argmax())
    copies = np.bincount(there.ravel(), minlength=rows.shape[1])
    each = rows.max(axis=0) / copies * question.devices
    hot = int(max(there[device].tolist(), key=lambda expert: each[expert]))
    text = (
        f"in layer {layer} its device {device} carries {loads.max():.3f} times the mean, "
        f"{each[hot]:.3f} of it by expert {hot}, which has {_count(copies[hot])} there and "
        f"{_count(int((here == hot).sum()))} here"
    )
    return text + (", and it holds two copies of one expert on a device" if doubled(there) else "")


def _count(copies: int) -> str:
    return f"{copies} cop{'y' if copies == 1 else 'ies'}"


def _crossed(answer: Placement) -> str:
    """The layout that is only balanced, or the greedy that looks at no load."""
    ours, balanced, greedy, fullest = (
        float(np.mean([getattr(layer, name) for layer in answer.traffic]))
        for name in ("crossing", "crossing_before", "greedy", "greedy_max_over_mean")
    )
    what = "of pairs leave" if answer.traffic_measure == "pairs" else "visits a token"
    if greedy < balanced:
        return (
            f"experts largest first where they save most: {greedy:.4f} {what} against {ours:.4f}, "
            f"with a fullest node of {fullest:.3f} times what it should carry"
        )
    return f"the layout that is only balanced: {balanced:.4f} {what} against {ours:.4f}"
