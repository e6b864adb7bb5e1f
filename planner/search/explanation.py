"""Why the answer is what it is: limits that bind, and limits that cannot be met."""

from __future__ import annotations

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.scenario import Limits, Scenario
from planner.search.assignment import Choice, choose, device_limit, within_limits
from planner.search.conflicts import relaxations, smallest_conflict, with_limit

GIB = 2.0**30
LIMITS = ("ttft_s", "tpot_s", "memory_share")
"""Limits that a single candidate can break."""


def served_rate(choice: Choice, table: pl.DataFrame) -> float:
    """Requests per second of a choice at typical values: the slower of its pools."""
    rows = table.filter(pl.col("row").is_in([pick.row for pick in choice.picks]))
    rate = dict(zip(rows["row"], rows["request_rate_typical"], strict=True))
    by_role: dict[str, float] = {}
    for pick in choice.picks:
        by_role[pick.role] = by_role.get(pick.role, 0.0) + pick.workers * rate[pick.row]
    return min(by_role.values())


def binding_limits(
    table: pl.DataFrame, scenario: Scenario, rate: float
) -> list[tuple[str, float, float, float]]:
    """Limits without which the programme serves more.

    Returns:
        Name, value, requests per second without it and with 1 % more of it.
    """
    found = []
    for limit in LIMITS:
        value = getattr(scenario.limits, limit)
        if value is None or not _breaks(table, scenario, limit):
            continue
        freed = with_limit(scenario, limit, None)
        choice = choose(within_limits(table.drop("broken"), freed), freed)
        if choice is not None and (better := served_rate(choice, table)) > rate * (1 + 1e-6):
            found.append((limit, value, better, _with_more(table, scenario, limit, rate)))
    return found


def _with_more(table: pl.DataFrame, scenario: Scenario, limit: str, rate: float) -> float:
    """Requests per second with 1 % more of a limit; never fewer than without."""
    eased = with_limit(scenario, limit, getattr(scenario.limits, limit) * 1.01)
    choice = choose(within_limits(table.drop("broken"), eased), eased)
    return rate if choice is None else max(rate, served_rate(choice, table))


def _breaks(table: pl.DataFrame, scenario: Scenario, limit: str) -> bool:
    """Whether any candidate is lost to this limit alone."""
    freed = within_limits(table.drop("broken"), with_limit(scenario, limit, None))
    return freed["broken"].null_count() > table["broken"].null_count()


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
    most = choose(table, scenario.model_copy(update={"workload": free}))
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
