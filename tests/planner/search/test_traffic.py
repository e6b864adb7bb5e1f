"""Traffic between nodes: programmes equal brute force, bounds hold, limits on devices are kept."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.expert_load import read_choices, read_expert_load
from planner.search.crossing import Layer, least_crossing
from planner.search.node_programme import Room, solved, state_pairs, state_visits
from planner.search.packing import busiest, doubled, pack
from planner.search.pins import no_pins
from planner.search.placement import PlacementQuestion, place
from planner.search.spectral import least_distinct, least_visits
from planner.search.traffic import Pairs, Visits, patterns
from tests.planner.search.test_assignment import GOLDEN

LOADS = st.lists(st.floats(0.05, 1), min_size=6, max_size=6)
SOURCES = st.lists(st.floats(0, 1), min_size=12, max_size=12)
TOKENS = st.lists(st.permutations(range(6)), min_size=3, max_size=12)
SPLITS = [np.isin(np.arange(6), part).astype(int) for part in itertools.combinations(range(6), 3)]


def room(cap, nodes=2, slots=3, devices=1, experts=6):
    return Room(np.full(nodes, slots), np.full(nodes, devices), np.full(nodes, cap), 1.0,
                np.zeros((experts, nodes), dtype=int))  # fmt: skip


def by_hand(cost, row, cap):
    """Least traffic over all splits of six experts onto two nodes that keep the limit."""
    return min(
        (cost.value(np.arange(6), split) for split in SPLITS
         if np.bincount(split, row, 2).max() <= cap * (1 + 1e-9)), default=np.inf,
    )  # fmt: skip


def tokens(drawn, size, where):
    ids = np.array([row[:size] for row in drawn])
    nodes = np.arange(len(ids)) % 2 if where else None
    return patterns(ids, nodes, 2, np.arange(6))


@settings(max_examples=100, deadline=None)
@given(LOADS, SOURCES, st.floats(0.5, 0.7))
def test_pairs_equal_brute_force(loads, sources, cap):
    row, share = np.array(loads) / sum(loads), np.array(sources).reshape(2, 6) + 1e-3
    cost = Pairs(share / share.sum())
    best = by_hand(cost, row, cap)
    found = solved(state_pairs(cost.share, row[None], room(cap)), 20)
    if np.isinf(best):
        assert found.copies is None
        return
    assert found.bound <= best + 1e-7
    assert cost.value(*np.nonzero(found.copies)) == pytest.approx(best, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(LOADS, TOKENS, st.integers(2, 4), st.booleans(), st.floats(0.5, 0.7))
def test_visits_equal_brute_force(loads, drawn, size, where, cap):
    row, cost = np.array(loads) / sum(loads), tokens(drawn, size, where)
    best = by_hand(cost, row, cap)
    found = solved(state_visits(cost, row[None], room(cap)), 20)
    if np.isinf(best):
        assert found.copies is None
        return
    assert cost.value(*np.nonzero(found.copies)) == pytest.approx(best, abs=1e-5)
    pairs = solved(state_pairs(cost.share, row[None], room(cap)), 20)
    assert pairs.bound <= best + 1e-7
    assert least_visits(cost, 2, (row, cap), 1 - pairs.bound) <= best + 1e-7


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.integers(2, 4), st.booleans())
def test_a_change_is_what_the_swap_adds(drawn, size, where):
    cost = tokens(drawn, size, where)
    experts, nodes = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    for measure in (cost, Pairs(cost.share)):
        change = measure.change(experts, nodes)
        for one, two in itertools.product(range(3), range(3, 6)):
            after = experts.copy()
            after[one], after[two] = two, one
            added = measure.value(after, nodes) - measure.value(experts, nodes)
            assert change[one, two] == pytest.approx(added, abs=1e-6)


@settings(max_examples=120, deadline=None)
@given(LOADS, TOKENS, st.booleans(), st.booleans(), st.floats(0, 0.3))
def test_layouts_keep_the_limit_and_lie_above_the_bound(loads, drawn, where, by_pairs, slack):
    """Four experts with two copies on two nodes of one device: all layouts by hand."""
    row = np.array(loads[:4]) / sum(loads[:4])
    ids = np.array([[e for e in order if e < 4][:2] for order in drawn])
    cost = patterns(ids, np.arange(len(ids)) % 2 if where else None, 2, np.arange(4))
    cost = Pairs(cost.share) if by_pairs else Visits(cost.member, cost.weight, copied=True)
    speeds = np.ones(2)
    start = pack(row[None], 6, speeds)
    cap = start.max_over_mean * (1 + slack)
    layer = Layer(row[None], speeds, np.arange(2), no_pins(2), cost)
    found = least_crossing(layer, start, cap, 20)
    layouts = [np.array(two) for two in itertools.product(itertools.combinations(range(4), 3),
                                                          repeat=2)]  # fmt: skip
    values = [
        cost.value(x.ravel(), np.repeat([0, 1], 3)) for x in layouts
        if len(set(x.ravel())) == 4 and busiest(x, row[None], speeds) <= cap * (1 + 1e-9)
    ]  # fmt: skip
    assert found.packing.max_over_mean <= cap * (1 + 1e-9)
    assert found.bound <= min(values) + 1e-7
    assert found.value >= min(values) - 1e-9
    assert found.value <= cost.value(start.experts.ravel(), np.repeat([0, 1], 3)) + 1e-9


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("traffic", lambda: state_pairs(
            np.array([[0.25, 0.125, 0.0625, 0.0625], [0.125, 0.125, 0.125, 0.125]]),
            np.array([[0.5, 0.25, 0.125, 0.125]]), room(0.75, slots=2, experts=4))),
        ("traffic_copies", lambda: state_pairs(
            np.array([[0.25, 0.125, 0.125], [0.25, 0.125, 0.125]]),
            np.array([[0.5, 0.25, 0.25]]),
            Room(np.array([2, 2]), np.array([1, 1]), np.array([0.625, 0.625]), 0.375,
                 np.array([[0, 0], [1, 0], [0, 0]])))),
        ("visits", lambda: state_visits(
            Visits(np.array([[True, True, False, False], [False, True, True, False]]),
                   np.array([[0.25, 0.25], [0.5, 0]])),
            np.array([[0.25, 0.5, 0.25, 0]]), room(0.75, slots=2, experts=4))),
    ],
)  # fmt: skip
def test_the_programmes_read_as_reviewed(tmp_path, name, state):
    state()[0].write_lp(tmp_path / "found.lp")
    assert (tmp_path / "found.lp").read_text() == (GOLDEN.parent / f"{name}.lp").read_text()


def test_pairs_in_common_nodes_bound_the_nodes():
    assert least_distinct(0, 4) == 4
    assert least_distinct(6, 4) == 1
    assert least_distinct(2, 4) == 2
    assert least_distinct(1.5, 4) == pytest.approx(2.5)


def test_real_tokens_cross_a_quarter_less(shared):
    """DeepSeek-V2-Lite's own tokens on 4 nodes: balance kept, a fifth below the greedy."""
    trace = shared / "data/traces/routing_tokens_deepseek_v2_lite/summary.npz"
    counts = read_expert_load(trace).counts
    picked = [0, 12]
    ids = read_choices(trace)[picked].tolist()
    asked = {"loads": [[counts[i] for i in picked]], "devices": 16, "nodes": 4, "tokens": ids,
             "objective": "lexicographic"}  # fmt: skip
    answer = place(PlacementQuestion.parse(asked))
    assert answer.traffic_measure == "visits"
    for layer, balance in zip(answer.traffic, answer.layers, strict=True):
        assert layer.crossing <= 0.78 * layer.crossing_before
        assert layer.crossing <= 0.87 * layer.greedy
        assert layer.greedy_max_over_mean > 1.4  # the greedy breaks the balance
        assert layer.gap_ratio <= 0.35
        assert balance.max_over_mean <= balance.bound * 1.03


