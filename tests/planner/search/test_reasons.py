"""Reasons of any programme: what binds, by how much, what contradicts; equal to brute force."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search.reasons import (
    Limit,
    Relaxation,
    bindings,
    contradiction,
    nearest,
    relaxations,
    smallest_conflict,
    with_unit,
)

VALUES, WEIGHTS = (9, 7, 6, 4, 3), (5, 4, 3, 2, 2)
"""A knapsack: the question is how much room there is, how many items, and what is left out."""


def changing(name):
    return lambda question, value: question | {name: value}


def limits_of(question):
    return [
        Limit("room", question["room"], changing("room"), step=1.0),
        Limit("items", question["items"], changing("items"), step=1.0),
        Limit("leave", None, lambda q, _: q | {"leave": False}),
        Limit("least", question["least"], changing("least"), greater=False, end=0.0, step=1.0),
    ]


def solve(question):
    """Most value of at most `items` things within `room`; none when it is less than `least`."""
    best = -math.inf
    for picks in itertools.product((0, 1), repeat=len(VALUES)):
        heavy = sum(w for w, p in zip(WEIGHTS, picks, strict=True) if p)
        kept = question["room"] is None or heavy <= question["room"]
        few = question["items"] is None or sum(picks) <= question["items"]
        left = not (question["leave"] and picks[0])
        if kept and few and left:
            best = max(best, sum(v for v, p in zip(VALUES, picks, strict=True) if p))
    return None if question["least"] is not None and best < question["least"] else best


def feasible(question):
    return solve(question) is not None


QUESTION = st.fixed_dictionaries({
    "room": st.integers(0, 17), "items": st.integers(0, 5), "leave": st.booleans(),
    "least": st.integers(0, 32),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(QUESTION)
def test_binding_limits_are_those_whose_easing_helps(question):
    now = solve(question)
    if now is None:
        return
    limits = limits_of(question)
    found = {item.limit: item for item in bindings(question, limits, solve, now, maximise=True)}
    for limit in limits:
        free = solve(limit.change(question, None))
        assert (limit.name in found) == (free > now)
        if limit.name in found:
            item = found[limit.name]
            assert item.without_objective == free
            if limit.value is not None:
                more = limit.change(question, limit.value + (1 if limit.greater else -1))
                assert item.one_percent_more_objective == max(solve(more), now)


@settings(max_examples=300, deadline=None)
@given(QUESTION)
def test_conflicts_are_the_smallest_and_relaxations_the_nearest(question):
    if feasible(question):
        return
    limits = limits_of(question)
    names = [limit.name for limit in limits]
    conflict = smallest_conflict(question, limits, feasible)

    def only(kept):
        asked = question
        for limit in limits:
            if limit.name not in kept:
                asked = limit.change(asked, None)
        return asked

    sizes = [size for size in range(5) for kept in itertools.combinations(names, size)
             if not feasible(only(kept))]  # fmt: skip
    assert len(conflict) == min(sizes)
    assert not feasible(only(conflict))
    found = relaxations(question, [limit for limit in limits if limit.name in conflict], feasible)
    for item in found:
        limit = next(x for x in limits if x.name == item.limit)
        if item.value is None:
            assert feasible(limit.change(question, None))
            continue
        assert feasible(limit.change(question, item.value))
        closer = item.value - (1 if limit.greater else -1)
        assert not feasible(limit.change(question, closer))
    assert [x.change_ratio for x in found] == sorted(x.change_ratio for x in found)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(1.001, 1000), st.booleans())
def test_a_limit_without_steps_is_relaxed_within_a_third_of_a_percent(asked, factor, greater):
    best = asked * factor if greater else asked / factor
    limit = Limit("x", asked, lambda _, value: value, greater=greater)
    found = nearest(asked, limit, lambda v: v >= best if greater else v <= best)
    assert found == pytest.approx(best, rel=0.0028)
    assert found >= best if greater else found <= best


def test_many_limits_give_a_set_that_cannot_be_shrunk():
    """Thirty wishes of which three contradict: too many to try all sets of three."""
    limits = [Limit(f"wish {n}", None, lambda q, _, n=n: q - {n}) for n in range(30)]
    rivals = {4, 17, 23}
    found = smallest_conflict(frozenset(range(30)), limits, lambda q: not rivals <= q)
    assert set(found) == {f"wish {n}" for n in rivals}


def test_the_error_names_the_conflict_and_the_way_out():
    question = {"room": 6, "items": 5, "leave": True, "least": 20}
    told = contradiction(
        MoesaicError("infeasible", "too little", "/least"), question, limits_of(question), feasible
    )
    assert told.message == (
        "too little; in conflict: room and least; least 11 in place of 20 would do"
    )
    assert told.path == "/least"
    assert told.kind == "infeasible"


def test_values_are_said_as_people_read_them():
    assert with_unit("ttft_s", 0.05) == "50 ms"
    assert with_unit("device_bytes", 2.0**31) == "2 GiB"
    assert with_unit("groups", 12.0) == "12"
    assert Relaxation("uniform", None, None).text() == "without uniform it would do"
    assert Relaxation("x", 0.0, 5.0).change_ratio == math.inf
