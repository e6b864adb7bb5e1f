"""Why a fleet's answer is what it is: limits that bind or contradict, and why the next plan lost.

Few columns are solved again in whole numbers for every limit; of many, all values, the answer's own
among them, are those of the relaxed programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.fleet import Fleet
from planner.fleet_columns import Candidates, can_serve, case_of
from planner.scenario import Limits
from planner.search import reasons
from planner.search.fleet_programme import WEIGHT, Case, Objective, StatedFleet
from planner.search.fleets import FEW, GAP_RATIO, FleetChoice, all_served, choose_fleet
from planner.search.reasons import Binding, Limit

OWN = ("ttft_s", "tpot_s", "memory_share", "spare_workers")
"""Limits of a class."""
USUAL_SHARE = Limits().memory_share
SHARED = ("devices", "power_w", "usd_per_hour", "configurations")
COUNTED = ("devices", "configurations")
NO_RATE = 1e-9
"""Part of a demand that stands for none: below what the solver tells from zero."""
QUICK_S = 2.0
"""Seconds that one of many questions may take."""
EXACT = FEW
"""Columns up to which every question is solved in whole numbers."""
WORDS = {"served": "the worst served share", "devices": "devices in use",
         "cost": "USD/h", "energy": "W"}  # fmt: skip
ROLE = {"agg": "aggregated", "prefill": "prefill", "decode": "decode"}
Group = tuple[int, str, int]
"""Class, role and machine of a pool."""


@dataclass(frozen=True)
class Asked:
    """A fleet's question with other limits, or without some of its pools."""

    fleet: Fleet
    candidates: Candidates
    counts: tuple[int, ...]
    """Devices of each machine."""
    aim: Objective
    """What is compared: as asked, or what is spent where `served` serves all."""

    def case(self) -> Case:
        """Demands and limits."""
        quick = self.fleet.limits.model_copy(
            update={"search_s": min(self.fleet.limits.search_s, QUICK_S)}
        )
        whole = case_of(self.fleet, self.counts)
        return replace(whole, limits=quick, objective=self.aim)

    def columns(self, left_out: Group | None = None) -> pl.DataFrame | None:
        """The programme's columns; none where a class cannot be served."""
        try:
            found = self.candidates.columns(self.fleet)
        except MoesaicError:
            return None
        if left_out is None:
            return found
        number, role, machine = left_out
        same = (pl.col("class") == number) & (pl.col("role") == role)
        found = found.filter(~(same & (pl.col("machine") == machine)))
        return found if can_serve(found.filter(pl.col("class") == number)) else None

    def objective(self, left_out: Group | None = None, *, relaxed: bool) -> float | None:
        """The best value of the aim; none where there is no answer."""
        columns = self.columns(left_out)
        if columns is None:
            return None
        case = self.case()
        if relaxed:
            found = StatedFleet(columns.to_dicts(), case).programme.relax()
            return None if found.infeasible else found.objective
        choice = _solved(columns, case)
        return None if choice is None else choice.solution.objective

    def feasible(self, *, relaxed: bool) -> bool:
        """Whether all of the demand can be served."""
        columns = self.columns()
        if columns is None:
            return False
        case = replace(self.case(), objective="devices")
        if StatedFleet(columns.to_dicts(), case).programme.relax().infeasible:
            return False
        return relaxed or _solved(columns, case) is not None


def _solved(columns: pl.DataFrame, case: Case) -> FleetChoice | None:
    """The choice; none too where the time is over before any is found."""
    try:
        return choose_fleet(columns, case)
    except MoesaicError as error:
        if error.kind != "internal":
            raise
        return None


def asked_of(fleet: Fleet, candidates: Candidates, choice: FleetChoice | None = None) -> Asked:
    """The question as it stands; `served` that serves all compares what is spent."""
    aim: Objective = fleet.objective
    if choice is not None and aim == "served" and all_served(choice):
        priced = all(machine.device_hour_usd is not None for machine in fleet.machines)
        aim = "cost" if priced else "devices"
    return Asked(fleet, candidates, case_of(fleet).machines, aim)


def limits_of(fleet: Fleet) -> list[Limit[Asked]]:
    """Every limit that a fleet states: shared ones, those of classes, demands, machines."""
    found: list[Limit[Asked]] = []
    for name in SHARED:
        value = getattr(fleet.limits, name)
        if value is not None:
            step = float(name in COUNTED)
            found.append(Limit(name, float(value), _shared(name), step=step))
    for number in range(len(fleet.classes)):
        found += _own(fleet, number)
    for number, machine in enumerate(fleet.machines):
        cluster = machine.cluster
        found.append(Limit(f"machine {cluster.name}", float(cluster.device_count),
                           _machine(number), step=float(cluster.devices_per_node)))  # fmt: skip
    return found


def _own(fleet: Fleet, number: int) -> list[Limit[Asked]]:
    one = fleet.classes[number]
    found: list[Limit[Asked]] = []
    for name in OWN:
        value = getattr(one.limits, name)
        if not value or (name == "memory_share" and value == USUAL_SHARE):
            continue
        spare = name == "spare_workers"
        end = {"memory_share": 1.0, "spare_workers": 0.0}.get(name)
        found.append(Limit(f"{one.name} {name}", float(value), _class(number, name),
                           greater=not spare, step=float(spare), end=end))  # fmt: skip
    demand = Limit(f"{one.name} request_rate", one.demand_rate, _demand(number), greater=False)
    return [*found, demand]


Change = Callable[[Asked, float | None], Asked | None]


def _shared(name: str) -> Change:
    def change(asked: Asked, value: float | None) -> Asked:
        whole = round(value) if value is not None and name in COUNTED else value
        limits = asked.fleet.limits.model_copy(update={name: whole})
        return replace(asked, fleet=asked.fleet.model_copy(update={"limits": limits}))

    return change