def test_sources_are_proven(shared):
    """Sequences dealt to 4 nodes, 16 copies: the programme against the greedy, pair by pair."""
    trace = shared / "data/traces/routing_tokens_deepseek_v2_lite/summary.npz"
    ids = read_choices(trace)[[5, 12]]
    start = (np.arange(ids.shape[1]) * 13 // ids.shape[1]) % 4
    sources = np.zeros((2, 4, 64))
    for layer, chosen in enumerate(ids):
        np.add.at(sources[layer], (start[:, None], chosen), 1.0)
    asked = {"loads": [sources.sum(axis=1).tolist()], "sources": sources.tolist(), "devices": 16,
             "nodes": 4, "redundant": 16, "objective": "lexicographic"}  # fmt: skip
    answer = place(PlacementQuestion.parse(asked))
    assert answer.traffic_measure == "pairs"
    for layer in answer.traffic:
        assert layer.crossing <= 0.985 * layer.greedy
        assert layer.gap_ratio <= 0.05
    layouts = [np.array(row).reshape(16, -1) for row in answer.physical_to_logical_map]
    assert not any(doubled(layout) for layout in layouts)
    again = place(PlacementQuestion.parse(asked))
    assert again.model_dump(exclude={"solve_s"}) == answer.model_dump(exclude={"solve_s"})


def test_a_weighted_sum_trades_balance_for_traffic():
    rng = np.random.default_rng(3)
    sources = rng.dirichlet(np.full(16, 0.5), 2)
    asked = {"loads": [[sources.sum(axis=0).tolist()]], "sources": [sources.tolist()],
             "devices": 4, "nodes": 2, "objective": "weighted"}  # fmt: skip
    little, much = (
        place(PlacementQuestion.parse(asked | {"traffic_weight": weight})) for weight in (0.01, 50)
    )
    assert much.traffic[0].crossing <= little.traffic[0].crossing
    assert little.layers[0].max_over_mean <= much.layers[0].max_over_mean


@pytest.mark.parametrize("on", ["node", "device"])
def test_groups_stay_together_while_traffic_falls(on):
    rng = np.random.default_rng(5)
    ids = np.stack([rng.permutation(16)[:4] for _ in range(60)])
    loads = np.bincount(ids.ravel(), minlength=16).tolist()
    asked = {"loads": [[loads]], "tokens": [ids.tolist()], "devices": 4, "nodes": 2, "groups": 8,
             "groups_on": on, "objective": "lexicographic", "balance_slack": 0.5}  # fmt: skip
    answer = place(PlacementQuestion.parse(asked))
    layout = np.array(answer.physical_to_logical_map[0]).reshape(2 if on == "node" else 4, -1)
    for group in range(8):
        assert sum(bool({2 * group, 2 * group + 1} & set(part)) for part in layout.tolist()) == 1
    assert answer.traffic[0].crossing <= answer.traffic[0].crossing_before + 1e-12
    # Eight groups on two nodes are few enough for the programme: proven.
    assert answer.traffic[0].gap_ratio <= (0.3 if on == "device" else 1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [[[0, 9]]]}, "experts 0 to 7"),
        ({"tokens": [[[0, 0]]]}, "each once"),
        ({"tokens": [[[0, 1], [2]]]}, "equally many"),
        ({"tokens": [[[0, 1]]], "token_nodes": [2]}, "node 0 to 1"),
        ({"token_nodes": [0]}, "needs tokens"),
        ({"sources": [[[1.0] * 8]]}, "layers x nodes x experts"),
        ({"nodes": 1}, "more than one node"),
        ({"node_devices": [1, 2]}, "2 nodes with 3 devices"),
    ],
)
def test_bad_traffic(change, words):
    base = {"loads": [[[1.0] * 8]], "devices": 4, "nodes": 2, "objective": "lexicographic"}
    with pytest.raises(MoesaicError) as caught:
        place(PlacementQuestion.parse(base | change))
    assert words in caught.value.message


def test_nodes_of_unequal_size_hold_what_they_can():
    rng = np.random.default_rng(7)
    sources = rng.dirichlet(np.full(16, 0.5), 2)
    asked = {"loads": [[[1.0] * 16]], "sources": [sources.tolist()], "devices": 4, "nodes": 2,
             "node_devices": [1, 3], "objective": "lexicographic"}  # fmt: skip
    answer = place(PlacementQuestion.parse(asked))
    kept = sources[0][list(answer.physical_to_logical_map[0][:4])].sum()
    assert answer.traffic[0].gap_ratio <= 1e-6
    assert kept > np.sort(sources[0])[-4:].sum() * 0.5
