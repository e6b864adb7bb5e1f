"""Expert queues against token order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.simulation.expert_queue import (
    ExpertSeconds,
    expert_queues,
    queues_closed_form,
    token_order,
)

choices = st.lists(st.lists(st.integers(0, 15), min_size=2, max_size=2), min_size=1, max_size=60)


@given(choices, st.floats(1e-6, 1e-3), st.floats(1e-7, 1e-4))
def test_processes_equal_the_closed_form(rows: list[list[int]], load: float, token: float) -> None:
    chosen, costs = np.array(rows), ExpertSeconds(load, token)
    _, counts = np.unique(chosen, return_counts=True)
    result = expert_queues(chosen, costs)
    assert result.seconds_s == pytest.approx(queues_closed_form(counts, costs), rel=1e-9)
    assert result.loads_count == len(counts)
    plain = token_order(chosen, costs)
    assert result.loads_count <= plain.loads_count <= chosen.size
    assert result.seconds_s <= plain.seconds_s * (1 + 1e-9)


def test_no_tokens_are_refused() -> None:
    with pytest.raises(MoesaicError):
        expert_queues(np.empty((0, 2), dtype=int), ExpertSeconds(1, 1))
    with pytest.raises(MoesaicError):
        token_order(np.empty((0, 2), dtype=int), ExpertSeconds(1, 1))
