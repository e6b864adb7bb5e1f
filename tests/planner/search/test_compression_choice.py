"""Bits, pruning, units, merging: equal to brute force on small cases, to the paper on its own."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search.bits import BitsQuestion, choose_bits, state_bits
from planner.search.merging import (
    MergeQuestion,
    choose_owners,
    lost_shares,
    merge,
    state_merging,
)
from planner.search.pruning import (
    PruneQuestion,
    UnitQuestion,
    choose_experts,
    choose_units,
    state_pruning,
)
from tests.planner.search.test_assignment import GOLDEN

SHARE = st.floats(0.01, 1)


def factors(rows):
    """Rows of (count, weight, loss at 1, 2, 3 bits) of one layer."""
    return pl.DataFrame(
        [{"layer": 0, "expert": i, "activation_count": a, "routing_weight_sum": w,
          "quant_loss_1bit": x, "quant_loss_2bit": y, "quant_loss_3bit": z}
         for i, (a, w, x, y, z) in enumerate(rows)]
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(SHARE, SHARE, SHARE, SHARE, SHARE), min_size=3, max_size=5),
       st.integers(0, 8))  # fmt: skip
def test_bits_equal_brute_force(rows, spare):
    table = factors(rows)
    budget = len(rows) + 3 + spare
    answer = choose_bits(table, BitsQuestion(budget_bits=budget))
    a, w = (np.array([row[k] for row in rows]) for k in (0, 1))
    losses = np.array([row[2:] for row in rows])
    costs = ((a / a.sum()) * (w / w.sum()) ** 1.5)[:, None] * losses
    best = min(
        sum(costs[i, j - 1] for i, j in enumerate(widths))
        for widths in itertools.product((1, 2, 3), repeat=len(rows))
        if sum(widths) <= budget and 2 in widths and 3 in widths
    )
    assert answer.objective == pytest.approx(best, rel=1e-6)
    assert answer.bound <= answer.objective * (1 + 1e-9)


def test_the_bits_programme_reads_as_reviewed(tmp_path):
    costs = np.array([[4.0, 2, 1], [8, 3, 1]])
    programme, _ = state_bits(costs, np.zeros(2, dtype=int), [1, 2, 3], 5, keep_high=True)
    programme.write_lp(tmp_path / "bits.lp")
    assert (tmp_path / "bits.lp").read_text() == (GOLDEN.parent / "bits.lp").read_text()


def test_one_budget_for_all_layers_is_never_worse():
    one = factors([(1, 1, 9, 5, 1), (1, 1, 8, 4, 2), (1, 1, 3, 2, 1)])
    both = pl.concat([one, one.with_columns(layer=pl.lit(1), quant_loss_1bit=pl.lit(0.5))],
                     how="vertical_relaxed")  # fmt: skip
    apart, joint = (
        choose_bits(both, BitsQuestion(budget_bits=6, scope=scope)) for scope in ("layer", "model")
    )
    assert joint.objective <= apart.objective + 1e-12


@pytest.mark.parametrize(
    ("change", "question", "words"),
    [
        ({}, {"budget_bits": 3}, "cannot hold 3 experts"),
        ({"quant_loss_1bit": float("nan")}, {"budget_bits": 6}, "finite"),
        ({"quant_loss_2bit": -1.0}, {"budget_bits": 6}, "zero or more"),
        ({"activation_count": 0.0}, {"budget_bits": 6}, "some load"),
        ({"expert": 0}, {"budget_bits": 6}, "name an expert twice"),
    ],
)
def test_bad_factors(change, question, words):
    table = factors([(1.0, 1, 9, 5, 1)] * 3)
    table = table.with_columns([pl.lit(v).alias(k) for k, v in change.items()])
    with pytest.raises(MoesaicError, match=words):
        choose_bits(table, BitsQuestion(**question))


def test_missing_columns_are_named():
    with pytest.raises(MoesaicError, match="routing_weight_sum"):
        choose_bits(
            factors([(1, 1, 1, 1, 1)]).drop("routing_weight_sum"), BitsQuestion(budget_bits=9)
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(SHARE, min_size=4, max_size=4), min_size=2, max_size=3),
       st.integers(4, 8), st.floats(0, 0.8))  # fmt: skip
def test_kept_experts_equal_brute_force(rows, keep, coverage):
    scores = np.array(rows)
    shares = scores / scores.sum(axis=1, keepdims=True)
    question = PruneQuestion(keep_experts=keep, least_per_layer=1, coverage=coverage)
    masks = [m for m in itertools.product((0, 1), repeat=4) if any(m)]
    values = [
        sum(shares[i] @ np.array(m) for i, m in enumerate(choice))
        for choice in itertools.product(masks, repeat=len(rows))
        if sum(map(sum, choice)) <= keep
        and all(shares[i] @ np.array(m) >= coverage - 1e-12 for i, m in enumerate(choice))
    ]
    if not values:
        with pytest.raises(MoesaicError, match="contradicts"):
            choose_experts(scores, question)
        return
    answer = choose_experts(scores, question)
    assert answer.objective == pytest.approx(max(values), rel=1e-6)
    assert answer.gap_ratio <= 1e-6


def test_uniform_keeps_the_same_count():
    scores = np.arange(1.0, 17).reshape(2, 8)
    answer = choose_experts(scores, PruneQuestion(keep_experts=7, uniform=True))
    assert [len(row) for row in answer.keep] == [3, 3]
    assert answer.keep[0] == (5, 6, 7)


@settings(max_examples=100, deadline=None)
@given(st.lists(SHARE, min_size=8, max_size=8), st.integers(2, 13), st.booleans(),
       st.sampled_from([(1.0, 1.0), (1.0, 2.0)]))  # fmt: skip
def test_experts_within_memory_equal_brute_force(values, budget, uniform, sizes):
    """PreMoe under bytes; layers may differ in size."""
    shares = np.array(values).reshape(2, 4)
    shares /= shares.sum(axis=1, keepdims=True)
    question = PruneQuestion(budget_bytes=budget, expert_bytes=sizes, uniform=uniform)
    best = {
        (a, b): float(np.sort(shares[0])[-a:].sum() + np.sort(shares[1])[-b:].sum())
        for a in range(1, 5) for b in range(1, 5)
        if a * sizes[0] + b * sizes[1] <= budget and (a == b or not uniform)
    }  # fmt: skip
    if not best:
        with pytest.raises(MoesaicError, match="contradicts"):
            choose_experts(shares, question)
        return
    answer = choose_experts(shares, question)
    assert answer.objective == pytest.approx(max(best.values()), rel=1e-6)
    assert answer.bound >= answer.objective - 1e-9
    assert answer.gap_ratio <= 1e-6
    kept = [len(row) for row in answer.keep]
    assert np.dot(kept, sizes) <= budget


@settings(max_examples=100, deadline=None)
@given(st.lists(SHARE, min_size=12, max_size=12), st.integers(0, 11), st.booleans())
def test_units_of_equal_cost_are_a_sort(values, cut, uniform):
    saliency = np.array(values).reshape(1, 2, 6)
    answer = choose_units(saliency, UnitQuestion(cut_ratio=cut / 12, uniform=uniform))
    total = sum(values)
    if uniform:
        width = (12 - cut) // 2
        assert answer.keep == ((width, width),)
        lost = total - np.sort(saliency, axis=2)[:, :, 6 - width :].sum()
        assert answer.lost_saliency_share == pytest.approx(lost / total)
        return
    assert answer.kept_units == 12 - cut
    assert answer.lost_saliency_share == pytest.approx(np.sort(values)[:cut].sum() / total)
    assert answer.gap_ratio <= 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(SHARE, min_size=8, max_size=8), st.floats(0, 0.9), st.sampled_from([1, 2]))
def test_units_of_unequal_cost_lie_above_their_bound(values, cut, tile):
    saliency, sizes = np.array(values).reshape(2, 1, 4), np.array([1.0, 3.0])
    answer = choose_units(saliency, UnitQuestion(cut_ratio=cut, tile=tile, unit_bytes=(1, 3)))
    room = (1 - cut) * 16 * (1 + 1e-8)
    best_first = -np.sort(-saliency, axis=2)
    best = min(
        best_first[0, 0, a:].sum() + best_first[1, 0, b:].sum()
        for a in range(0, 5, tile) for b in range(0, 5, tile) if a + 3 * b <= room
    ) / sum(values)  # fmt: skip
    assert np.dot([row[0] for row in answer.keep], sizes) <= room
    assert answer.bound_share <= best + 1e-9
    assert answer.lost_saliency_share >= best - 1e-9


def test_units_stay_in_tiles():
    saliency = np.array([9.0, 1, 8, 2, 5, 5, 5, 5]).reshape(1, 2, 4)
    answer = choose_units(saliency, UnitQuestion(cut_ratio=0.5, tile=2))
    assert answer.keep == ((2, 2),)
    assert answer.lost_saliency_share == pytest.approx((1 + 2 + 5 + 5) / 40)
    with pytest.raises(MoesaicError, match="must divide 4"):
        choose_units(saliency, UnitQuestion(cut_ratio=0.5, tile=3))
    with pytest.raises(MoesaicError, match="zero or more"):
        choose_units(-saliency, UnitQuestion(cut_ratio=0.5))


def test_merged_experts_join_the_most_alike():
    logits = np.zeros((3, 2, 3))
    logits[:, 1] = [[1, 1, 0], [0, 0, 1], [1, 0.9, 0]]
    frequency = np.array([[1.0, 1, 1], [3, 1, 2]])
    owners = choose_owners(frequency, logits, MergeQuestion(groups=5))
    assert owners.tolist() == [[0, 1, 2], [0, 0, 2]]
    with pytest.raises(MoesaicError, match="4 to 6 work"):
        merge(frequency, logits, MergeQuestion(groups=3))


@settings(max_examples=100, deadline=None)
@given(st.lists(SHARE, min_size=24, max_size=24), st.lists(SHARE, min_size=8, max_size=8),
       st.integers(2, 8), st.booleans(), st.booleans())  # fmt: skip
def test_owners_that_lose_least_equal_brute_force(drawn, used, groups, keep_first, uniform):
    logits, frequency = np.array(drawn).reshape(3, 2, 4), np.array(used).reshape(2, 4)
    question = MergeQuestion(groups=groups, by="loss", keep_first=keep_first, uniform=uniform)
    lost = lost_shares(frequency, logits)
    sets = [list(s) for n in range(1, 5) for s in itertools.combinations(range(4), n)]
    values = [
        lost[0][:, a].min(axis=1).sum() + lost[1][:, b].min(axis=1).sum()
        for a in sets for b in sets
        if len(a) + len(b) <= groups and (len(a) == 4 or not keep_first)
        and (len(a) == len(b) or not uniform or keep_first)
    ]  # fmt: skip
    if not values:
        with pytest.raises(MoesaicError, match="work: one a layer"):
            merge(frequency, logits, question)
        return
    answer = merge(frequency, logits, question)
    assert answer.lost_likeness_share == pytest.approx(min(values), abs=1e-6)
    assert answer.bound_share <= min(values) + 1e-6
    assert answer.groups <= groups
    owners = np.array(answer.owner)
    assert (np.take_along_axis(owners, owners, axis=1) == owners).all()
    by_use = merge(frequency, logits, question.model_copy(update={"by": "use"}))
    assert by_use.lost_likeness_share >= min(values) - 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SHARE, SHARE, SHARE, SHARE, SHARE), min_size=6, max_size=6),
       st.integers(0, 8))  # fmt: skip
def test_uniform_bits_equal_brute_force(rows, spare):
    """Two layers of three experts, as many of each width in both."""
    table = factors(rows).with_columns(
        layer=pl.Series([0, 0, 0, 1, 1, 1]), expert=pl.Series([0, 1, 2] * 2)
    )
    question = BitsQuestion(budget_bits=3 + spare / 2, uniform=True, keep_high=False)
    answer = choose_bits(table, question)
    parts = [np.array(rows[:3]), np.array(rows[3:])]
    costs = [((p[:, 0] / p[:, 0].sum()) * (p[:, 1] / p[:, 1].sum()) ** 1.5)[:, None] * p[:, 2:]
             for p in parts]  # fmt: skip
    every = list(itertools.product((1, 2, 3), repeat=3))
    best = min(
        sum(costs[0][i, j - 1] for i, j in enumerate(a))
        + sum(costs[1][i, j - 1] for i, j in enumerate(b))
        for a in every for b in every
        if sorted(a) == sorted(b) and sum(a) + sum(b) <= 2 * question.budget_bits
    )  # fmt: skip
    assert answer.objective == pytest.approx(best, rel=1e-5)
    counts = [sorted(x.bits for x in answer.allocation if x.layer == i) for i in (0, 1)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("prune", lambda: state_pruning(
            np.array([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]]), np.array([1, 1]),
            np.array([1.0, 2.0]), 3.0)),
        ("prune_equal", lambda: state_pruning(
            np.array([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]]), np.array([1, 2]),
            np.array([1.0, 1.0]), 2.0)),
        ("merge", lambda: state_merging(
            np.array([[[0, 0.25], [0.125, 0]], [[0, 0.5], [0.25, 0]]]),
            MergeQuestion(groups=3, by="loss"))),
    ],
)  # fmt: skip
def test_the_programmes_read_as_reviewed(tmp_path, name, state):
    state()[0].write_lp(tmp_path / "found.lp")
    assert (tmp_path / "found.lp").read_text() == (GOLDEN.parent / f"{name}.lp").read_text()
