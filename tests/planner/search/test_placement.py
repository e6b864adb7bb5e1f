"""Placement: never worse than the published balancing, bounds that hold, moves that are counted."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.expert_load import read_expert_load
from planner.search.eplb import eplb, replicate
from planner.search.grouping import assign_groups, state_groups
from planner.search.packing import busiest, doubled, lower_bound, pack
from planner.search.placement import PlacementQuestion, place
from tests.planner.search.test_assignment import GOLDEN

WEIGHTS = st.lists(st.floats(0.01, 1), min_size=4, max_size=6)


def normalised(values):
    row = np.array(values)
    return row / row.sum()


def best_by_hand(row, devices, slots):
    """Least busiest over mean over all copy counts and all placements."""
    experts, width = len(row), slots // devices
    best = np.inf
    for extra in itertools.combinations_with_replacement(range(experts), slots - experts):
        copies = np.ones(experts, dtype=int)
        np.add.at(copies, list(extra), 1)
        if copies.max() > devices:
            continue
        choices = list(itertools.combinations(range(experts), width))
        for layout in itertools.combinations_with_replacement(choices, devices):
            placed = np.bincount(np.array(layout).ravel(), minlength=experts)
            if (placed == copies).all():
                best = min(best, busiest(np.array(layout), row[None], np.ones(devices)))
    return best


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 2))
def test_bound_and_packing_enclose_the_optimum(values, redundant):
    row, devices = normalised(values), 2
    slots = len(row) + redundant
    if slots % devices:
        slots += 1
    if slots - len(row) > len(row):
        return
    best = best_by_hand(row, devices, slots)
    found = pack(row[None], slots, np.ones(devices))
    assert found.bound <= best * (1 + 1e-9)
    assert found.max_over_mean >= best * (1 - 1e-9)
    assert found.max_over_mean <= best * 1.34


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=16, max_size=16), st.sampled_from([0, 4, 8, 16]))
def test_no_worse_than_the_published_balancing(values, redundant):
    row = normalised(values)
    slots, speeds = 16 + redundant, np.ones(4)
    base = eplb(row, slots, 4)
    found = pack(row[None], slots, speeds, base)
    if not doubled(base):  # the published balancing may put two copies on one device
        assert found.max_over_mean <= busiest(base, row[None], speeds) + 1e-12
    assert found.max_over_mean >= found.bound - 1e-12
    for device in found.experts:
        assert len(set(device)) == len(device)
    assert sorted(set(found.experts.ravel())) == list(range(16))


def test_copies_minimise_the_largest():
    row = normalised([8, 4, 2, 1])
    found = (row / replicate(row, 7)).max()
    every = (
        (row / (1 + np.array(extra))).max()
        for extra in itertools.product(range(4), repeat=4)
        if sum(extra) == 3
    )
    assert found == pytest.approx(min(every))


def test_faster_devices_take_more():
    row, speeds = np.full(8, 1 / 8), np.array([0.5, 0.5, 1.5, 1.5])
    assert pack(row[None], 8, speeds).bound == lower_bound(row[None], 8, speeds)
    question = PlacementQuestion(loads=((tuple([1.0] * 8),),), devices=4, speeds=(1, 1, 3, 3))
    assert place(question).layers[0].max_over_mean >= 1


@pytest.mark.parametrize("trace", ["decode_in1000out1000", "prefill_in1024"])
def test_real_loads_reach_the_bound(shared, trace):
    load = read_expert_load(shared / "data/traces/expert_load_deepseek_v3" / f"{trace}.json")
    answer = place(PlacementQuestion(loads=(load.counts,), devices=32, nodes=4, redundant=32))
    assert len(answer.layers) == 58
    assert max(layer.gap_ratio for layer in answer.layers) <= 0.005
    for layer, greedy in zip(answer.layers, answer.greedy.max_over_mean, strict=True):
        assert layer.max_over_mean <= greedy + 1e-12
        assert layer.max_over_mean_before > layer.max_over_mean
    assert len(answer.physical_to_logical_map) == 61
    assert all(len(row) == 288 for row in answer.physical_to_logical_map)


def test_moves_are_limited_and_help(shared):
    folder = shared / "data/traces/expert_load_deepseek_v3"
    first, second = (
        read_expert_load(folder / name).counts[:8]
        for name in ("decode_in1000out1000.json", "decode_in500out1500.json")
    )
    today = place(PlacementQuestion(loads=(first,), devices=32, redundant=32))
    current = today.physical_to_logical_map
    worst = []
    for moves in (0, 10, 40):
        answer = place(
            PlacementQuestion(loads=(second,), devices=32, redundant=32, current=current,
                              max_moves=moves)
        )  # fmt: skip
        assert answer.moves <= moves
        worst.append(sum(layer.max_over_mean for layer in answer.layers))
        if moves == 0:
            assert answer.physical_to_logical_map == current
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] < worst[0]


def test_several_traces_are_balanced_by_the_worst():
    one, two = (8.0, 1, 1, 1, 1, 1, 1, 1), (1.0, 1, 1, 1, 1, 1, 1, 8)
    both = place(PlacementQuestion(loads=((one,), (two,)), devices=2, redundant=2))
    alone = place(PlacementQuestion(loads=((one,),), devices=2, redundant=2), score=(two,))
    assert both.layers[0].max_over_mean <= alone.scored[0].max_over_mean + 1e-12


def test_the_mean_of_traces_may_be_balanced_instead():
    loads = (((8.0, 1, 1, 1, 1, 1, 1, 1),), ((1.0, 1, 1, 1, 1, 1, 1, 8),))
    mean = tuple(float(x) / 30 for x in np.array(loads).sum(axis=0)[0])
    asked = PlacementQuestion(loads=loads, devices=2, redundant=2, robust="mean")
    plain = place(PlacementQuestion(loads=((mean,),), devices=2, redundant=2))
    assert place(asked).physical_to_logical_map == plain.physical_to_logical_map
    assert place(asked).layers[0].max_over_mean == pytest.approx(plain.layers[0].max_over_mean)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_groups_to_nodes_is_optimal(values):
    loads = np.array(values)
    node, bound = assign_groups(loads[None], 2)
    best = min(
        max(loads[list(part)].sum(), loads.sum() - loads[list(part)].sum())
        for part in itertools.combinations(range(6), 3)
    )
    assert np.bincount(node).tolist() == [3, 3]
    assert bound == pytest.approx(best, abs=1e-6)


def test_the_groups_programme_reads_as_reviewed(tmp_path):
    loads = np.array([[0.25, 0.5, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125]])
    state_groups(loads, 2).write_lp(tmp_path / "groups.lp")
    assert (tmp_path / "groups.lp").read_text() == (GOLDEN.parent / "groups.lp").read_text()


def test_groups_stay_on_their_node():
    row = tuple(float(x) for x in range(1, 17))
    answer = place(PlacementQuestion(loads=((row,),), devices=4, nodes=2, groups=4, redundant=4))
    layout = np.array(answer.physical_to_logical_map[0]).reshape(2, -1)
    for group in range(4):
        members = {4 * group, 4 * group + 1, 4 * group + 2, 4 * group + 3}
        assert sum(bool(members & set(part.tolist())) for part in layout) == 1


def test_same_question_same_layout():
    row = tuple(float(x % 7 + 1) for x in range(32))
    once, again = (
        place(PlacementQuestion(loads=((row,),), devices=4, redundant=4)) for _ in range(2)
    )
    assert once.model_dump(exclude={"solve_s"}) == again.model_dump(exclude={"solve_s"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"redundant": 1}, "9 slots, which 4 devices"),
        ({"nodes": 3}, "3 nodes"),
        ({"loads": [[[0.0] * 8]]}, "one in some"),
        ({"loads": [[[float("nan")] * 8]]}, "finite"),
        ({"loads": [[[-1.0] * 8]]}, "greater than"),
        ({"loads": [[[1.0] * 8, [1.0] * 7]]}, "same layers and experts"),
        ({"groups": 3}, "3 groups"),
        ({"experts_per_device_max": 1}, "too few"),
        ({"redundant": 28}, "twice on a device"),
        ({"max_moves": 3}, "need current"),
        ({"current": [[0] * 8]}, "lacks experts"),
        ({"current": [[0] * 9]}, "1 x [9]"),
        ({"speeds": [1.0]}, "1 speeds for 4"),
    ],
)
def test_bad_questions(change, words):
    base = {"loads": [[[1.0] * 8]], "devices": 4}
    with pytest.raises(MoesaicError) as caught:
        place(PlacementQuestion.parse(base | change))
    assert words in caught.value.message


def test_several_traces_generalise_better(shared):
    """Layouts of six prefill loads, judged on the seventh; docs/placement-growth.md has all."""
    folder = shared / "data/traces/expert_load_deepseek_v3"
    loads = {f.stem: read_expert_load(f).counts[3:61:15] for f in folder.glob("prefill_*.json")}
    score = loads.pop("prefill_in512")
    asked = {"loads": [loads[name] for name in sorted(loads)], "devices": 32, "redundant": 32}
    worst, mean = (
        place(PlacementQuestion.parse(asked | {"robust": robust}), score)
        for robust in ("worst", "mean")
    )
    robust = np.mean([layer.max_over_mean for layer in worst.scored])
    plain = np.mean([layer.max_over_mean for layer in mean.scored])
    greedy = np.mean(mean.scored_greedy.max_over_mean)
    assert robust <= 1.02
    assert robust < plain < 1.15
    assert robust < greedy - 0.05
