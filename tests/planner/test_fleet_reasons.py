"""Conflicts and binding limits of fleets against brute force over drawn columns."""

import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.fleet import Fleet
from planner.fleet_reasons import Asked, fleet_bindings, limits_of, next_best, not_all_served
from planner.search import reasons
from planner.search.fleets import choose_fleet
from tests.planner.search.test_fleets import (
    DEMANDS,
    ROW,
    SIZE,
    case_of,
    plans_by_hand,
    table_of,
    worst,
)

FLEET = Fleet.parse({
    "objective": "devices",
    "machines": [{"cluster": "dgx-h100", "device_hour_usd": 2.0},
                 {"cluster": "dgx-a100", "device_hour_usd": 1.0}],
    "classes": [{"name": name, "model": "olmoe-1b-7b",
                 "workload": {"isl": 10, "osl": 10, "request_rate": 1}} for name in "ab"],
})  # fmt: skip
TINY = 1e-4
STATED = {"devices": 3, "usd_per_hour": 4.0, "configurations": 1}


@dataclass(frozen=True)
class Drawn:
    """Columns that keep their class's limits whatever these are."""

    table: object

    def columns(self, fleet):  # noqa: ARG002 - as Candidates
        return self.table


def asked_about(rows, demands, limits, objective="devices"):
    classes = tuple(
        one.model_copy(update={"workload": one.workload.model_copy(update={"request_rate": rate})})
        for one, rate in zip(FLEET.classes, demands, strict=True)
    )
    held = FLEET.limits.model_copy(update=limits)
    fleet = FLEET.model_copy(update={"classes": classes, "limits": held, "objective": objective})
    return Asked(fleet, Drawn(table_of(rows)), (SIZE, SIZE), objective)


def served_by_hand_(asked, rows):
    """Whether some workers serve all, by trying them all; none where one is on the edge."""
    limits = asked.fleet.limits
    demands = tuple(one.demand_rate for one in asked.fleet.classes)
    case = case_of(demands, usd_per_hour=limits.usd_per_hour, configurations=limits.configurations)
    # A demand that is dropped asks for nothing.
    return any(
        all(s >= d * (1 - 1e-7) or d < TINY for s, d in zip(served, demands, strict=True))
        for served, used, _ in plans_by_hand(rows, case)
        if used <= (limits.devices or 99)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=5), DEMANDS,
       st.sets(st.sampled_from(sorted(STATED)), min_size=1))  # fmt: skip
def test_the_smallest_conflict_is_that_of_brute_force(rows, demands, stated):
    asked = asked_about(rows, demands, {name: STATED[name] for name in stated})
    if asked.columns() is None or served_by_hand_(asked, rows):
        return
    limits = [one for one in limits_of(asked.fleet) if not one.name.startswith("machine ")]
    names = [one.name for one in limits]
    found = reasons.smallest_conflict(asked, limits, lambda a: a.feasible(relaxed=False))

    def contradict(kept):
        return not served_by_hand_(reasons.without(asked, limits, set(names) - set(kept)), rows)

    assert contradict(found)
    for size in range(len(found)):
        assert not any(contradict(kept) for kept in itertools.combinations(names, size))
    error = not_all_served(MoesaicError("infeasible", "x"), asked, exact=True)
    assert all(name in error.message for name in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=5), DEMANDS)
def test_what_binds_is_what_brute_force_betters(rows, demands):
    asked = asked_about(rows, demands, STATED, "served")
    choice = choose_fleet(table_of(rows), asked.case())

    def best(**limits):
        case = case_of(demands, **{k: v for k, v in limits.items() if k != "devices"})
        return max(worst(served, case) for served, used, _ in plans_by_hand(rows, case)
                   if used <= limits.get("devices", 99))  # fmt: skip

    found = {item.limit: item for item in fleet_bindings(asked, choice.worst_ratio, exact=True)}
    for name in STATED:
        free = best(**{k: v for k, v in STATED.items() if k != name})
        if free > choice.worst_ratio * (1 + 2e-3) + 1e-5:
            assert found[name].without_objective == pytest.approx(free, rel=2e-3)
        elif free < choice.worst_ratio * (1 + 1e-4):
            assert name not in found


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=3, max_size=5), DEMANDS)
def test_the_runner_up_is_never_better(rows, demands):
    asked = asked_about(rows, demands, {}, "served")
    choice = choose_fleet(table_of(rows), asked.case())
    said = next_best(asked, choice, choice.worst_ratio, exact=True)
    groups = {rows[key][:3] for key in choice.workers}
    others = [
        asked.objective((number, role, machine), relaxed=False) for number, role, machine in groups
    ]
    known = [value for value in others if value is not None]
    assert (said is None) == (not known)
    if known:
        assert max(known) <= choice.worst_ratio * (1 + 1e-3) + 1e-5
        assert f"{max(known):.4g}" in said


def test_without_the_only_pool_there_is_no_runner_up():
    asked = replace(asked_about([(0, "agg", 0, 1, 5.0), (1, "agg", 0, 1, 5.0)], (4.0, 4.0), {}))
    choice = choose_fleet(asked.columns(), asked.case())
    assert next_best(asked, choice, choice.solution.objective, exact=True) is None
