"""Why a layout is no better: against brute force; contradicting wishes by name, with a way out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.expert_load import read_choices, read_expert_load
from planner.search import solver
from planner.search.packing import busiest
from planner.search.pins import Pins
from planner.search.placement import PlacementQuestion, place
from planner.search.placement_limits import check, possible, rivals
from planner.search.placement_reasons import place_explained
from tests.planner.search.test_constraints import PIN, WEIGHT, keeps, layouts

AT = 1e-5
"""Tolerance of the solver's own."""


def allowed(pins):
    """Pins of a question on two devices that are two nodes."""
    places = np.array([[d == (p.device if p.node is None else p.node) for d in range(2)]
                       for p in pins]).reshape(-1, 2)  # fmt: skip
    return Pins(np.array([p.expert for p in pins], dtype=int), places,
                np.zeros(len(pins), dtype=int))  # fmt: skip


def best(row, width, pins):
    """Least busiest over mean of four experts on two devices that keeps the pins."""
    values = [busiest(x, row, np.ones(2)) for x in layouts(4, 2, width)
              if keeps(x, allowed(pins))]  # fmt: skip
    return min(values, default=np.inf)


@settings(max_examples=100, deadline=None)
@given(st.lists(WEIGHT, min_size=4, max_size=4), st.sampled_from([0, 2]),
       st.lists(PIN, max_size=2, unique_by=lambda p: p.expert))  # fmt: skip
def test_binding_limits_equal_brute_force(values, redundant, pins):
    row, width = np.array(values)[None] / sum(values), 2 + redundant // 2
    now = best(row, width, pins)
    question = PlacementQuestion(loads=((tuple(values),),), devices=2, nodes=2,
                                 redundant=redundant, pins=tuple(pins))  # fmt: skip
    answer = place_explained(question)
    assert answer.objective_value == pytest.approx(now, abs=AT)
    found = {item.limit: item for item in answer.binding}
    more, free = best(row, width + 1, pins), best(row, width, [])
    if now > 1.002:
        if more < now - 2 * AT:
            assert found["redundant"].one_percent_more_value == redundant + 2
            assert found["redundant"].one_percent_more_objective == pytest.approx(more, abs=AT)
        if free < now - 2 * AT:
            assert found["pins"].without_objective == pytest.approx(free, abs=AT)
    if more > now - 1e-9:
        assert "redundant" not in found
    if free > now - 1e-9:
        assert "pins" not in found
    assert answer.runner_up


@settings(max_examples=200, deadline=None)
@given(st.lists(PIN, max_size=4), st.sampled_from([0, 2, 4]), st.integers(1, 5),
       st.floats(1, 5))  # fmt: skip
def test_contradictions_are_found_exactly_when_no_layout_is_left(pins, redundant, most, room):
    width = 2 + redundant // 2
    asked = {"loads": (((1.0,) * 4,),), "devices": 2, "nodes": 2, "redundant": redundant,
             "pins": tuple(pins), "experts_per_device_max": most, "device_bytes": room,
             "expert_bytes": (1.0,)}  # fmt: skip
    question = PlacementQuestion(**asked)
    fits = width <= most and width <= room * (1 + 1e-9)
    truth = fits and any(keeps(x, allowed(pins)) for x in layouts(4, 2, width))
    assert possible(question) == truth
    if truth:
        return
    with pytest.raises(MoesaicError) as caught:
        place(question)
    assert caught.value.kind == "infeasible"
    conflict = caught.value.message.partition("in conflict: ")[2].partition(";")[0]
    named = set(conflict.split(" and ")) - {""}
    names = {limit.name for limit in rivals(question)}
    assert named <= names
    for size in range(len(named)):
        for kept in itertools.combinations(rivals(question), size):
            left = question
            for limit in rivals(question):
                if limit not in kept:
                    left = limit.change(left, None)
            assert possible(left)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts_per_device_max": 2, "redundant": 4},
         "in conflict: experts_per_device_max and redundant; experts_per_device_max 3 in place of "
         "2 would do"),
        ({"device_bytes": "2 GiB", "expert_bytes": ["1 GiB"], "redundant": 4},
         "in conflict: device_bytes and redundant; device_bytes 3"),
        ({"pins": [{"expert": 3, "device": 0}, {"expert": 3, "device": 1}]},
         "redundant and expert 3 on device 0 and expert 3 on device 1"),
        ({"pins": [{"expert": e, "device": 0} for e in (1, 2, 3)]},
         "expert 1 on device 0 and expert 2 on device 0 and expert 3 on device 0; without expert"),
        ({"current": [[*range(8)]], "max_moves": 3, "pins": [{"expert": 7, "device": 0}]},
         "in conflict: max_moves and expert 7 on device 0"),
    ],
)  # fmt: skip
def test_contradictions_come_with_a_way_out(change, words):
    question = PlacementQuestion.parse({"loads": [[[1.0] * 8]], "devices": 4} | change)
    with pytest.raises(MoesaicError) as caught:
        place(question)
    assert words in caught.value.message
    with pytest.raises(MoesaicError):
        check(question)


