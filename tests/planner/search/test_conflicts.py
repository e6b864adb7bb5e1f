"""Limits in conflict: as few as can be, and relaxed no further than needed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.conflicts import (
    active_limits,
    feasible,
    relaxations,
    smallest_conflict,
    with_limit,
)
from tests.planner.search.test_assignment import question, table_of


def slow_or_small():
    """One candidate quick for few users, one slow for many."""
    table = table_of([("agg", 4, 10, 5.0), ("agg", 4, 100, 3.0)])
    return table.with_columns(tpot_s_high=table["inflight"] / 1e3)


def test_a_pair_that_contradicts_is_named_without_bystanders():
    asked = question({"concurrency": 150}, tpot_s=0.02, ttft_s=1.0)
    assert smallest_conflict(slow_or_small(), asked) == ("tpot_s", "concurrency")


def test_the_cheapest_relaxation_comes_first():
    asked = question({"concurrency": 30}, tpot_s=0.08)
    found = relaxations(slow_or_small(), asked, ("tpot_s", "concurrency"))
    assert [r.limit for r in found] == ["tpot_s", "concurrency"]
    assert found[0].value == pytest.approx(0.1, rel=0.004)
    assert found[1].value == 20
    assert "tpot_s 100" in found[0].text()


def test_nothing_to_relax_where_no_candidate_serves():
    asked = question({"request_rate": 1.0}, tpot_s=1.0)
    assert smallest_conflict(table_of([("prefill", 4, 1, 1.0)]), asked) == ()


@pytest.mark.parametrize(
    ("limits", "name", "value"),
    [
        ({"devices": 3}, "devices", 4),
        ({"spare_workers": 5}, "spare_workers", 1),
        ({"power_w": 1400.0}, "power_w", 2800),
    ],
)
def test_each_kind_of_limit_relaxes_its_own_way(limits, name, value):
    asked = question(**limits)
    table = slow_or_small()
    assert smallest_conflict(table, asked) == (name,)
    assert relaxations(table, asked, (name,))[0].value == pytest.approx(value, rel=0.004)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.2), st.integers(1, 400), st.integers(1, 8))
def test_conflicts_are_minimal_and_relaxations_hold(tpot, users, devices):
    table = slow_or_small()
    asked = question({"concurrency": users}, tpot_s=tpot, devices=devices)
    if feasible(table, asked):
        return
    conflict = smallest_conflict(table, asked)
    alone = asked
    for name in set(active_limits(asked)) - set(conflict):
        alone = with_limit(alone, name, None)
    assert not feasible(table, alone)
    for name in conflict:
        assert feasible(table, with_limit(alone, name, None))
    for found in relaxations(table, asked, conflict):
        assert feasible(table, with_limit(asked, found.limit, found.value))
