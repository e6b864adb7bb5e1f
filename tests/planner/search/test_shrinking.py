"""Fitting a model on devices: within the budget, bounded, equal to brute force on small cases."""

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from api.commands.compress import command
from hwprofiles.errors import MoesaicError
from planner.compression.experts import expert_table
from planner.model_library import load_model
from planner.search.shrinking import ShrinkQuestion, _free, _uniform, shrink

GB = 1e9
SIZES, LOSSES = np.array([16.0, 8, 4, 2, 0]), np.array([0.0, 0.01, 0.05, 0.3, 1])


def best_by_hand(shares, budget, least):
    best = np.inf
    for picks in itertools.product(range(len(SIZES)), repeat=shares.size):
        chosen = np.array(picks).reshape(shares.shape)
        if SIZES[chosen].sum() <= budget and ((SIZES[chosen] > 0).sum(axis=1) >= least).all():
            best = min(best, float((shares * LOSSES[chosen]).sum()))
    return best


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.integers(2, 70),
       st.integers(1, 2))  # fmt: skip
def test_bound_and_answer_enclose_the_optimum(values, budget, least):
    shares = np.array(values).reshape(2, 2)
    shares /= shares.sum(axis=1, keepdims=True)
    best = best_by_hand(shares, budget, least)
    if not np.isfinite(best):
        with pytest.raises(MoesaicError, match="times the memory"):
            _free(shares, SIZES, LOSSES, budget, least)
        return
    chosen, bound = _free(shares, SIZES, LOSSES, budget, least)
    found = float((shares * LOSSES[chosen]).sum())
    assert SIZES[chosen].sum() <= budget
    assert ((SIZES[chosen] > 0).sum(axis=1) >= least).all()
    assert bound <= best + 1e-9
    assert found >= best - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.integers(2, 100))
def test_uniform_equals_brute_force(values, budget):
    shares = np.array(values).reshape(2, 3)
    shares /= shares.sum(axis=1, keepdims=True)
    options = [
        2 - np.sort(shares, axis=1)[:, -count:].sum() * (1 - LOSSES[k])
        for count in (1, 2, 3) for k in range(4) if 2 * count * SIZES[k] <= budget
    ]  # fmt: skip
    if not options:
        with pytest.raises(MoesaicError, match="times the memory"):
            _uniform(shares, SIZES, LOSSES, budget, 1)
        return
    chosen, bound = _uniform(shares, SIZES, LOSSES, budget, 1)
    assert bound == pytest.approx(min(options))
    assert (shares * LOSSES[chosen]).sum() == pytest.approx(bound)


@pytest.mark.parametrize("uniform", [False, True])
def test_deepseek_r1_fits_sixteen_devices_of_64_gb(uniform):
    """In bf16 it takes 1.34 TB, 1.02 TB are there, 0.92 TB of them for weights."""
    question = ShrinkQuestion(
        devices=16, device_bytes=64 * GB, stored_as="bf16", uniform=uniform
    )  # fmt: skip
    answer = shrink(expert_table(load_model("deepseek-r1")), question)
    assert answer.before.stored_bytes == pytest.approx(1.342e12, rel=0.01)
    assert answer.needed_bytes <= 0.9 * 64 * GB
    assert answer.needed_bytes * 16 == pytest.approx(answer.costs.stored_bytes)
    assert answer.bound_share <= answer.lost_share + 1e-12
    more = shrink(
        expert_table(load_model("deepseek-r1")),
        question.model_copy(update={"device_bytes": 64.64 * GB}),
    )
    assert answer.eased_bound_share == pytest.approx(more.bound_share, rel=1e-6)
    assert answer.eased_bound_share < answer.bound_share or uniform  # whole steps
    assert answer.gap_ratio <= 1e-3
    assert any("no published" in note for note in answer.notes)


def test_half_of_the_experts_is_published():
    model = load_model("deepseek-r1")
    question = ShrinkQuestion(
        devices=8, device_bytes=100 * GB, stored_as="bf16", uniform=True, widths=()
    )
    answer = shrink(expert_table(model), question)
    kept = {sum(b != "dropped" for b in row) for row in answer.bits}
    assert len(kept) == 1
    assert 128 <= kept.pop() <= 256
    assert {q.metric for q in answer.quality} == {"average of 6 tasks"}
    assert any("MATH-500" in note for note in answer.notes)


def test_important_experts_stay_whole():
    table = expert_table(load_model("mixtral-8x7b"), np.tile(2.0 ** -np.arange(8), (32, 1)))
    answer = shrink(table, ShrinkQuestion(devices=1, device_bytes=40 * GB))
    rank = ["as_stored", "8", "4", "3", "2", "dropped"]
    for row in answer.bits:
        order = [rank.index(bits) for bits in row]
        assert order == sorted(order)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device_bytes": 1 * GB}, "not a routed expert"),
        ({"device_bytes": 6 * GB}, "times the memory"),
        ({"prune": False, "device_bytes": 14 * GB}, "times the memory"),
    ],
)
def test_too_little_memory_is_said(change, words):
    table = expert_table(load_model("mixtral-8x7b"))
    with pytest.raises(MoesaicError, match=words):
        shrink(table, ShrinkQuestion.parse({"devices": 1} | change))


def test_the_shell_says_it_in_both_forms():
    asked = ["fit", "--model", "mixtral-8x7b", "--devices", "1", "--device-memory", "40 GB"]
    told = CliRunner().invoke(command, asked, catch_exceptions=False)
    assert "lost share of tokens" in told.output
    data = json.loads(CliRunner().invoke(command, [*asked, "-o", "json"]).output)
    assert data["bound_share"] <= data["lost_share"]
    assert data["costs"]["stored_bytes"] < data["before"]["stored_bytes"]
