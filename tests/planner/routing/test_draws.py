"""Drawn tokens choose the experts of the soonest times, as many as asked, also where times tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.moe_model import MoeFfn
from planner.routing.draws import Shares, _smallest, chances, drawn_choices, drawn_counts

SHARES = Shares.of(np.random.default_rng(0).dirichlet(np.full(64, 0.7), size=3))
FREE = MoeFfn(experts=64, top_k=6, width=8)
GROUPED = MoeFfn(experts=64, top_k=8, width=8, router="grouped", groups=4)
LIMITED = MoeFfn(experts=64, top_k=6, width=8, router="group_limited", groups=8, top_groups=2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=8),
       st.integers(1, 7))  # fmt: skip
def test_the_smallest_of_each_row_are_chosen(rows, count):
    times = np.array(rows, dtype=np.float32)
    chosen = _smallest(times, count)
    assert (chosen.sum(axis=1) == min(count, 6)).all()
    for row, picked in zip(times, chosen, strict=True):
        assert sorted(row[picked]) == sorted(row)[:count]


@pytest.mark.parametrize("moe", [FREE, GROUPED, LIMITED])
def test_every_token_chooses_top_k(moe):
    chosen = drawn_choices(SHARES, moe, 16, limited=True)
    assert chosen.shape == (3, 22, 16, 64)
    assert (chosen.sum(axis=3) == moe.top_k).all()


def test_groups_hold_as_many_as_the_router_says():
    grouped = drawn_choices(SHARES, GROUPED, 16).reshape(3, 22, 16, 4, 16)
    assert (grouped.sum(axis=4) == 2).all()
    limited = drawn_choices(SHARES, LIMITED, 16, limited=True).reshape(3, 22, 16, 8, 8)
    assert (limited.any(axis=4).sum(axis=3) <= 2).all()


def test_experts_are_chosen_as_often_as_their_chance_says():
    counts = drawn_counts(SHARES, FREE, 64)
    drawn = counts.sum(axis=1) / (64 * counts.shape[1])
    assert drawn == pytest.approx(chances(SHARES, FREE), abs=0.05)
