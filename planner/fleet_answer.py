"""A fleet's question answered: every class priced on every machine, one programme, one document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.fleet import Fleet
from planner.fleet_columns import Candidates, case_of
from planner.fleet_plan import ClassPlan, FleetPlan, FleetPool, MachineUse
from planner.fleet_reasons import EXACT, Asked, asked_of, fleet_bindings, next_best, not_all_served
from planner.machines import numbered, price_machine
from planner.plan import Proof
from planner.pricing import Priced
from planner.quantities import Estimate, Source
from planner.ranking import estimate_of, layout_of
from planner.search.fleet_programme import WEIGHT, Objective
from planner.search.fleets import FleetChoice, choose_fleet
from planner.search.reasons import Binding
from planner.timing.serving import SIDES
from planner.timing.step import weakest_source

Row = dict[str, Any]
ORDER = ("prefill", "agg", "decode")


@dataclass(frozen=True)
class PricedFleet:
    """Candidates of all classes in one table, with what explains them."""

    table: pl.DataFrame
    """Columns `row`, `CANDIDATE`, `class`."""
    sources: dict[tuple[int, int], Source]
    """Weakest source by class and machine."""
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Reasons:
    """Why the answer is what it is."""

    aim: Objective
    value: float
    binding: tuple[Binding, ...]
    runner_up: str | None


def plan_fleet(fleet: Fleet) -> FleetPlan:
    """Choose workers for every class of a fleet.

    Raises:
        MoesaicError: `infeasible`, naming the class and limit, or the share that can be served.
    """
    priced = _priced(fleet)
    candidates = Candidates(priced.table)
    columns = candidates.columns(fleet)
    choice = choose_fleet(columns, case_of(fleet))
    asked = asked_of(fleet, candidates, choice)
    if choice is None:
        raise _short(columns, asked)
    return _answer(fleet, priced, choice, _reasons(asked, choice))


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


def _short(columns: pl.DataFrame, asked: Asked) -> MoesaicError:
    """The whole demand cannot be served: say how much can, what contradicts it, and a way out."""
    most = choose_fleet(columns, replace(case_of(asked.fleet), objective="served"))
    ratio = 0.0 if most is None else most.worst_ratio
    error = MoesaicError(
        "infeasible",
        f"this fleet cannot serve every class's whole demand within the limits: {ratio:.1%} of "
        "each is the most; objective served takes what can be had",
        "/objective",
    )
    return not_all_served(error, asked, exact=columns.height <= EXACT)


def _reasons(asked: Asked, choice: FleetChoice) -> Reasons:
    """What held the choice back, and the next best."""
    exact = choice.columns_count <= EXACT
    now = _reached(asked, choice)
    compared = now if exact else asked.objective(relaxed=True)
    if compared is None:
        return Reasons(asked.aim, now, (), None)
    return Reasons(asked.aim, now, fleet_bindings(asked, compared, exact=exact),
                   next_best(asked, choice, compared, exact=exact))  # fmt: skip


def _reached(asked: Asked, choice: FleetChoice) -> float:
    """What the choice is worth, as compared."""
    if asked.aim == "served":
        return choice.worst_ratio
    rows = {key: asked.candidates.table.row(key, named=True) for key in choice.workers}
    value = _weight(choice, rows, WEIGHT.get(asked.aim))
    return choice.solution.objective if value is None else value


def _answer(fleet: Fleet, priced: PricedFleet, choice: FleetChoice, reasons: Reasons) -> FleetPlan:
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
        objective_value=reasons.value, aim=reasons.aim, binding=reasons.binding,
        runner_up=reasons.runner_up,
        proof=Proof(
            status="optimal" if solution.status == "optimal" else "feasible",
            objective=solution.objective, bound=solution.bound, gap_ratio=solution.gap_ratio,
            columns_count=choice.columns_count, candidates_count=priced.table.height,
        ),
        solved_columns_count=choice.solved_columns_count,
        assumptions=_assumptions(fleet, priced, choice), sources=_sources(fleet),
    )  # fmt: skip


def _weight(choice: FleetChoice, rows: dict[int, Row], column: str | None) -> float | None:
    """A column summed over all devices in use; none where one of them has no figure."""
    if column is not None and any(row[column] is None for row in rows.values()):
        return None
    return float(sum(
        count * rows[key]["devices"] * (rows[key][column] if column else 1.0)
        for key, count in choice.workers.items()
    ))  # fmt: skip


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


def _assumptions(fleet: Fleet, priced: PricedFleet, choice: FleetChoice) -> tuple[str, ...]:
    texts = [text for one in fleet.classes for text in one.model.assumptions]
    uncertain = sorted({
        fleet.machines[machine].cluster.device.name
        for (_, machine), source in priced.sources.items() if source in ("assumed", "modelled")
    })  # fmt: skip
    if uncertain:
        texts.append(f"{', '.join(uncertain)}: a tenth or more of the time rests on kernels not "
                     "measured at these sizes")  # fmt: skip
    if choice.columns_count > EXACT:
        texts.append(
            f"{choice.columns_count} kinds of workers are more than {EXACT}: what limits cost and "
            "what a runner-up reaches are told with parts of workers allowed"
        )
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
