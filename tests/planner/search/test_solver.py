"""The solver's answers: status, bound and values in this process and in one of its own."""

import functools
import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search import solver
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


def endless():
    """A larger market split, which no machine finishes while a test waits."""
    draw = random.Random(3)
    programme = Programme("endless", maximise=False)
    items = [programme.binary(f"x_{i}") for i in range(70)]
    for row in range(8):
        pairs = [(x, draw.randint(0, 99)) for x in items]
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


def test_a_process_that_outlives_its_time_is_killed(monkeypatch):
    """The market split goes on for hours; its process is gone a second later."""
    started = []
    plain = subprocess.Popen

    class Seen(plain):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Seen)
    monkeypatch.setattr(solver, "GRACE_S", -597.0)
    with pytest.raises(MoesaicError, match="killed after 3 s"):
        endless().solve_apart(time_limit_s=600, memory_limit_bytes=8 * GIB)
    assert started[0].returncode == -signal.SIGKILL
    assert not Path(f"/proc/{started[0].pid}").exists()


def test_a_process_beyond_its_memory_ends():
    """A million coefficients do not fit where the bare solver does."""
    small = knapsack([5.0, 4, 3], [3, 2, 2], 4)
    large = Programme("dense", maximise=False)
    items = [large.number(f"x_{i}", 0, 1) for i in range(1000)]
    for row in range(300):
        pairs = [(x, 1.0 + (i * row) % 7) for i, x in enumerate(items)]
        large.require(f"row_{row}", large.total(pairs) >= row)
    large.objective(large.total([(x, 1) for x in items]))
    limit = bare_bytes() + 24 * 2**20
    assert small.solve_apart(time_limit_s=30, memory_limit_bytes=limit).status == "optimal"
    with pytest.raises(MoesaicError, match="GiB"):
        large.solve_apart(time_limit_s=30, memory_limit_bytes=limit)
    assert large.solve_apart(time_limit_s=60, memory_limit_bytes=8 * GIB).status == "optimal"


def bare_bytes():
    """Address space of a process that has only started the solver."""
    script = (
        "import planner.search.solver, highspy; highspy.Highs();"
        "print(next(x for x in open('/proc/self/status') if x.startswith('VmPeak')).split()[1])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(said.stdout) * 1024


def test_status_bound_and_gap_are_the_solvers_own_when_it_stops_early():
    """PuLP says Optimal on a limit; the answer says feasible, with a bound below and its gap."""
    draw = random.Random(5)
    programme = Programme("cover", maximise=False)
    items = [programme.binary(f"x_{i}") for i in range(36)]
    for row in range(36):
        some = programme.total([(x, draw.randint(10, 90)) for x in draw.sample(items, 9)])
        programme.require(f"row_{row}", some >= 137)
    programme.objective(programme.total([(x, draw.randint(10, 30)) for x in items]))
    stopped = programme.solve(most_nodes=1)
    done = programme.solve()
    assert stopped.status == "feasible"
    assert done.status == "optimal"
    assert stopped.bound <= done.objective + 1e-6 <= stopped.objective + 2e-6
    assert stopped.gap_ratio == pytest.approx(
        (stopped.objective - stopped.bound) / stopped.objective
    )
    assert programme.solve(most_nodes=1).values == stopped.values
