"""Why the answer is what it is: limits that bind, and limits that cannot be met."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.scenario import Limits, Scenario
from planner.search.assignment import (
    LATENCY,
    SHARED,
    THROUGHPUT,
    WEIGHT,
    Choice,
    choose,
    device_limit,
    request_s,
    state_programme,
    weights_of,
    within_limits,
)
from planner.search.conflicts import relaxations, smallest_conflict, with_limit
from planner.search.dominance import undominated

GIB = 2.0**30
LIMITS = ("ttft_s", "tpot_s", "memory_share")
"""Limits that a single candidate can break."""


def served_rate(choice: Choice, table: pl.DataFrame) -> float:
    """Requests per second of a choice at typical values: the slower of its pools.

    Args:
        choice: the programme's answer.
        table: all candidates, in the order of their key `row`.
    """
    by_role: dict[str, float] = {}
    for pick in choice.picks:
        rate = table.item(pick.row, "request_rate_typical")
        by_role[pick.role] = by_role.get(pick.role, 0.0) + pick.workers * rate
    return min(by_role.values())


@dataclass(frozen=True)
class Bound:
    """A limit that holds the answer back."""

    limit: str
    value: float
    without_rate: float | None
    """Requests per second without it; none where it cannot be dropped."""
    more_rate: float
    """With 1 % more of it."""
    more_objective: float
    """What `objective_value` would be with 1 % more of it."""
    without_objective: float | None
    """And without it."""


def objective_value(choice: Choice, table: pl.DataFrame, scenario: Scenario) -> float:
    """What a choice is worth in the objective's own unit.

    Output tokens per second; under a given rate devices, dollars an hour or watts; else dollars a
    million tokens or joules a token; seconds of a whole request.
    """
    rows = {pick.row: table.row(pick.row, named=True) for pick in choice.picks}
    osl = scenario.workload.osl
    if scenario.objective == LATENCY:
        return sum(request_s(rows[pick.row], osl) for pick in choice.picks)
    column = WEIGHT.get(scenario.objective)
    spent = sum(
        pick.workers * rows[pick.row]["devices"] * (rows[pick.row][column] if column else 1.0)
        for pick in choice.picks
    )
    if scenario.workload.request_rate is not None:
        return float(spent)
    tokens = served_rate(choice, table) * osl
    if column is None:
        return tokens
    return float(spent / tokens * (1e6 / 3600 if scenario.objective == "cost" else 1.0))


def greater_is_better(scenario: Scenario) -> bool:
    """Whether more of `objective_value` is wanted."""
    return scenario.workload.request_rate is None and scenario.objective not in (*WEIGHT, LATENCY)


def binding_limits(table: pl.DataFrame, scenario: Scenario, choice: Choice) -> list[Bound]:
    """Limits without which the programme does better, and the devices there are."""
    now = objective_value(choice, table, scenario)
    rate = served_rate(choice, table)
    broken = set(table["broken"].unique())
    found = []
    for limit in (*LIMITS, *(name for name, _, _ in SHARED)):
        value = getattr(scenario.limits, limit)
        if value is None or (limit in LIMITS and limit not in broken):
            continue
        freed = _solved(table, with_limit(scenario, limit, None))
        if freed is None or not _better(freed[1], now, scenario):
            continue
        eased = _solved(table, with_limit(scenario, limit, value * 1.01))
        more = eased if eased is not None and _better(eased[1], now, scenario) else (rate, now)
        found.append(Bound(limit, value, freed[0], *more, freed[1]))
    return found + _devices_bind(table, scenario, now, rate)


def _solved(table: pl.DataFrame, scenario: Scenario) -> tuple[float, float] | None:
    """Requests per second and objective under other limits."""
    choice = choose(within_limits(table.drop("broken"), scenario), scenario)
    if choice is None:
        return None
    return served_rate(choice, table), objective_value(choice, table, scenario)


def _better(value: float, now: float, scenario: Scenario) -> bool:
    sign = 1.0 if greater_is_better(scenario) else -1.0
    return sign * (value - now) > 1e-6 * abs(now)


def _devices_bind(table: pl.DataFrame, scenario: Scenario, now: float, rate: float) -> list[Bound]:
    """What the relaxed programme pays for devices, since whole workers need many at once."""
    if not greater_is_better(scenario):
        return []
    allowed = table.filter(pl.col("broken").is_null())
    columns = undominated(allowed, scenario.workload.concurrency)
    programme, _ = state_programme(columns, weights_of(columns, scenario), scenario)
    prices = programme.relax().shadow_prices
    found = []
    most = device_limit(scenario)
    price = sum(value for name, value in prices.items() if name.startswith("devices"))
    if price * most > 1e-6 * rate:
        more = price * most * 0.01
        found.append(Bound("devices", float(most), None, rate + more,
                           now + more * scenario.workload.osl, None))  # fmt: skip
    return found


def why_infeasible(table: pl.DataFrame, scenario: Scenario) -> MoesaicError:
    """Name the limit that cannot be met and the nearest value that could be."""
    if table.is_empty():
        return MoesaicError("infeasible", "no legal layout of this model fits these devices")
    reasons = [
        text
        for limit, best in _nearest(table, scenario)
        if (text := _miss(limit, best, scenario.limits)) is not None
    ]
    if not reasons:
        reasons = [_too_much(table, scenario)]
    conflict = smallest_conflict(table, scenario)
    if len(conflict) > 1:
        reasons.append(f"in conflict: {' and '.join(conflict)}")
    reasons += [cheapest.text() for cheapest in relaxations(table, scenario, conflict)[:1]]
    return MoesaicError("infeasible", "; ".join(reasons), "/limits")


def _too_much(table: pl.DataFrame, scenario: Scenario) -> str:
    """The asked load is too high: say which load these devices hold within the limits."""
    work = scenario.workload
    asked = f"request_rate {work.request_rate}" if work.request_rate else ""
    asked = asked or f"concurrency {work.concurrency}"
    free = work.model_copy(update={"request_rate": None, "concurrency": None})
    rate_first = {"workload": free, "objective": THROUGHPUT}
    most = choose(table, scenario.model_copy(update=rate_first))
    said = f"{asked} cannot be served on {device_limit(scenario)} devices within the limits"
    if most is None:
        return said
    held = table.filter(pl.col("row").is_in([p.row for p in most.picks if p.role != "prefill"]))
    inflight = sum(p.workers for p in most.picks if p.role != "prefill") * held["inflight"][0]
    rate = served_rate(most, table)
    return f"{said}; the most is {rate:.3g} requests/s with {inflight:.0f} requests in flight"


def _nearest(table: pl.DataFrame, scenario: Scenario) -> list[tuple[str, float]]:
    """The best value of each limited quantity among candidates that keep the other limits."""
    side = scenario.limits.side
    columns = {
        "memory_share": "excess_bytes",
        "ttft_s": f"ttft_s_{side}",
        "tpot_s": f"tpot_s_{side}",
    }
    room = pl.col("capacity_bytes") * scenario.limits.memory_share
    table = table.with_columns((pl.col("total_bytes") - room).alias("excess_bytes"))
    best = []
    for limit, column in columns.items():
        if getattr(scenario.limits, limit) is None:
            continue
        freed = within_limits(table.drop("broken"), with_limit(scenario, limit, None))
        kept = freed.filter(pl.col("broken").is_null())[column].drop_nulls()
        whole = table[column].drop_nulls()
        values = kept if len(kept) else whole
        if len(values):
            best.append((limit, float(values.min())))  # type: ignore[arg-type] # a float column
    return best


def _miss(limit: str, best: float, limits: Limits) -> str | None:
    if limit == "memory_share":
        if best <= 0:
            return None
        return (
            f"memory: the smallest candidate needs {best / GIB:.1f} GiB a device more than the "
            f"{limits.memory_share:.0%} of its memory that may be filled"
        )
    value = getattr(limits, limit)
    if best <= value:
        return None
    name = limit.removesuffix("_s").upper()
    return (
        f"{name}: the best that keeps the other limits is {best * 1e3:.1f} ms at the "
        f"{limits.side} estimate, {(best / value - 1):.0%} above the limit of {value * 1e3:.1f} ms"
    )
