"""A fleet's question answered: every class priced on every machine, one programme, one document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.fleet import Fleet
from planner.fleet_plan import ClassPlan, FleetLimit, FleetPlan, FleetPool, MachineUse
from planner.machines import numbered, price_machine
from planner.plan import Proof
from planner.pricing import Priced
from planner.quantities import Estimate, Source
from planner.ranking import estimate_of, layout_of
from planner.search.assignment import within_limits
from planner.search.conflicts import with_limit
from planner.search.explanation import why_infeasible
from planner.search.fleet_programme import Case
from planner.search.fleets import FleetChoice, choose_fleet, undominated
from planner.timing.serving import SIDES
from planner.timing.step import weakest_source

Row = dict[str, Any]
ORDER = ("prefill", "agg", "decode")
OWN_LIMITS = ("ttft_s", "tpot_s", "memory_share")
SHORT = 1e-6
"""A share of demand below which less than all is served."""


@dataclass(frozen=True)
class PricedFleet:
    """Candidates of all classes in one table, with what explains them."""

    table: pl.DataFrame
    """Columns `row`, `CANDIDATE`, `class`."""
    sources: dict[tuple[int, int], Source]
    """Weakest source by class and machine."""
    skipped: tuple[str, ...]


def plan_fleet(fleet: Fleet) -> FleetPlan:
    """Choose workers for every class of a fleet.

    Raises:
        MoesaicError: `infeasible`, naming the class and limit, or the share that can be served.
    """
    priced = _priced(fleet)
    columns = _columns(fleet, priced.table)
    case = _case(fleet)
    choice = choose_fleet(columns, case)
    if choice is None:
        raise _short(columns, case)
    return _answer(fleet, priced, choice, _binding(fleet, priced.table, choice))


def _priced(fleet: Fleet) -> PricedFleet:
    tables, sources, skipped = [], {}, []
    for number, one in enumerate(fleet.classes):
        asked = fleet.scenario(number)
        found = 0
        for machine in range(len(fleet.machines)):
            own = asked.on_machine(machine)
            told = _try(own, machine)
            if isinstance(told, str):
                skipped.append(f"class {one.name} cannot use {own.cluster.name}: {told}")
                continue
            table, priced = told
            sources[number, machine] = weakest_source(priced.timed)
            tables.append(table.with_columns(pl.lit(number, pl.Int64).alias("class")))
            found += 1
        if not found:
            raise MoesaicError("infeasible", "; ".join(skipped), f"/classes/{number}")
    return PricedFleet(numbered(tables), sources, tuple(skipped))


def _try(own: Any, machine: int) -> tuple[pl.DataFrame, Priced] | str:  # noqa: ANN401 - a scenario
    """Candidates of one class on one machine, or why it has none."""
    try:
        found = price_machine(own, machine)
    except MoesaicError as error:
        if error.kind != "outside_evidence":
            raise
        return error.message
    return found or "no legal layout of this model fits there"


def _columns(fleet: Fleet, table: pl.DataFrame) -> pl.DataFrame:
    """Undominated candidates that keep the limits of their class."""
    kept = []
    for number, one in enumerate(fleet.classes):
        own = table.filter(pl.col("class") == number)
        asked = fleet.scenario(number)
        checked = within_limits(own, asked)
        allowed = checked.filter(pl.col("broken").is_null())
        if not _can_serve(allowed):
            why = why_infeasible(checked, asked)
            raise MoesaicError(
                "infeasible", f"class {one.name}: {why.message}", f"/classes/{number}/limits"
            )
        kept.append(undominated(allowed))
    return pl.concat(kept)


def _can_serve(allowed: pl.DataFrame) -> bool:
    roles = set(allowed["role"].unique())
    return "agg" in roles or {"prefill", "decode"} <= roles


def _case(fleet: Fleet) -> Case:
    return Case(
        demands=tuple(one.demand_rate for one in fleet.classes),
        spares=tuple(one.limits.spare_workers for one in fleet.classes),
        machines=tuple(machine.cluster.device_count for machine in fleet.machines),
        limits=fleet.limits, objective=fleet.objective,
    )  # fmt: skip


def _short(columns: pl.DataFrame, case: Case) -> MoesaicError:
    """The whole demand cannot be served: say how much of it can."""
    most = choose_fleet(columns, Case(case.demands, case.spares, case.machines, case.limits,
                                      "served"))  # fmt: skip
    ratio = 0.0 if most is None else most.worst_ratio
    return MoesaicError(
        "infeasible",
        f"this fleet cannot serve every class's whole demand within the limits: {ratio:.1%} of "
        "each is the most; objective served takes what can be had",
        "/objective",
    )


def _binding(fleet: Fleet, table: pl.DataFrame, choice: FleetChoice) -> tuple[FleetLimit, ...]:
    """Shared limits by their price in the relaxed programme, limits of classes solved again."""
    if fleet.objective == "served" and choice.worst_ratio >= 1 - SHORT:
        return ()
    shared = []
    values = {f"machine_{n}": float(m.cluster.device_count) for n, m in enumerate(fleet.machines)}
    names = {f"machine_{n}": f"machine {m.cluster.name}" for n, m in enumerate(fleet.machines)}
    for limit in ("devices", "power_w", "usd_per_hour", "configurations"):
        value = getattr(fleet.limits, limit)
        if value is not None:
            values[limit], names[limit] = float(value), limit
    for key, value in values.items():
        price = choice.relaxed.shadow_prices.get(key, 0.0)
        if abs(price) * value > SHORT * abs(choice.relaxed.objective):
            more = choice.solution.objective + price * value * 0.01
            more = min(more, 1.0) if fleet.objective == "served" else more
            shared.append(FleetLimit(limit=names[key], value=value, one_percent_more=more))
    return (*shared, *_own_binding(fleet, table, choice))


def _own_binding(fleet: Fleet, table: pl.DataFrame, choice: FleetChoice) -> list[FleetLimit]:
    """Limits of single classes whose loosening by 1 % changes the answer."""
    found = []
    best, sign = choice.solution.objective, 1 if fleet.objective == "served" else -1
    for number, one in enumerate(fleet.classes):
        for limit in OWN_LIMITS:
            value = getattr(one.limits, limit)
            if value is None:
                continue
            eased = with_limit(fleet.scenario(number), limit, value * 1.01).limits
            classes = list(fleet.classes)
            classes[number] = one.model_copy(update={"limits": eased})
            asked = fleet.model_copy(update={"classes": tuple(classes)})
            again = choose_fleet(_columns(asked, table), _case(asked))
            if again and sign * (again.solution.objective - best) > 1e-3 * abs(best):
                found.append(FleetLimit(limit=f"{one.name} {limit}", value=value,
                                        one_percent_more=again.solution.objective))  # fmt: skip
    return found


def _answer(
    fleet: Fleet, priced: PricedFleet, choice: FleetChoice, binding: tuple[FleetLimit, ...]
) -> FleetPlan:
    rows = {key: priced.table.row(key, named=True) for key in choice.workers}
    classes = tuple(_class(fleet, priced, choice, rows, n) for n in range(len(fleet.classes)))
    tokens = sum(
        one.served_request_rate * fleet.classes[n].workload.osl for n, one in enumerate(classes)
    )
    usd, watts = (_weight(choice, rows, name) for name in ("device_hour_usd", "device_w"))
    solution = choice.solution
    return FleetPlan(
        fleet_digest=fleet.digest(), fleet=fleet, worst_served_ratio=choice.worst_ratio,
        classes=classes, machines=_machines(fleet, choice, rows),
        devices=int(sum(count * rows[key]["devices"] for key, count in choice.workers.items())),
        configurations=len(choice.workers), output_tokens_per_s=tokens,
        usd_per_hour=usd,
        usd_per_million_tokens=None if usd is None or not tokens else usd / 3600 / tokens * 1e6,
        power_w=watts,
        energy_j_per_token=None if watts is None or not tokens else watts / tokens,
        binding=binding,
        proof=Proof(
            status="optimal" if solution.status == "optimal" else "feasible",
            objective=solution.objective, bound=solution.bound, gap_ratio=solution.gap_ratio,
            columns_count=choice.columns_count, candidates_count=priced.table.height,
        ),
        solved_columns_count=choice.solved_columns_count,
        assumptions=_assumptions(fleet, priced), sources=_sources(fleet),
    )  # fmt: skip


def _weight(choice: FleetChoice, rows: dict[int, Row], column: str) -> float | None:
    """A column summed over all devices in use; none where one of them has no figure."""
    if any(row[column] is None for row in rows.values()):
        return None
    used = choice.workers.items()
    return float(sum(count * rows[key]["devices"] * rows[key][column] for key, count in used))


def _class(
    fleet: Fleet, priced: PricedFleet, choice: FleetChoice, rows: dict[int, Row], number: int
) -> ClassPlan:
    one = fleet.classes[number]
    own = sorted(
        ((count, rows[key]) for key, count in choice.workers.items()
         if rows[key]["class"] == number),
        key=lambda pair: (ORDER.index(pair[1]["role"]), pair[1]["row"]),
    )  # fmt: skip
    pools = tuple(
        FleetPool(
            role=row["role"], machine=fleet.machines[row["machine"]].cluster.name, workers=count,
            devices_per_worker=int(row["devices"]), layout=layout_of(row), batch=int(row["batch"]),
            request_rate=estimate_of(row, "request_rate", source),
            ttft_s=estimate_of(row, "ttft_s", source) if row["ttft_s_typical"] else None,
            tpot_s=estimate_of(row, "tpot_s", source) if row["tpot_s_typical"] else None,
            total_bytes=row["total_bytes"], capacity_bytes=row["capacity_bytes"],
        )
        for count, row in own
        for source in (priced.sources[number, int(row["machine"])],)
    )  # fmt: skip
    served = min(choice.served[number], one.demand_rate)
    return ClassPlan(
        name=one.name, model=one.model.name, demand_request_rate=one.demand_rate,
        served_request_rate=served, served_ratio=served / one.demand_rate,
        request_rate=_together(pools), ttft_s=_slowest([p.ttft_s for p in pools]),
        tpot_s=_slowest([p.tpot_s for p in pools]), pools=pools,
    )  # fmt: skip


NOTHING = Estimate(typical=0, low=0, high=0, source="modelled")
"""A quantity of a class that no worker serves."""


def _together(pools: tuple[FleetPool, ...]) -> Estimate:
    """Aggregated workers side by side, and the slower of prefill and decode pools."""
    if not pools:
        return NOTHING
    values = {}
    for side in SIDES:
        by_role = dict.fromkeys(ORDER, 0.0)
        for pool in pools:
            by_role[pool.role] += pool.workers * getattr(pool.request_rate, side)
        values[side] = by_role["agg"] + min(by_role["prefill"], by_role["decode"])
    return Estimate(**values, source=pools[0].request_rate.source)


def _slowest(estimates: list[Estimate | None]) -> Estimate:
    known = [one for one in estimates if one is not None]
    return max(known, key=lambda one: one.typical, default=NOTHING)


def _machines(fleet: Fleet, choice: FleetChoice, rows: dict[int, Row]) -> tuple[MachineUse, ...]:
    found = []
    for number, machine in enumerate(fleet.machines):
        used: dict[str, int] = {}
        for key, count in choice.workers.items():
            if rows[key]["machine"] == number:
                name = fleet.classes[rows[key]["class"]].name
                used[name] = used.get(name, 0) + int(count * rows[key]["devices"])
        found.append(
            MachineUse(machine=machine.cluster.name, device=machine.cluster.device.name,
                       devices=machine.cluster.device_count, used_devices=sum(used.values()),
                       used_by=used)
        )  # fmt: skip
    return tuple(found)


def _assumptions(fleet: Fleet, priced: PricedFleet) -> tuple[str, ...]:
    texts = [text for one in fleet.classes for text in one.model.assumptions]
    uncertain = sorted({
        fleet.machines[machine].cluster.device.name
        for (_, machine), source in priced.sources.items() if source in ("assumed", "modelled")
    })  # fmt: skip
    if uncertain:
        texts.append(f"{', '.join(uncertain)}: a tenth or more of the time rests on kernels not "
                     "measured at these sizes")  # fmt: skip
    texts.append("a class's prefill and decode pools may lie on different machines; every pool "
                 "keeps the class's limits on its own")  # fmt: skip
    return tuple(dict.fromkeys([*priced.skipped, *texts]))


def _sources(fleet: Fleet) -> tuple[str, ...]:
    found = [text for one in fleet.classes for text in one.model.sources]
    for machine in fleet.machines:
        device = machine.cluster.device
        facts = [*device.peak_flop_per_s.values(), device.memory[0].bandwidth_bytes_per_s]
        found += [f"{device.title}: {fact.source} ({fact.date})" for fact in facts]
    return tuple(dict.fromkeys(found))
