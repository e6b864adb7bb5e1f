"""A choice written out as a plan: pools, estimates, ranking, rejections, frontier."""

from __future__ import annotations

from typing import Any

import polars as pl

from planner.machines import Key, key_of
from planner.plan import (
    BindingLimit,
    FrontierPoint,
    MemoryUse,
    Option,
    Plan,
    Pool,
    Proof,
    Rejected,
)
from planner.pricing import Priced
from planner.quantities import Estimate, Source
from planner.ranking import (
    estimate_of,
    inverse,
    layout_of,
    machine_of,
    pareto_plans,
    parts_of,
    ranked,
    scaled,
    served,
)
from planner.scenario import Scenario
from planner.search.assignment import Choice, broken_text
from planner.search.explanation import binding_limits, objective_value
from planner.timing.step import stage_shares, weakest_source
from planner.work.memory import MEMORY

Row = dict[str, Any]
REJECTED, FRONTIER = 6, 160


def build_plan(
    scenario: Scenario, table: pl.DataFrame, priced: dict[Key, Priced], choice: Choice
) -> Plan:
    """Write the answer.

    Args:
        scenario: the question.
        table: columns `row`, `CANDIDATE`, `broken`.
        priced: passes and timed sheet of each machine.
        choice: the programme's answer.
    """
    used = {key_of(row) for _, row in parts_of(table, choice)}
    source = weakest_source(pl.concat([priced[key].timed for key in sorted(used)]))
    options, why = ranked(scenario, table, choice, source)
    best, solution = options[0], choice.solution
    rate = served(parts_of(table, choice), source)
    pareto, complete = pareto_plans(scenario, table, source) if scenario.pareto else ((), None)
    osl = scenario.workload.osl
    return Plan(
        scenario_digest=scenario.digest(),
        scenario=scenario,
        mode=best.mode,
        pools=tuple(_pool(scenario, row, workers, priced, source)
                    for workers, row in parts_of(table, choice)),
        devices=best.devices,
        ttft_s=best.ttft_s,
        tpot_s=best.tpot_s,
        output_tokens_per_s_per_device=best.output_tokens_per_s_per_device,
        output_tokens_per_s=scaled(rate, osl),
        request_rate=rate,
        usd_per_million_tokens=_per_token(choice, table, "device_hour_usd", rate, 1e6 / 3600 / osl),
        energy_j_per_token=_per_token(choice, table, "device_w", rate, 1 / osl),
        objective_value=objective_value(choice, table, scenario),
        options=tuple(options),
        binding=_binding(scenario, table, choice, best.devices),
        rejected=_rejected(scenario, table, best),
        runner_up=why, pareto=pareto, pareto_complete=complete,
        frontier=_frontier(scenario, table),
        proof=Proof(
            status="optimal" if solution.status == "optimal" else "feasible",
            objective=solution.objective, bound=solution.bound, gap_ratio=solution.gap_ratio,
            columns_count=choice.columns_count, candidates_count=table.height,
        ),
        assumptions=_assumptions(scenario, source, used),
        sources=_sources(scenario, {machine for machine, _ in used}),
    )  # fmt: skip


def _per_token(
    choice: Choice, table: pl.DataFrame, column: str, rate: Estimate, factor: float
) -> Estimate | None:
    """Weight of all devices in use for each request served, times a factor; none if unknown."""
    rows = parts_of(table, choice)
    if any(row[column] is None for _, row in rows):
        return None
    weight = sum(workers * row["devices"] * row[column] for workers, row in rows)
    return scaled(inverse(rate), weight * factor)


def _pool(
    scenario: Scenario, row: Row, workers: int, machines: dict[Key, Priced], source: Source
) -> Pool:
    priced = machines[key_of(row)]
    points = {"decode": row["decode_point"], "prefill": row["prefill_point"]}
    held = points["decode"] if points["decode"] is not None else points["prefill"]
    use = priced.passes.row(held, named=True)
    buckets = {name: use[name] for name in MEMORY}
    grown = row["total_bytes"] - use["total_bytes"]
    buckets["activation_bytes"] += grown
    asked = [point for point in points.values() if point is not None]
    shares = stage_shares(priced.timed, priced.passes, asked)
    variant = scenario.variants()[int(row["variant"])]
    return Pool(
        role=row["role"], machine=machine_of(scenario, row), workers=workers,
        devices_per_worker=int(row["devices"]),
        layout=layout_of(row), batch=int(row["batch"]), inflight=int(row["inflight"]),
        variant=variant.label, redundant_experts=variant.redundant_experts,
        request_rate=estimate_of(row, "request_rate", source),
        memory=MemoryUse(**buckets, total_bytes=row["total_bytes"],
                         capacity_bytes=row["capacity_bytes"]),
        breakdown={
            phase: shares[point] for phase, point in points.items() if point is not None
        },
    )  # fmt: skip


def _binding(
    scenario: Scenario, table: pl.DataFrame, choice: Choice, devices: int
) -> tuple[BindingLimit, ...]:
    per_device = scenario.workload.osl / devices
    return tuple(
        BindingLimit(
            limit="memory" if item.limit == "memory_share" else item.limit, value=item.value,
            without_output_tokens_per_s_per_device=(
                None if item.without_rate is None else item.without_rate * per_device
            ),
            one_percent_more_output_tokens_per_s_per_device=item.more_rate * per_device,
            without_objective=item.without_objective, one_percent_more_value=item.value * 1.01,
            one_percent_more_objective=item.more_objective,
        )
        for item in binding_limits(table, scenario, choice)
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


def _assumptions(scenario: Scenario, source: Source, used: set[Key]) -> tuple[str, ...]:
    limits = scenario.limits
    texts = [*scenario.model.assumptions]
    changed = {scenario.variants()[number].changed for _, number in used} - {""}
    texts += [f"the model is changed ({text}): it must be trained so; quality is not estimated"
              for text in sorted(changed)]  # fmt: skip
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
