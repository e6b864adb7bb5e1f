"""The fleet programme against brute force, its bounds, its text under review."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.fleet import FleetLimits
from planner.search import fleets
from planner.search.fleet_patterns import pack_fleet
from planner.search.fleet_programme import Case, StatedFleet
from planner.search.fleets import choose_fleet, undominated

GOLDEN = Path(__file__).parents[2] / "golden" / "fleet.lp"
SIZE = 4
"""Devices of each machine."""


def table_of(rows):
    """Rows of (class, role, machine, devices, rate); machine 1 costs half, draws a third."""
    names = ("class", "role", "machine", "devices", "request_rate_typical")
    data = [
        dict(zip(names, row, strict=True))
        | {"row": i, "devices": float(row[3]), "device_hour_usd": 2.0 / (1 + row[2]),
           "device_w": 600.0 / (1 + 2 * row[2])}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return pl.DataFrame(data)


def case_of(demands, *, spares=None, objective="served", **limits):
    spares = spares or (0,) * len(demands)
    return Case(demands, spares, (SIZE, SIZE), FleetLimits(**limits), objective)


def plans_by_hand(rows, case):
    """Every worker count that keeps the shared limits, with its served rates and weight."""
    most = [SIZE // row[3] for row in rows]
    for counts in itertools.product(*(range(n + 1) for n in most)):
        used = [0, 0]
        for count, row in zip(counts, rows, strict=True):
            used[row[2]] += count * row[3]
        dollars = 2.0 * used[0] + 1.0 * used[1]
        configurations = sum(count > 0 for count in counts)
        limits = case.limits
        if max(used) > SIZE or dollars > (limits.usd_per_hour or 1e9):
            continue
        if configurations > (limits.configurations or 99):
            continue
        yield served_by_hand(rows, counts, case), sum(used), dollars


def served_by_hand(rows, counts, case):
    """What each class is served, the worst worker of each role taken away where one may fail."""
    served = []
    for k, demand in enumerate(case.demands):
        rate = {}
        for role in ("agg", "prefill", "decode"):
            own = [(n, row[4]) for n, row in zip(counts, rows, strict=True)
                   if n and row[0] == k and row[1] == role]  # fmt: skip
            lost = case.spares[k] * max((r for _, r in own), default=0.0)
            rate[role] = sum(n * r for n, r in own) - lost
        paired = min(rate["prefill"], rate["decode"])
        served.append(min(max(rate["agg"], 0) + max(paired, 0), demand))
    return served


def worst(served, case):
    return min(s / d for s, d in zip(served, case.demands, strict=True))


ROW = st.tuples(
    st.integers(0, 1), st.sampled_from(["agg", "prefill", "decode"]), st.integers(0, 1),
    st.integers(1, SIZE), st.floats(0.5, 20),
)  # fmt: skip
DEMANDS = st.tuples(st.floats(1, 60), st.floats(1, 60))


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), DEMANDS, st.sampled_from([None, 1, 2]),
       st.sampled_from([(0, 0), (1, 0), (1, 1)]))  # fmt: skip
def test_the_worst_served_share_equals_brute_force(rows, demands, configurations, spares):
    case = case_of(demands, spares=spares, configurations=configurations)
    choice = choose_fleet(table_of(rows), case)
    found = [worst(served, case) for served, _, _ in plans_by_hand(rows, case)]
    expected = max(found)
    assert choice.worst_ratio == pytest.approx(expected, rel=1e-3, abs=2e-6)
    assert choice.solution.bound >= expected * (1 - 1e-6)
    counts = [choice.workers.get(i, 0) for i in range(len(rows))]
    assert worst(served_by_hand(rows, counts, case), case) >= choice.worst_ratio - 2e-6


@settings(max_examples=120, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), DEMANDS, st.sampled_from(["devices", "cost"]))
def test_fewest_devices_or_dollars_equal_brute_force(rows, demands, objective):
    demands = tuple(d / 6 for d in demands)
    case = case_of(demands, objective=objective)
    weights = [(devices if objective == "devices" else dollars)
               for served, devices, dollars in plans_by_hand(rows, case)
               if worst(served, case) >= 1]  # fmt: skip
    near = [worst(served, case) for served, _, _ in plans_by_hand(rows, case)]
    assume(not any(1 - 1e-5 < ratio < 1 for ratio in near))
    choice = choose_fleet(table_of(rows), case)
    if not weights:
        assert choice is None
        return
    assert choice.solution.objective == pytest.approx(min(weights), rel=1e-3)
    assert choice.solution.bound <= min(weights) + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5), DEMANDS, st.floats(0.5, 12))
def test_a_budget_is_kept_and_used(rows, demands, budget):
    case = case_of(demands, usd_per_hour=budget)
    choice = choose_fleet(table_of(rows), case)
    expected = max(worst(served, case) for served, _, _ in plans_by_hand(rows, case))
    assert choice.worst_ratio == pytest.approx(expected, rel=1e-3, abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=9), DEMANDS)
def test_dropped_candidates_never_matter(rows, demands):
    case, table = case_of(demands), table_of(rows)
    all_of, some = choose_fleet(table, case), choose_fleet(undominated(table), case)
    assert some.worst_ratio == pytest.approx(all_of.worst_ratio, rel=1e-3, abs=2e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), DEMANDS,
       st.sampled_from(["served", "devices", "cost"]), st.sampled_from([None, 7.0]))  # fmt: skip
def test_patterns_find_what_brute_force_finds_within_their_bound(rows, demands, objective, budget):
    demands = demands if objective == "served" else tuple(d / 6 for d in demands)
    case = case_of(demands, objective=objective, usd_per_hour=budget)
    relaxed = StatedFleet(table_of(rows).to_dicts(), case, capped=False).programme.relax()
    assume(not relaxed.infeasible)
    plans = list(plans_by_hand(rows, case))
    packing = pack_fleet(table_of(rows).to_dicts(), case, relaxed)
    if objective == "served":
        best = max(worst(served, case) for served, _, _ in plans)
        assert packing.bound >= best * (1 - 1e-9)
    else:
        whole = [(devices if objective == "devices" else dollars)
                 for served, devices, dollars in plans if worst(served, case) >= 1]  # fmt: skip
        if packing.impossible or not whole:
            assert not whole or not packing.impossible
            assert packing.packed is None or not whole
            return
        best = min(whole)
        assert packing.bound <= best * (1 + 1e-9)
    if packing.packed is not None:
        counts = [packing.packed.workers.get(i, 0) for i in range(len(rows))]
        found = worst(served_by_hand(rows, counts, case), case)
        assert found >= (packing.objective if objective == "served" else 1) * (1 - 1e-6)
        assert packing.objective == pytest.approx(best, rel=packing.gap_ratio + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=6, max_size=9), DEMANDS)
def test_many_columns_are_solved_as_few_are(rows, demands):
    """By patterns, then over three columns of least reduced cost: the bound still covers all."""
    case, table = case_of(demands), table_of(rows)
    whole = choose_fleet(table, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleets, "FEW", 2)
        patch.setattr(fleets, "KEPT", 3)
        part = choose_fleet(table, case)
    assert part.worst_ratio <= whole.worst_ratio + 1e-3
    assert part.solution.bound >= whole.solution.objective * (1 - 1e-6)
    gap = (part.solution.bound - part.solution.objective) / max(part.solution.objective, 1e-12)
    assert part.solution.gap_ratio == pytest.approx(gap, abs=1e-9)
    if part.solution.status == "optimal":
        assert part.worst_ratio == pytest.approx(whole.worst_ratio, rel=2e-3, abs=2e-6)


def test_what_is_left_goes_to_the_other_class():
    rows = [(0, "agg", 0, 4, 5.0), (1, "agg", 1, 1, 3.0)]
    choice = choose_fleet(table_of(rows), case_of((10.0, 12.0)))
    assert choice.worst_ratio == pytest.approx(0.5)
    assert choice.served == pytest.approx((5.0, 12.0))


def test_idle_devices_stay_idle_when_all_is_served():
    rows = [(0, "agg", 0, 1, 5.0), (0, "agg", 1, 1, 5.0)]
    choice = choose_fleet(table_of(rows), case_of((9.0,)))
    assert choice.workers == {1: 2}


def test_the_shadow_price_is_what_one_more_device_is_worth():
    case = case_of((100.0,))
    choice = choose_fleet(table_of([(0, "agg", 0, 1, 2.0)]), case)
    more = choose_fleet(table_of([(0, "agg", 0, 1, 2.0)]), replace(case, machines=(SIZE + 1, SIZE)))
    gained = more.solution.objective - choice.solution.objective
    assert choice.relaxed.shadow_prices["machine_0"] == pytest.approx(gained)


def test_a_reached_time_limit_is_flagged_with_its_gap():
    drawn = np.random.default_rng(0)
    rows = [
        (int(k), role, int(m), int(d), float(r * d**1.1))
        for k, role, m, d, r in zip(
            drawn.integers(0, 40, 390), drawn.choice(["agg", "prefill", "decode"], 390),
            drawn.integers(0, 2, 390), drawn.choice([1, 2, 4, 8], 390),
            drawn.uniform(0.5, 3, 390), strict=True,
        )
    ]  # fmt: skip
    demands = tuple(drawn.uniform(10, 60, 40))
    # Where workers may fail, patterns do not help.
    case = replace(case_of(demands, search_s=0.5, spares=(1,) * 40), machines=(256, 256))
    choice = choose_fleet(table_of(rows), case)
    assert choice.solution.status == "feasible"
    assert choice.solution.gap_ratio > fleets.GAP_RATIO
    assert choice.solution.bound >= choice.solution.objective


@pytest.mark.parametrize("objective", ["served", "cost", "devices"])
def test_forty_classes_end_within_a_thousandth_of_the_bound(objective):
    drawn = np.random.default_rng(0)
    rows = [
        (k, role, m, int(d), float(drawn.uniform(0.5, 3) * d**1.1))
        for k in range(40) for role in ("agg", "prefill", "decode") for m in (0, 1)
        for d in (1, 2, 4, 8)
    ]  # fmt: skip
    demands = tuple(drawn.uniform(10, 60, 40) * (3.0 if objective == "served" else 0.8))
    case = replace(case_of(demands, objective=objective), machines=(512, 512))
    choice = choose_fleet(table_of(rows), case)
    assert choice.solution.gap_ratio <= 1e-3
    used = [0, 0]
    for key, count in choice.workers.items():
        used[rows[key][2]] += count * rows[key][3]
    assert max(used) <= 512
    if objective == "served":
        assert choice.solution.bound <= min(choice.relaxed.objective, 1.0)
        assert 0.5 < choice.worst_ratio < 1
    else:
        assert choice.solution.bound >= choice.relaxed.objective * (1 - 1e-6)
        weight = sum(used) if objective == "devices" else 2.0 * used[0] + used[1]
        assert choice.solution.objective == pytest.approx(weight)


def test_a_price_or_power_that_is_needed_is_asked_for():
    table = table_of([(0, "agg", 1, 1, 1.0)]).with_columns(
        device_hour_usd=pl.lit(None, pl.Float64), device_w=pl.lit(None, pl.Float64)
    )
    for case, words in (
        (case_of((1.0,), objective="cost"), "device_hour_usd"),
        (case_of((1.0,), power_w=10.0), "power_w"),
    ):
        with pytest.raises(MoesaicError, match=words) as caught:
            choose_fleet(table, case)
        assert caught.value.path == "/machines/1"


def test_the_programme_reads_as_reviewed(tmp_path):
    rows = [(0, "agg", 0, 2, 5.0), (1, "prefill", 0, 1, 9.0), (1, "decode", 1, 2, 6.0)]
    case = case_of((8.0, 10.0), spares=(1, 0), configurations=3, usd_per_hour=9.0, power_w=3e3)
    written = tmp_path / "fleet.lp"
    stated = StatedFleet(list(table_of(rows).iter_rows(named=True)), case)
    stated.programme.write_lp(written)
    assert written.read_text() == GOLDEN.read_text()
