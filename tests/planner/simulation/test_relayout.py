"""Experts after a failure: nothing is missing, nothing moves that need not, limits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.simulation.relayout import balance, first_layout, in_order, relayout

LAYERS, EXPERTS, DEVICES = 3, 16, 4


def loads(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.7, size=(LAYERS, EXPERTS)) * 100 + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.integers(0, DEVICES - 1), st.integers(0, 30))
def test_every_expert_is_somewhere_within_the_move_limit(seed: int, lost: int, more: int) -> None:
    load = loads(seed)
    before = in_order(load, DEVICES, 0)
    spare = -EXPERTS % (DEVICES - 1)
    limit = LAYERS * EXPERTS // DEVICES + more
    found = relayout(load, before, (lost,), spare, limit)
    assert found.layout.shape == (LAYERS, DEVICES - 1, (EXPERTS + spare) // (DEVICES - 1))
    for layer in found.layout:
        assert set(layer.ravel().tolist()) == set(range(EXPERTS))
    assert found.lost_count == LAYERS * EXPERTS // DEVICES <= found.moves <= limit
    assert 1 <= found.max_over_mean <= found.max_over_mean_kept + 1e-9
    assert found.disk_experts * (DEVICES - 1) >= found.lost_count


def test_more_moves_balance_better_and_none_only_brings_back_what_was_lost() -> None:
    load = loads(1)
    before = in_order(load, DEVICES, 0)
    lost = LAYERS * EXPERTS // DEVICES
    runs = [relayout(load, before, (0,), 2, limit) for limit in (lost, lost + 6, lost + 30, None)]
    assert runs[0].moves == lost
    assert runs[0].max_over_mean == runs[0].max_over_mean_kept
    values = [run.max_over_mean for run in runs]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_copies_elsewhere_need_no_disk() -> None:
    load = loads(2)
    before = in_order(load, DEVICES, EXPERTS)  # two copies of everything
    found = relayout(load, before, (1,), EXPERTS + 1, 0)
    assert found.lost_count == found.disk_experts == 0


def test_placed_layouts_are_better_than_experts_in_order() -> None:
    load = loads(3)
    assert balance(first_layout(load, DEVICES, 0), load) < balance(in_order(load, DEVICES, 0), load)


def test_a_limit_below_what_was_lost_is_refused() -> None:
    with pytest.raises(MoesaicError, match="5 slots a device hold less than the 8"):
        relayout(loads(0), in_order(loads(0), DEVICES, EXPERTS), (0,), -EXPERTS % 3 - 3, None)
    with pytest.raises(MoesaicError, match="12 experts lost their last copy; at most 11"):
        relayout(loads(0), in_order(loads(0), DEVICES, 0), (0,), 2, 11)
