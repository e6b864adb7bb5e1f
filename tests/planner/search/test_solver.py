"""The solver's answers: status, bound and values in this process and in one of its own."""

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search.solver import Programme

GIB = 2.0**30


def knapsack(values, weights, room, *, integer=True):
    programme = Programme("knapsack", maximise=True)
    add = programme.binary if integer else lambda name: programme.number(name, 0, 1)
    items = [add(f"take_{i}") for i in range(len(values))]
    programme.require("room", programme.total(zip(items, weights, strict=True)) <= room)
    programme.objective(programme.total(zip(items, values, strict=True)))
    return programme


def hard():
    """A market split: equalities that branch and bound cannot finish quickly."""
    programme = Programme("split", maximise=False)
    items = [programme.binary(f"x_{i}") for i in range(50)]
    for row in range(6):
        pairs = [(x, (i * 7919 + row * 104729 + i * i * 31) % 97) for i, x in enumerate(items)]
        half = sum(weight for _, weight in pairs) // 2
        programme.require(f"half_{row}", programme.total(pairs) == half)
    programme.objective(programme.total([(x, 1) for x in items]))
    return programme


def test_a_process_of_its_own_gives_the_same_answer():
    programme = knapsack([5.0, 4, 3, 7], [3, 2, 2, 4], 6)
    here = programme.solve()
    apart = programme.solve_apart(time_limit_s=30, memory_limit_bytes=8 * GIB)
    assert (here.status, apart.status) == ("optimal", "optimal")
    assert apart.objective == pytest.approx(here.objective, rel=1e-9)
    assert apart.bound == pytest.approx(here.bound, rel=1e-9)
    assert {k: round(v) for k, v in apart.values.items()} == {
        k: round(v) for k, v in here.values.items()
    }


def test_too_little_memory_is_said():
    with pytest.raises(MoesaicError, match=r"0\.01 GiB"):
        knapsack([1.0], [1], 1).solve_apart(time_limit_s=30, memory_limit_bytes=0.01 * GIB)


@pytest.mark.parametrize("apart", [False, True])
def test_nothing_found_in_time_is_no_verdict(apart):
    programme = hard()
    solve = programme.solve
    if apart:
        solve = functools.partial(programme.solve_apart, memory_limit_bytes=8 * GIB)
    with pytest.raises(MoesaicError, match="no solution within 0"):
        solve(time_limit_s=0)


def test_contradictions_and_open_ends_have_no_numbers():
    empty = knapsack([1.0], [1], -1).solve()
    assert empty.status == "infeasible"
    assert not empty.values
    assert math.isnan(empty.objective)
    endless = Programme("endless", maximise=True)
    endless.objective(endless.total([(endless.number("x"), 1)]))
    assert endless.solve().status in ("unbounded", "infeasible")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=7),
       st.integers(0, 60))  # fmt: skip
def test_bounds_hold_and_small_cases_equal_brute_force(items, room):
    values, weights = zip(*items, strict=True)
    found = knapsack([float(v) for v in values], weights, room).solve()
    best = max(
        sum(v for k, v in enumerate(values) if mask >> k & 1)
        for mask in range(1 << len(items))
        if sum(w for k, w in enumerate(weights) if mask >> k & 1) <= room
    )
    assert found.objective == pytest.approx(best, abs=1e-6)
    relaxed = knapsack([float(v) for v in values], weights, room, integer=False).solve()
    assert relaxed.objective >= found.objective - 1e-6
    assert found.bound >= best - 1e-6
