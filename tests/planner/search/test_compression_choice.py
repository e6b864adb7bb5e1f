"""Bits, pruning, units, merging: equal to brute force on small cases, to the paper on its own."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.search.bits import BitsQuestion, choose_bits, state_bits
from planner.search.merging import choose_owners
from planner.search.pruning import PruneQuestion, choose_experts, choose_units
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


@settings(max_examples=60, deadline=None)
@given(st.lists(SHARE, min_size=12, max_size=12), st.integers(0, 12))
def test_units_of_equal_cost_are_a_sort(values, keep):
    saliency = np.array(values).reshape(1, 2, 6)
    kept, lost = choose_units(saliency, keep)
    assert kept.sum() == keep
    assert lost == pytest.approx(np.sort(values)[: 12 - keep].sum())


def test_units_stay_in_tiles():
    saliency = np.array([9.0, 1, 8, 2, 5, 5, 5, 5]).reshape(1, 2, 4)
    kept, lost = choose_units(saliency, 4, tile=2)
    assert kept.tolist() == [[2, 2]]
    assert lost == pytest.approx(1 + 2 + 5 + 5)


def test_merged_experts_join_the_most_alike():
    logits = np.zeros((3, 2, 3))
    logits[:, 1] = [[1, 1, 0], [0, 0, 1], [1, 0.9, 0]]
    frequency = np.array([[1.0, 1, 1], [3, 1, 2]])
    owners = choose_owners(frequency, logits, 5)
    assert owners.tolist() == [[0, 1, 2], [0, 0, 2]]
    with pytest.raises(MoesaicError, match="4 to 6 work"):
        choose_owners(frequency, logits, 3)
