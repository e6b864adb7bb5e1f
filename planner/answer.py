"""A choice written out as a plan: pools, estimates, ranking, rejections, frontier."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl

from planner.plan import (
    BindingLimit,
    FrontierPoint,
    LayoutOf,
    MemoryUse,
    Option,
    OptionPool,
    Plan,
    Pool,
    Proof,
    Rejected,
)
from planner.pricing import Priced
from planner.quantities import Estimate, Source
from planner.scenario import Scenario
from planner.search.assignment import Choice, broken_text, choose
from planner.search.explanation import binding_limits
from planner.timing.serving import SIDES
from planner.timing.step import stage_shares, weakest_source
from planner.work.memory import MEMORY

Row = dict[str, Any]
OPTIONS, REJECTED, FRONTIER = 6, 6, 160


def build_plan(
    scenario: Scenario, table: pl.DataFrame, priced: dict[int, Priced], choice: Choice
) -> Plan:
    """Write the answer.

    Args:
        scenario: the question.
        table: columns `row`, `CANDIDATE`, `broken`.
        priced: passes and timed sheet of each machine.
        choice: the programme's answer.
    """
    machines = {int(_row(table, pick.row)["machine"]) for pick in choice.picks}
    source = weakest_source(pl.concat([priced[m].timed for m in sorted(machines)]))
    options = _options(scenario, table, choice, source)
    best, solution = options[0], choice.solution
    rate = _served([(pool.workers, _row(table, pick.row)) for pool, pick in
                    zip(best.pools, choice.picks, strict=True)], source)  # fmt: skip
    osl = scenario.workload.osl
    return Plan(
        scenario_digest=scenario.digest(),
        scenario=scenario,
        mode=best.mode,
        pools=tuple(_pool(scenario, _row(table, p.row), p.workers, priced, source)
                    for p in choice.picks),
        devices=best.devices,
        ttft_s=best.ttft_s,
        tpot_s=best.tpot_s,
        output_tokens_per_s_per_device=best.output_tokens_per_s_per_device,
        output_tokens_per_s=_scaled(rate, osl),
        request_rate=rate,
        usd_per_million_tokens=_per_token(choice, table, "device_hour_usd", rate, 1e6 / 3600 / osl),
        energy_j_per_token=_per_token(choice, table, "device_w", rate, 1 / osl),
        options=tuple(options),
        binding=_binding(scenario, table, rate.typical, best.devices),
        rejected=_rejected(scenario, table, best),
        frontier=_frontier(scenario, table),
        proof=Proof(
            status="optimal" if solution.status == "optimal" else "feasible",
            objective=solution.objective, bound=solution.bound, gap_ratio=solution.gap_ratio,
            columns_count=choice.columns_count, candidates_count=table.height,
        ),
        assumptions=_assumptions(scenario, source),
        sources=_sources(scenario, machines),
    )  # fmt: skip


def _row(table: pl.DataFrame, key: int) -> Row:
    return table.row(key, named=True)


def row_estimate(row: Row, name: str, source: Source) -> Estimate:
    """A quantity of a candidate with its interval."""
    low, typical, high = (row[f"{name}_{side}"] for side in SIDES)
    return Estimate(typical=typical, low=low, high=high, source=source)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return estimate.model_copy(update={side: getattr(estimate, side) * factor for side in SIDES})


def _inverse(estimate: Estimate) -> Estimate:
    return Estimate(typical=1 / estimate.typical, low=1 / estimate.high, high=1 / estimate.low,
                    source=estimate.source)  # fmt: skip


def _per_token(
    choice: Choice, table: pl.DataFrame, column: str, rate: Estimate, factor: float
) -> Estimate | None:
    """Weight of all devices in use for each request served, times a factor; none if unknown."""
    rows = [(pick.workers, _row(table, pick.row)) for pick in choice.picks]
    if any(row[column] is None for _, row in rows):
        return None
    weight = sum(workers * row["devices"] * row[column] for workers, row in rows)
    return _scaled(_inverse(rate), weight * factor)


def _machine(scenario: Scenario, row: Row) -> str:
    return scenario.on_machine(int(row["machine"])).cluster.name


def layout_of(row: Row) -> LayoutOf:
    """The layout of a candidate."""
    return LayoutOf(**{name: int(row[name]) for name in ("tp", "dp", "pp", "moe_tp", "moe_ep")})


def _served(parts: list[tuple[int, Row]], source: Source) -> Estimate:
    """Requests per second of workers that pass requests on: the slower pool, side by side."""
    values = {
        side: min(workers * row[f"request_rate_{side}"] for workers, row in parts) for side in SIDES
    }
    return Estimate(**values, source=source)


def _options(
    scenario: Scenario, table: pl.DataFrame, choice: Choice, source: Source
) -> list[Option]:
    """The choice first, then the next best: the programme again without the layouts shown."""
    options: list[Option] = []
    current: Choice | None = choice
    left = table
    while current is not None and len(options) < OPTIONS:
        rows = [(pick.workers, _row(table, pick.row)) for pick in current.picks]
        options.append(_option(scenario, rows, len(options) + 1, source))
        main = next(row for _, row in rows if row["role"] != "prefill")
        left = left.filter(~_same_layout(main))
        current = choose(left, scenario)
    return options


def _same_layout(row: Row) -> pl.Expr:
    """Candidates of the same role and layout as a row, whatever their batch."""
    keys = ("machine", "role", "tp", "dp", "pp", "moe_tp", "moe_ep")
    return pl.all_horizontal(pl.col(key) == row[key] for key in keys)


def _option(scenario: Scenario, parts: list[tuple[int, Row]], rank: int, source: Source) -> Option:
    devices = int(sum(workers * row["devices"] for workers, row in parts))
    by_role = {row["role"]: row for _, row in parts}
    mode: Literal["agg", "disagg"] = "agg" if "agg" in by_role else "disagg"
    tpot = row_estimate(by_role["agg" if mode == "agg" else "decode"], "tpot_s", source)
    rate = _served(parts, source)
    return Option(
        rank=rank, mode=mode, devices=devices,
        pools=tuple(
            OptionPool(role=row["role"], machine=_machine(scenario, row), workers=workers,
                       layout=layout_of(row), batch=int(row["batch"]))
            for workers, row in parts
        ),
        ttft_s=row_estimate(by_role["agg" if mode == "agg" else "prefill"], "ttft_s", source),
        tpot_s=tpot,
        output_tokens_per_s=_scaled(rate, scenario.workload.osl),
        output_tokens_per_s_per_device=_scaled(rate, scenario.workload.osl / devices),
        output_tokens_per_s_per_user=_inverse(tpot),
    )  # fmt: skip


def _pool(
    scenario: Scenario, row: Row, workers: int, machines: dict[int, Priced], source: Source
) -> Pool:
    priced = machines[int(row["machine"])]
    points = {"decode": row["decode_point"], "prefill": row["prefill_point"]}
    held = points["decode"] if points["decode"] is not None else points["prefill"]
    use = priced.passes.row(held, named=True)
    buckets = {name: use[name] for name in MEMORY}
    grown = row["total_bytes"] - use["total_bytes"]
    buckets["activation_bytes"] += grown
    asked = [point for point in points.values() if point is not None]
    shares = stage_shares(priced.timed, priced.passes, asked)
    return Pool(
        role=row["role"], machine=_machine(scenario, row), workers=workers,
        devices_per_worker=int(row["devices"]),
        layout=layout_of(row), batch=int(row["batch"]), inflight=int(row["inflight"]),
        request_rate=row_estimate(row, "request_rate", source),
        memory=MemoryUse(**buckets, total_bytes=row["total_bytes"],
                         capacity_bytes=row["capacity_bytes"]),
        breakdown={
            phase: shares[point] for phase, point in points.items() if point is not None
        },
    )  # fmt: skip


def _binding(
    scenario: Scenario, table: pl.DataFrame, rate: float, devices: int
) -> tuple[BindingLimit, ...]:
    per_device = scenario.workload.osl / devices
    return tuple(
        BindingLimit(limit="memory" if name == "memory_share" else name, value=value,
                     without_output_tokens_per_s_per_device=better * per_device,
                     one_percent_more_output_tokens_per_s_per_device=more * per_device)
        for name, value, better, more in binding_limits(table, scenario, rate)
    )  # fmt: skip


def _per_device(scenario: Scenario) -> pl.Expr:
    return (pl.col("request_rate_typical") * scenario.workload.osl / pl.col("devices")).alias(
        "per_device"
    )


def _rejected(scenario: Scenario, table: pl.DataFrame, best: Option) -> tuple[Rejected, ...]:
    """The best candidate of each broken limit and role that looks better than the choice."""
    looks = best.output_tokens_per_s_per_device.typical
    lost = (
        table.filter(pl.col("broken").is_not_null() & (pl.col("role") == "agg"))
        .with_columns(_per_device(scenario))
        .filter(pl.col("per_device") > looks)
        .sort("per_device", "row", descending=[True, False])
        .unique(
            subset=["broken", "tp", "dp", "pp", "moe_tp", "moe_ep"],
            keep="first",
            maintain_order=True,
        )
        .group_by("broken", maintain_order=True)
        .head(2)
        .head(REJECTED)
    )
    return tuple(
        Rejected(role=row["role"], layout=layout_of(row), batch=int(row["batch"]),
                 output_tokens_per_s_per_device=row["per_device"],
                 reason=broken_text(row, scenario.limits))
        for row in lost.iter_rows(named=True)
    )  # fmt: skip


def _frontier(scenario: Scenario, table: pl.DataFrame) -> tuple[FrontierPoint, ...]:
    """The best device rate at each user speed, limits kept or not (prefill pools apart)."""
    fits = pl.col("broken").is_null() | (pl.col("broken") != "memory_share")
    users = table.filter((pl.col("role") != "prefill") & fits).with_columns(
        _per_device(scenario), (1 / pl.col("tpot_s_typical")).alias("per_user")
    )
    ordered = users.sort("per_user", "per_device", "row", descending=[True, True, False])
    best = pl.col("per_device").cum_max().shift(1).over("role")
    front = ordered.filter(best.is_null() | (pl.col("per_device") > best)).head(FRONTIER)
    return tuple(
        FrontierPoint(
            output_tokens_per_s_per_user=row["per_user"],
            output_tokens_per_s_per_device=row["per_device"], role=row["role"],
            label=f"{layout_of(row).label()} batch {int(row['batch'])}",
            meets_limits=row["broken"] is None,
        )
        for row in front.iter_rows(named=True)
    )  # fmt: skip


def _assumptions(scenario: Scenario, source: Source) -> tuple[str, ...]:
    limits = scenario.limits
    texts = [*scenario.model.assumptions]
    if source in ("assumed", "modelled"):
        texts.append(
            f"{scenario.cluster.device.name}: a tenth or more of the time rests on kernels "
            "not measured at these sizes; the breakdown names the source of each stage"
        )
    if scenario.offload is not None:
        texts.append(
            f"offload: experts that devices do not keep lie in {scenario.offload.experts_in}; "
            "how a pass waits for them is fitted (planner/engines/fitted/offload.yaml)"
        )
    if scenario.routing.kind == "uniform":
        texts.append("routing: every expert equally likely; give measured counts if you have them")
    texts.append(
        f"limits are held at the {limits.side} estimate; {1 - limits.memory_share:.0%} of memory "
        "is kept free"
    )
    return tuple(texts)


def _sources(scenario: Scenario, machines: set[int]) -> tuple[str, ...]:
    found = [*scenario.model.sources]
    for number in sorted(machines):
        device = scenario.on_machine(number).cluster.device
        facts = [*device.peak_flop_per_s.values(), device.memory[0].bandwidth_bytes_per_s]
        found += [f"{device.title}: {fact.source} ({fact.date})" for fact in facts]
    return tuple(dict.fromkeys(found))