def test_pins_may_ask_for_copies_that_are_then_decided():
    """Two copies of one expert: layers take the fewest slots that hold them."""
    pins = [{"expert": 3, "device": 0}, {"expert": 3, "device": 1}]
    base = {"loads": [[[1.0] * 8, [1.0] * 8]], "devices": 4, "pins": pins, "copies": "by_layer",
            "expert_bytes": ["1 GB"]}  # fmt: skip
    answer = place(PlacementQuestion.parse(base | {"device_bytes": "6 GB"}))
    assert answer.redundant == (4, 4)
    for row in answer.physical_to_logical_map:
        held = np.array(row).reshape(4, -1)
        assert 3 in held[0]
        assert 3 in held[1]
    with pytest.raises(MoesaicError, match="device_bytes"):
        place(PlacementQuestion.parse(base | {"device_bytes": "5 GB"}))


@pytest.mark.parametrize("by_bytes", [False, True])
def test_moves_bind_and_more_of_them_help(by_bytes):
    """Six experts in order, the two heaviest on one device: one exchange is two moves."""
    row = [8.0, 7, 1, 1, 1, 1, 1, 1]
    size = {"expert_bytes": ["1 GB"]}
    limit = {"max_move_bytes": "1 GB"} if by_bytes else {"max_moves": 1}
    asked = {"loads": [[row]], "devices": 2, "current": [[*range(8)]]} | size | limit
    answer = place_explained(PlacementQuestion.parse(asked))
    (item,) = answer.binding
    assert item.limit == ("max_move_bytes" if by_bytes else "max_moves")
    assert item.one_percent_more_value == 2 * item.value
    free = place(PlacementQuestion.parse(asked | dict.fromkeys(limit)))
    assert item.without_objective == pytest.approx(free.objective_value)
    assert item.one_percent_more_objective < answer.objective_value


def test_memory_binds_where_copies_are_decided():
    skewed = [8.0, 4, 1, 1, 1, 1, 1, 1]
    asked = {"loads": [[[1.0] * 8, skewed]], "devices": 4, "expert_bytes": ["1 GB"],
             "device_bytes": "4.98 GB", "copies": "by_layer"}  # fmt: skip
    answer = place_explained(PlacementQuestion.parse(asked))
    (item,) = answer.binding
    more = place(PlacementQuestion.parse(asked | {"device_bytes": 4.98e9 * 1.01}))
    assert item.one_percent_more_objective == pytest.approx(more.objective_value)
    assert item.without_objective <= item.one_percent_more_objective < answer.objective_value


def test_traffic_is_bought_with_balance_and_copies(shared):
    trace = shared / "data/traces/routing_tokens_deepseek_v2_lite/summary.npz"
    asked = {"loads": [[read_expert_load(trace).counts[0]]], "devices": 16, "nodes": 4,
             "tokens": read_choices(trace)[[0]].tolist(), "objective": "lexicographic"}  # fmt: skip
    answer = place_explained(PlacementQuestion.parse(asked))
    found = {item.limit: item for item in answer.binding}
    slack = found["balance_slack"]
    assert slack.without_objective < 0.97 * answer.objective_value
    assert slack.one_percent_more_objective <= answer.objective_value
    assert found["redundant"].one_percent_more_objective < 0.9 * answer.objective_value
    assert "experts largest first" in answer.runner_up
    assert answer.status == "feasible"


def test_an_even_layout_has_no_limit_to_blame():
    answer = place_explained(PlacementQuestion.parse({"loads": [[[1.0] * 8]], "devices": 4}))
    assert answer.binding == ()
    assert answer.status == "optimal"
    hurried = PlacementQuestion.parse(
        {"loads": [[[8.0, 1, 1, 1]]], "devices": 4, "time_limit_s": 1e-9}
    )
    late = place_explained(hurried)
    assert late.binding == ()
    assert late.runner_up is None


def test_a_solver_without_memory_leaves_the_packing(monkeypatch):
    """Every programme goes apart and dies: the layout is what swaps find, flagged by its gap."""
    monkeypatch.setattr(solver, "MOST_HERE", 0)
    rng = np.random.default_rng(8)
    base = {"loads": [rng.dirichlet(np.full(8, 1.0), 2).tolist()], "devices": 4, "nodes": 2,
            "redundant": 4, "objective": "lexicographic"}  # fmt: skip
    plain = place(PlacementQuestion.parse(base))
    starved = place(PlacementQuestion.parse(base | {"memory_limit_bytes": 1.0}))
    assert starved.status == "feasible"
    for poor, rich in zip(starved.layers, plain.layers, strict=True):
        assert poor.bound <= rich.max_over_mean + 1e-9
    for poor, rich in zip(starved.traffic, plain.traffic, strict=True):
        assert poor.bound <= rich.bound <= rich.crossing + 1e-9
        assert poor.crossing >= rich.bound - 1e-9
