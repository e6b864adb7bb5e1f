"""The limits of a scenario, which of them contradict each other, and which is cheapest to relax."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import polars as pl

from planner.scenario import Scenario
from planner.search import reasons
from planner.search.assignment import choose, within_limits
from planner.search.reasons import Limit, Relaxation

GREATER = ("ttft_s", "tpot_s", "memory_share", "devices", "power_w", "usd_per_hour",
           "configurations")  # fmt: skip
WHOLE = ("devices", "concurrency", "spare_workers", "configurations")
"""Limits that a greater value relaxes; a smaller one relaxes the others."""
SMALLER = ("request_rate", "concurrency", "spare_workers")
END = {"memory_share": 1.0, "concurrency": 1.0, "spare_workers": 0.0}
"""Beyond which a limit means nothing."""


def active_limits(scenario: Scenario) -> dict[str, float]:
    """Limits that the question states, by name."""
    found = {}
    for name in (*GREATER, *SMALLER):
        value = getattr(_holder(scenario, name), name)
        if value:
            found[name] = float(value)
    return found


def _limits(scenario: Scenario) -> list[Limit[Scenario]]:
    return [
        Limit(name, value, _changing(name), name in GREATER, float(name in WHOLE), END.get(name))
        for name, value in active_limits(scenario).items()
    ]


def _changing(name: str) -> Callable[[Scenario, float | None], Scenario]:
    return lambda scenario, value: with_limit(scenario, name, value)


def _holder(scenario: Scenario, name: str) -> Any:  # noqa: ANN401 - limits or workload
    return scenario.workload if name in ("request_rate", "concurrency") else scenario.limits


def with_limit(scenario: Scenario, name: str, value: float | None) -> Scenario:
    """The same question with another value of one limit; none: without it."""
    whole = name in WHOLE
    plain: float | None = value
    if name == "memory_share":
        plain = 1.0 if value is None else min(value, 1.0)
    elif name == "spare_workers" and value is None:
        plain = 0
    elif whole and value is not None:
        # A step that does not reach the next whole number must not tighten the limit.
        plain = math.floor(value + 1e-9)
    part = "workload" if name in ("request_rate", "concurrency") else "limits"
    changed = getattr(scenario, part).model_copy(update={name: plain})
    return scenario.model_copy(update={part: changed})


def feasible(table: pl.DataFrame, scenario: Scenario) -> bool:
    """Whether any plan keeps every limit.

    Args:
        table: candidates, `broken` ignored.
        scenario: the question.
    """
    plain = table.drop("broken", strict=False)
    return choose(within_limits(plain, scenario), scenario) is not None


def smallest_conflict(table: pl.DataFrame, scenario: Scenario) -> tuple[str, ...]:
    """The fewest limits that cannot be kept together, all others dropped.

    Empty when even no limit at all leaves nothing feasible.
    """
    return reasons.smallest_conflict(scenario, _limits(scenario), partial(feasible, table))


def relaxations(
    table: pl.DataFrame, scenario: Scenario, names: tuple[str, ...]
) -> list[Relaxation]:
    """For each limit whose relaxing alone helps, the nearest value that does; cheapest first."""
    asked = [limit for limit in _limits(scenario) if limit.name in names]
    return reasons.relaxations(scenario, asked, partial(feasible, table))