def _class(number: int, name: str) -> Change:
    free = {"memory_share": 1.0, "spare_workers": 0}.get(name)

    def change(asked: Asked, value: float | None) -> Asked:
        to = free if value is None else round(value) if name == "spare_workers" else value
        limits = asked.fleet.classes[number].limits.model_copy(update={name: to})
        return _with_class(asked, number, {"limits": limits})

    return change


def _demand(number: int) -> Change:
    def change(asked: Asked, value: float | None) -> Asked:
        one = asked.fleet.classes[number]
        rate = one.demand_rate * NO_RATE if value is None else value
        workload = one.workload.model_copy(update={"request_rate": rate})
        return _with_class(asked, number, {"workload": workload})

    return change


def _with_class(asked: Asked, number: int, update: dict[str, object]) -> Asked:
    classes = list(asked.fleet.classes)
    classes[number] = classes[number].model_copy(update=update)
    return replace(asked, fleet=asked.fleet.model_copy(update={"classes": tuple(classes)}))


def _machine(number: int) -> Change:
    def change(asked: Asked, value: float | None) -> Asked | None:
        if value is None:  # a fleet without end is no question
            return None
        counts = list(asked.counts)
        counts[number] = round(value)
        return replace(asked, counts=tuple(counts))

    return change


def fleet_bindings(asked: Asked, now: float, *, exact: bool) -> tuple[Binding, ...]:
    """Limits without which, or with a little more of which, the fleet does better.

    A class's demand is what is to be served, and no limit on it.
    """
    limits = [one for one in limits_of(asked.fleet) if not one.name.endswith(" request_rate")]

    def solve(changed: Asked) -> float | None:
        value = changed.objective(relaxed=not exact)
        same = value is not None and abs(value - now) <= GAP_RATIO * abs(now)
        return now if same else value

    return reasons.bindings(asked, limits, solve, now, maximise=asked.aim == "served")


def not_all_served(error: MoesaicError, asked: Asked, *, exact: bool) -> MoesaicError:
    """The error with the fewest limits in conflict and the cheapest one to relax.

    More nodes of a machine are tried beside the limits in conflict.
    """
    limits = limits_of(asked.fleet)
    stated = [one for one in limits if not one.name.startswith("machine ")]
    feasible = partial(Asked.feasible, relaxed=not exact)
    conflict = reasons.smallest_conflict(asked, stated, feasible)
    said = [error.message]
    if conflict:
        one = "cannot be kept with these machines"
        said.append(f"{conflict[0]} {one}" if len(conflict) == 1
                    else f"in conflict: {' and '.join(conflict)}")  # fmt: skip
    rivals = [one for one in limits if one.name in conflict or one.name.startswith("machine ")]
    said += [found.text() for found in reasons.relaxations(asked, rivals, feasible)[:1]]
    return MoesaicError(error.kind, "; ".join(said), error.path)


def next_best(asked: Asked, choice: FleetChoice, now: float, *, exact: bool) -> str | None:
    """The best plan without one of the pools in use, and what its substitute lacks.

    A pool is what a class runs for one role on one machine, whatever layouts and batches.
    """
    table = asked.candidates.table
    used = {key: table.row(key, named=True) for key in choice.workers}
    groups = sorted({(r["class"], r["role"], r["machine"]) for r in used.values()})
    sign = 1.0 if asked.aim == "served" else -1.0
    values = {
        group: value for group in groups
        if (value := asked.objective(group, relaxed=not exact)) is not None
    }  # fmt: skip
    if not values:
        return None
    best = max(values, key=lambda group: (sign * values[group], group))
    return _said(asked, best, (values[best], now), used)


def _said(
    asked: Asked, group: Group, values: tuple[float, float], used: dict[int, dict[str, object]]
) -> str:
    number, role, machine = group
    fleet, (value, now) = asked.fleet, values
    pool = f"{ROLE[role]} of {fleet.classes[number].name} on {fleet.machines[machine].cluster.name}"
    change = value / now - 1 if now else 0.0
    far = f"{change:+.2%}" if abs(change) > GAP_RATIO else "as much"
    said = f"without {pool}, {WORDS[asked.aim]} {value:.4g}, {far}"
    columns = asked.columns(group)
    per = _worth(asked, columns, number, role)
    own = _worth(asked, pl.DataFrame([r for r in used.values() if _group(r) == group]),
                 number, role)  # fmt: skip
    if own is None:
        return said
    if per is None:
        return f"{said}: no other machine has {ROLE[role]} workers for it"
    name = fleet.machines[per[1]].cluster.name
    unit = {"cost": "USD/h", "energy": "W"}.get(asked.aim, "device")
    return (f"{said}: its best substitute, on {name}, serves {per[0]:.3g} requests/s a {unit}, "
            f"not {own[0]:.3g}")  # fmt: skip


def _group(row: dict[str, object]) -> tuple[object, ...]:
    return row["class"], row["role"], row["machine"]


def _worth(
    asked: Asked, columns: pl.DataFrame | None, number: int, role: str
) -> tuple[float, int] | None:
    """Most requests per second for what a device weighs, and the machine that has it."""
    if columns is None or columns.is_empty():
        return None
    weight = WEIGHT.get(asked.aim)
    spent = pl.col("devices") * (pl.col(weight) if weight else 1.0)
    own = columns.filter((pl.col("class") == number) & (pl.col("role") == role)).with_columns(
        (pl.col("request_rate_typical") / spent).alias("worth")
    )
    if own.is_empty():
        return None
    best = own.sort("worth", "row", descending=[True, False]).row(0, named=True)
    return float(best["worth"]), int(best["machine"])
