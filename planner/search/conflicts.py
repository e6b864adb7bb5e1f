"""Which named limits contradict each other, and which one is cheapest to relax."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from planner.scenario import Scenario
from planner.search.assignment import choose, within_limits

GREATER = ("ttft_s", "tpot_s", "memory_share", "devices", "power_w", "usd_per_hour",
           "configurations")  # fmt: skip
WHOLE = ("devices", "concurrency", "spare_workers", "configurations")
"""Limits that a greater value relaxes; a smaller one relaxes the others."""
SMALLER = ("request_rate", "concurrency", "spare_workers")
DOUBLINGS, HALVINGS = 14, 8
"""Steps of the search: up to 2^14 times the limit, to 2^(1 / 2^8), which is 0.3 %."""


@dataclass(frozen=True)
class Relaxation:
    """The nearest value of one limit that makes the question feasible, the others kept."""

    limit: str
    value: float
    asked: float

    @property
    def change_ratio(self) -> float:
        """How far the value is from the asked one, as a share of the lesser."""
        low, high = sorted((self.value, self.asked))
        return high / low - 1 if low > 0 else math.inf

    def text(self) -> str:
        """Say it in a line."""
        scale, unit = (1e3, " ms") if self.limit.endswith("_s") else (1.0, "")
        asked, value = self.asked * scale, self.value * scale
        return f"{self.limit} {value:.4g}{unit} in place of {asked:.4g}{unit} would do"


def active_limits(scenario: Scenario) -> dict[str, float]:
    """Limits that the question states, by name."""
    found = {}
    for name in (*GREATER, *SMALLER):
        value = getattr(_holder(scenario, name), name)
        if value:
            found[name] = float(value)
    return found


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
    names = tuple(active_limits(scenario))
    for size in range(len(names) + 1):
        for kept in itertools.combinations(names, size):
            asked = scenario
            for name in set(names) - set(kept):
                asked = with_limit(asked, name, None)
            if not feasible(table, asked):
                return kept
    return ()


def relaxations(
    table: pl.DataFrame, scenario: Scenario, names: tuple[str, ...]
) -> list[Relaxation]:
    """For each limit whose relaxing alone helps, the nearest value that does; cheapest first."""
    asked = active_limits(scenario)
    found = [
        Relaxation(name, value, asked[name])
        for name in names
        if (value := _nearest(table, scenario, name, asked[name])) is not None
    ]
    return sorted(found, key=lambda r: (r.change_ratio, r.limit))


def _nearest(table: pl.DataFrame, scenario: Scenario, name: str, asked: float) -> float | None:
    """Double the factor until it helps, then halve the interval on a logarithmic scale."""
    if not feasible(table, with_limit(scenario, name, None)):
        return None
    sign = 1 if name in GREATER else -1

    def value(power: float) -> float:
        moved = asked * math.exp2(sign * power)
        return min(moved, 1.0) if name == "memory_share" else moved

    def works(power: float) -> bool:
        moved = value(power)
        if name == "concurrency" and moved < 1:
            return False
        return feasible(table, with_limit(scenario, name, moved))

    high = next((float(p) for p in range(1, DOUBLINGS + 1) if works(p)), None)
    if high is None:
        return None
    low = high - 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if works(middle) else (middle, high)
    found = value(high)
    whole = name in WHOLE
    return float(math.floor(found + 1e-9)) if whole else found
