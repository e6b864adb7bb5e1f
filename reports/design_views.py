"""A design question's answer turned into exactly what a page or a terminal says."""

from __future__ import annotations

from planner.design_plan import DesignPlan, DesignPoint
from reports.charts import Point
from reports.views import number

HEADERS = ["design", "total B", "active B", "tokens/s/device", "TPOT ms", "layout"]
BILLION = 1e9


def title(plan: DesignPlan) -> str:
    """The question in a line."""
    question = plan.question
    limit = number((question.limits.tpot_s or 0.0) * 1e3)
    return f"Models like {question.base.name} under TPOT {limit} ms on {question.cluster.title}"


def _rate(point: DesignPoint) -> str:
    return number(point.output_tokens_per_s_per_device.typical)


def headline(plan: DesignPlan) -> str:
    """Where the base stands among designs no smaller than it."""
    counted = f"{plan.feasible_count} of {plan.designs_count} designs keep the limits"
    base, rival = plan.base, plan.rival
    if base is None:
        return f"{counted}; {plan.question.base.name} itself does not"
    stands = f"{base.name} gives {_rate(base)} tokens/s/device"
    if rival is None or plan.base_distance_ratio is None:
        return f"{counted}; {stands}, and none is as large and as deep"
    if plan.base_distance_ratio <= 0:
        return f"{counted}; {stands}, the fastest of those as large and as deep"
    return (
        f"{counted}; {stands}, {plan.base_distance_ratio:.1%} below the fastest of those as large "
        f"and as deep ({rival.name}: {_rate(rival)})"
    )


def frontier_rows(plan: DesignPlan) -> list[list[str]]:
    """One row a design of the frontier, then the base."""
    named = [*plan.frontier, *([plan.base] if plan.base is not None else [])]
    return [
        [point.name, number(point.total_parameters / BILLION),
         number(point.active_parameters / BILLION), _rate(point),
         number(point.tpot_s.typical * 1e3), f"{point.layout.label()} B{point.batch}"]
        for point in named
    ]  # fmt: skip


def marks(plan: DesignPlan) -> list[Point]:
    """Marks of the plot: frontier, rival and base."""
    found: list[Point] = [_mark(point, "meets") for point in plan.frontier]
    found += [_mark(plan.rival, "misses")] if plan.rival is not None else []
    return found + ([_mark(plan.base, "chosen")] if plan.base is not None else [])


def _mark(point: DesignPoint, kind: str) -> Point:
    at = point.active_parameters / BILLION, point.output_tokens_per_s_per_device.typical
    return (*at, kind, f"{point.name}: {number(at[0])} B active, {number(at[1])} tokens/s/device")
