"""Distinct plans side by side: the best few, the trade with TPOT by cuts, why the second lost."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl

from planner.plan import LayoutOf, Option, OptionPool, ParetoPlan
from planner.quantities import Estimate, Source
from planner.scenario import Scenario
from planner.search.assignment import Choice, choose
from planner.search.explanation import greater_is_better, objective_value
from planner.timing.serving import SIDES

Row = dict[str, Any]
Parts = list[tuple[int, Row]]
"""Workers and row of each pool."""
SAME = ("machine", "variant", "role", "tp", "dp", "pp", "moe_tp", "moe_ep")
"""Plans whose main pool agrees in these are one plan at another batch."""
CUT = 1e-9
"""How far under the last TPOT the next plan must be, as a share."""
UNIT = {"cost": "USD per million tokens", "energy": "J per token", "latency": "s a request"}
WEIGHED = {"cost": "USD/h", "energy": "W"}


def estimate_of(row: Row, name: str, source: Source) -> Estimate:
    """A quantity of a candidate with its interval."""
    low, typical, high = (row[f"{name}_{side}"] for side in SIDES)
    return Estimate(typical=typical, low=low, high=high, source=source)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate times a number."""
    return estimate.model_copy(update={side: getattr(estimate, side) * factor for side in SIDES})


def inverse(estimate: Estimate) -> Estimate:
    """One over an estimate."""
    return Estimate(typical=1 / estimate.typical, low=1 / estimate.high, high=1 / estimate.low,
                    source=estimate.source)  # fmt: skip


def machine_of(scenario: Scenario, row: Row) -> str:
    """Name of the machine that a candidate lies on."""
    return scenario.on_machine(int(row["machine"])).cluster.name


def layout_of(row: Row) -> LayoutOf:
    """The layout of a candidate."""
    return LayoutOf(**{name: int(row[name]) for name in ("tp", "dp", "pp", "moe_tp", "moe_ep")})


def parts_of(table: pl.DataFrame, choice: Choice) -> Parts:
    """Workers and row of every pool of a choice."""
    return [(pick.workers, table.row(pick.row, named=True)) for pick in choice.picks]


def served(parts: Parts, source: Source) -> Estimate:
    """Requests per second of workers that pass requests on: the slower pool, side by side."""
    values = {
        side: min(workers * row[f"request_rate_{side}"] for workers, row in parts) for side in SIDES
    }
    return Estimate(**values, source=source)


def ranked(
    scenario: Scenario, table: pl.DataFrame, choice: Choice, source: Source
) -> tuple[list[Option], str | None]:
    """The choice first, then the next best: the programme again without the layouts shown.

    Returns:
        The options, and why the second lost.
    """
    options: list[Option] = []
    first, why = parts_of(table, choice), None
    current: Choice | None = choice
    left = table.filter(pl.col("broken").is_null())
    while current is not None and len(options) < scenario.options:
        parts = parts_of(table, current)
        options.append(option_of(scenario, parts, len(options) + 1, source))
        if len(options) == 2:  # noqa: PLR2004 - the second
            values = [objective_value(c, table, scenario) for c in (choice, current)]
            why = why_second(scenario, (first, parts), (values[0], values[1]))
        left = left.filter(~_same_layout(_main(parts)))
        current = choose(left, scenario) if len(options) < scenario.options else None
    return options, why


def _main(parts: Parts) -> Row:
    """The pool that decodes."""
    return next(row for _, row in parts if row["role"] != "prefill")


def _same_layout(row: Row) -> pl.Expr:
    """Candidates of the same role and layout as a row, whatever their batch."""
    return pl.all_horizontal(pl.col(key) == row[key] for key in SAME)


def option_of(scenario: Scenario, parts: Parts, rank: int, source: Source) -> Option:
    """Write one way to serve."""
    devices = _devices(parts)
    by_role = {row["role"]: row for _, row in parts}
    mode: Literal["agg", "disagg"] = "agg" if "agg" in by_role else "disagg"
    tpot = estimate_of(_main(parts), "tpot_s", source)
    rate = served(parts, source)
    return Option(
        rank=rank, mode=mode, devices=devices, pools=_pools(scenario, parts),
        ttft_s=estimate_of(by_role["agg" if mode == "agg" else "prefill"], "ttft_s", source),
        tpot_s=tpot,
        output_tokens_per_s=scaled(rate, scenario.workload.osl),
        output_tokens_per_s_per_device=scaled(rate, scenario.workload.osl / devices),
        output_tokens_per_s_per_user=inverse(tpot),
    )  # fmt: skip


