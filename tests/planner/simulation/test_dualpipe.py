"""DualPipe played: every micro-batch once, and the bubble of the published formula."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.simulation.dualpipe import DualPipeSeconds, dualpipe_order, simulate_dualpipe
from planner.simulation.schedules import ChunkSeconds, dualpipe_bubble_s, simulate_schedule

halves = st.integers(1, 6)


@given(halves, st.integers(0, 6))
def test_every_micro_batch_passes_every_device_once_each_way(half: int, more: int) -> None:
    stages = 2 * half
    micros = 2 * stages + 2 * more
    for device in range(stages):
        ops = dualpipe_order(device, stages, micros)
        parts = Counter(
            ("F" if part.kind == "F" else "B", part.direction, part.micro)
            for op in ops
            for part in op.parts
        )
        expected = {(k, d, m) for k in "FB" for d in (0, 1) for m in range(micros // 2)}
        assert set(parts) == expected
        assert set(parts.values()) == {1}
        # As many weight gradients as backward passes that left them for later.
        split = sum(part.kind == "I" for op in ops for part in op.parts)
        assert sum(not op.parts for op in ops) == split


@settings(deadline=None, max_examples=40)
@given(halves, st.integers(0, 6), st.floats(1.0, 1.5))
def test_bubble_equals_the_published_formula(half: int, more: int, pair: float) -> None:
    """With W = F = B / 2, for which table 2 of DeepSeek-V3 is drawn."""
    stages = 2 * half
    seconds = DualPipeSeconds(1.0, 2.0, 1.0, 2 * pair)
    result = simulate_dualpipe(stages, 2 * stages + 2 * more, seconds)
    assert max(result.idle_s) == pytest.approx(
        dualpipe_bubble_s(stages, 1.0, 2.0, 1.0, 2 * pair), abs=1e-9
    )


@settings(deadline=None, max_examples=40)
@given(halves, st.floats(0.5, 1.0))
def test_smaller_weight_parts_stay_below_the_formula(half: int, weight: float) -> None:
    stages = 2 * half
    seconds = DualPipeSeconds(1.0, 2.0, weight, 2.6)
    result = simulate_dualpipe(stages, 4 * stages, seconds)
    assert max(result.idle_s) <= dualpipe_bubble_s(stages, 1.0, 2.0, weight, 2.6) + 1e-9


def test_dualpipe_waits_less_than_1f1b() -> None:
    stages, micros = 16, 64
    both = simulate_dualpipe(stages, micros, DualPipeSeconds(1.0, 2.0, 1.0, 3.0))
    plain = simulate_schedule("1f1b", stages, micros, ChunkSeconds(1.0, 2.0))
    assert max(both.idle_s) < 0.4 * plain.bubble_ratio * micros * 3.0


@pytest.mark.parametrize(("stages", "micros"), [(3, 12), (4, 6), (4, 9), (0, 8)])
def test_impossible_sizes_are_refused(stages: int, micros: int) -> None:
    with pytest.raises(MoesaicError, match="even number"):
        simulate_dualpipe(stages, micros, DualPipeSeconds(1, 2, 1, 3))


def test_impossible_seconds_are_refused() -> None:
    with pytest.raises(MoesaicError, match="part of the backward"):
        simulate_dualpipe(4, 8, DualPipeSeconds(1, 2, 3, 3))
