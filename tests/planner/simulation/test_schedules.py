"""Training pipelines: the played bubble is the closed form's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import check_tracks
from planner.simulation.schedules import (
    ChunkSeconds,
    bubble_closed_form,
    dualpipe_bubble_s,
    simulate_schedule,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 5))
def test_bubbles_equal_the_closed_form(stages: int, turns: int, chunks: int, ratio: float) -> None:
    micros = stages * turns
    seconds = ChunkSeconds(1.0, ratio)
    for name, parts in (("gpipe", 1), ("1f1b", 1), ("interleaved", chunks)):
        result = simulate_schedule(name, stages, micros, seconds, parts)
        expected = bubble_closed_form(name, stages, micros, parts)
        assert result.bubble_ratio == pytest.approx(expected, rel=1e-9, abs=1e-9)
        check_tracks(result.slices)
        assert result.slices.height == 2 * stages * micros * parts


def test_fewer_micro_batches_than_stages() -> None:
    result = simulate_schedule("1f1b", 8, 3, ChunkSeconds(1, 2))
    assert result.bubble_ratio == pytest.approx(7 / 3)


def test_exposed_exchange_and_sends_lengthen_the_step() -> None:
    """Hiding the all-to-all behind compute shortens every chunk and so the whole step."""
    hidden = simulate_schedule("interleaved", 4, 16, ChunkSeconds(1, 2), 2)
    exposed = simulate_schedule("interleaved", 4, 16, ChunkSeconds(1.3, 2.3), 2)
    assert exposed.seconds_s / hidden.seconds_s == pytest.approx(3.6 / 3)
    sending = simulate_schedule("interleaved", 4, 16, ChunkSeconds(1, 2, 0.1), 2)
    assert sending.seconds_s > hidden.seconds_s
    assert sending.bubble_ratio > hidden.bubble_ratio


def test_dualpipe_formula() -> None:
    # DeepSeek-V3, table 2: (PP/2 - 1)(F&B + B - 3W); 1F1B has (PP - 1)(F + B).
    assert dualpipe_bubble_s(16, 1.0, 2.0, 1.0, 2.5) == pytest.approx(7 * 1.5)
    assert dualpipe_bubble_s(16, 1.0, 2.0, 1.0, 2.5) < 15 * 3.0
    assert dualpipe_bubble_s(2, 1.0, 2.0, 1.0, 2.5) == 0


@pytest.mark.parametrize(
    "sizes",
    [("1f1b", 4, 8, 2), ("gpipe", 4, 8, 2), ("interleaved", 4, 6, 2), ("1f1b", 0, 8, 1),
     ("dualpipe", 4, 8, 1)],
)  # fmt: skip
def test_impossible_schedules_are_refused(sizes: tuple[str, int, int, int]) -> None:
    name, stages, micros, chunks = sizes
    with pytest.raises(MoesaicError):
        simulate_schedule(name, stages, micros, ChunkSeconds(1, 2), chunks)


def test_impossible_dualpipe_is_refused() -> None:
    with pytest.raises(MoesaicError, match="even"):
        dualpipe_bubble_s(5, 1, 2, 1, 2.5)
    with pytest.raises(MoesaicError, match="part of B"):
        dualpipe_bubble_s(4, 1, 2, 3, 2.5)
    with pytest.raises(MoesaicError, match="no pipeline schedule"):
        bubble_closed_form("zb", 2, 4)
