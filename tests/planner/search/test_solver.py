"""The solver's answers: status, bound and values in this process and in one of its own."""

import functools
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search import solver, solver_process
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


def cover(size=36):
    """A cover: something is found at once, and the proof takes long."""
    draw = random.Random(5)
    programme = Programme("cover", maximise=False)
    items = [programme.binary(f"x_{i}") for i in range(size)]
    for row in range(size):
        some = programme.total([(x, draw.randint(10, 90)) for x in draw.sample(items, 9)])
        programme.require(f"row_{row}", some >= 137)
    programme.objective(programme.total([(x, draw.randint(10, 30)) for x in items]))
    return programme


def idle():
    """The process that the next programme is given to."""
    small = knapsack([5.0, 4, 3], [3, 2, 2], 4)
    assert small.solve_apart(time_limit_s=30, memory_limit_bytes=8 * GIB).status == "optimal"
    return solver_process._IDLE[-1]


def gone(pid):
    """Whether a process has ended, waiting a few seconds for it."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 20), st.integers(1, 9), st.integers(0, 3)),
                min_size=1, max_size=6), st.integers(0, 40), st.booleans())  # fmt: skip
def test_both_ways_agree_on_any_programme(items, room, maximise):
    """Bounds, whole numbers, free and unused variables, equalities: one answer here and apart."""
    programme = Programme("any", maximise=maximise)
    names = [programme.integer(f"n_{i}", -1, most) if i % 2 else
             programme.number(f"n_{i}", None if i == 2 else 0, most)
             for i, (_, _, most) in enumerate(items)]  # fmt: skip
    pairs = [(x, weight) for x, (_, weight, _) in zip(names, items, strict=True)]
    programme.require("room", programme.total(pairs) <= room)
    programme.require("floor", programme.total(pairs) >= -20)
    programme.require("even", programme.total([(names[0], 2)]) == min(items[0][2], 1))
    programme.objective(
        programme.total([(x, v) for x, (v, _, _) in zip(names, items, strict=True)])
    )
    here = programme.solve()
    apart = programme.solve_apart(time_limit_s=30, memory_limit_bytes=8 * GIB)
    assert here.status == apart.status
    assert here.values == pytest.approx(apart.values)
    assert (here.objective, here.bound) == pytest.approx(
        (apart.objective, apart.bound), nan_ok=True
    )


def test_the_process_is_kept_for_the_next_programme():
    assert idle().popen.pid == idle().popen.pid


def test_a_process_that_is_killed_from_outside_is_replaced():
    first = idle().popen
    first.kill()
    first.wait()
    assert idle().popen.pid != first.pid


def test_a_process_that_outlives_its_time_is_killed(monkeypatch):
    """The market split goes on for hours; its process is gone at once."""
    process = idle().popen
    monkeypatch.setattr(solver_process, "GRACE_S", -597.0)
    with pytest.raises(MoesaicError, match="killed after 3 s"):
        endless().solve_apart(time_limit_s=600, memory_limit_bytes=8 * GIB)
    assert process.returncode == -signal.SIGKILL
    assert gone(process.pid)


def test_what_was_found_before_the_kill_is_the_answer_with_its_gap(monkeypatch):
    programme = cover(150)
    idle()
    monkeypatch.setattr(solver_process, "GRACE_S", -596.0)
    found = programme.solve_apart(time_limit_s=600, memory_limit_bytes=8 * GIB)
    assert found.status == "feasible"
    assert 0 < found.bound < found.objective
    assert found.gap_ratio == pytest.approx((found.objective - found.bound) / found.objective)
    again = cover(150)
    for name, value in found.values.items():
        again.require(f"fix_{name}", again.total([(again.variable(name), 1)]) == round(value))
    assert again.solve().objective == pytest.approx(found.objective)


def test_a_process_beyond_its_memory_ends():
    """A million coefficients do not fit where the bare solver does."""
    small = knapsack([5.0, 4, 3], [3, 2, 2], 4)
    large = Programme("dense", maximise=False)
    items = [large.number(f"x_{i}", 0, 1) for i in range(1000)]
    for row in range(300):
        pairs = [(x, 1.0 + (i * row) % 7) for i, x in enumerate(items)]
        large.require(f"row_{row}", large.total(pairs) >= row)
    large.objective(large.total([(x, 1) for x in items]))
    solver_process.end_all()
    said = Path(f"/proc/{idle().popen.pid}/status").read_text()
    peak = next(line for line in said.splitlines() if line.startswith("VmPeak"))
    limit = int(peak.split()[1]) * 1024 + 24 * 2**20
    assert small.solve_apart(time_limit_s=30, memory_limit_bytes=limit).status == "optimal"
    with pytest.raises(MoesaicError, match="GiB"):
        large.solve_apart(time_limit_s=30, memory_limit_bytes=limit)
    assert large.solve_apart(time_limit_s=60, memory_limit_bytes=8 * GIB).status == "optimal"


def test_a_process_ends_with_its_parent():
    script = (
        "from tests.planner.search.test_solver import endless, idle\n"
        "print(idle().popen.pid, flush=True)\n"
        "endless().solve_apart(time_limit_s=600, memory_limit_bytes=2.0**33)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_limits_hold_for_all_programmes_inside(monkeypatch):
    """A question whose time is over leaves the least there is to each of its programmes."""
    monkeypatch.setattr(solver, "MOST_HERE", 1)
    with solver.limited(0.0, 8 * GIB), pytest.raises(MoesaicError, match=r"within 0\.1 s"):
        endless().solve_guarded(time_limit_s=600)
    with solver.limited(0.0, 8 * GIB):
        assert endless().attempt(time_limit_s=600) is None
        assert cover().attempt(time_limit_s=600).status in ("optimal", "feasible")
    assert cover().solve_guarded().status == "optimal"


def test_status_bound_and_gap_are_the_solvers_own_when_it_stops_early():
    """PuLP says Optimal on a limit; the answer says feasible, with a bound below and its gap."""
    programme = cover()
    stopped = programme.solve(most_nodes=1)
    done = programme.solve()
    assert stopped.status == "feasible"
    assert done.status == "optimal"
    assert stopped.bound <= done.objective + 1e-6 <= stopped.objective + 2e-6
    assert stopped.gap_ratio == pytest.approx(
        (stopped.objective - stopped.bound) / stopped.objective
    )
    assert programme.solve(most_nodes=1).values == stopped.values