def _devices(parts: Parts) -> int:
    return int(sum(workers * row["devices"] for workers, row in parts))


def _pools(scenario: Scenario, parts: Parts) -> tuple[OptionPool, ...]:
    return tuple(
        OptionPool(role=row["role"], machine=machine_of(scenario, row), workers=workers,
                   layout=layout_of(row), batch=int(row["batch"]),
                   variant=scenario.variants()[int(row["variant"])].label)
        for workers, row in parts
    )  # fmt: skip


def pareto_plans(
    scenario: Scenario, table: pl.DataFrame, source: Source
) -> tuple[tuple[ParetoPlan, ...], bool]:
    """Plans of the trade between objective and TPOT, slowest first, each under a cut of its own.

    After each plan the programme is asked again for less TPOT than it has; of plans equal in the
    objective the quickest is taken, so none found is beaten in both.

    Returns:
        The plans, and whether no further one exists.
    """
    found: list[ParetoPlan] = []
    left = table.filter(pl.col("broken").is_null())
    while len(found) < scenario.pareto:
        choice = choose(left, scenario)
        if choice is None:
            return tuple(found), True
        parts = parts_of(table, choice)
        option = option_of(scenario, parts, 1, source)
        plan = ParetoPlan(
            objective_value=objective_value(choice, table, scenario), tpot_s=option.tpot_s,
            ttft_s=option.ttft_s, devices=option.devices, pools=option.pools,
            output_tokens_per_s=option.output_tokens_per_s,
        )  # fmt: skip
        if found and _as_good(plan.objective_value, found[-1].objective_value):
            found.pop()  # as good and quicker, on more devices
        found.append(plan)
        most = option.tpot_s.typical * (1 - CUT)
        left = left.filter((pl.col("role") == "prefill") | (pl.col("tpot_s_typical") < most))
    return tuple(found), choose(left, scenario) is None


def _as_good(value: float, other: float) -> bool:
    """Whether a later plan, which cannot be better, is no worse."""
    return abs(value - other) <= EQUAL * abs(other)


EQUAL = 1e-6
"""Objectives within this share are equal: the weight of devices beside the rate."""


def why_second(scenario: Scenario, both: tuple[Parts, Parts], values: tuple[float, float]) -> str:
    """Say in one sentence with numbers what the second plan lacks.

    A pool serves devices times sequences a device over the seconds that a sequence holds its place;
    the factor that lost most is named.
    """
    first, second = both
    unit = _unit(scenario)
    change = values[1] / values[0] - 1
    word = f"{abs(change):.1%} {'less' if change < 0 else 'more'}" if abs(change) > TIE else "as"
    much = f"{float(f'{values[1]:.4g}'):,.10g} {unit}, {word} " + (
        "than" if word != "as" else "much as"
    )
    return f"{_named(second)} gives {much} {_named(first)}: {_reason(first, second)}"


TIE = 5e-4
"""Plans this close in the objective are called equal."""


def _unit(scenario: Scenario) -> str:
    if greater_is_better(scenario):
        return "output tokens/s"
    if scenario.workload.request_rate is not None and scenario.objective != "latency":
        return WEIGHED.get(scenario.objective, "devices")
    return UNIT[scenario.objective]


def _named(parts: Parts) -> str:
    return " + ".join(
        f"{workers} × {row['role']} {layout_of(row).label()} B{int(row['batch'])}"
        for workers, row in parts
    )


def _reason(first: Parts, second: Parts) -> str:
    one, other = (_factors(parts) for parts in (first, second))
    losses = {
        "devices": other["devices"] / one["devices"],
        "places": other["places"] / one["places"],
        "seconds": one["seconds"] / other["seconds"],
    }
    worst = min(losses, key=lambda name: losses[name])
    said = {
        "devices": f"its slower pool works on {other['devices']:.0f} devices, not "
        f"{one['devices']:.0f}",
        "places": f"its slower pool holds {other['places']:.1f} sequences a device, not "
        f"{one['places']:.1f}",
        "seconds": f"a sequence holds its place there for {other['seconds']:.3g} s, not "
        f"{one['seconds']:.3g} s",
    }
    return said[worst]


def _factors(parts: Parts) -> dict[str, float]:
    """What makes the rate of the slower pool."""
    workers, row = min(parts, key=lambda part: part[0] * part[1]["request_rate_typical"])
    return {
        "devices": workers * row["devices"],
        "places": row["inflight"] / row["devices"],
        "seconds": row["inflight"] / row["request_rate_typical"],
    }
