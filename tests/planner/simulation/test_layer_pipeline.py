"""A pass in motion: between slowest rank and serial sum, alone equal to the closed form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import check_tracks
from planner.simulation.layer_pipeline import (
    Cores,
    LayerSeconds,
    serial_s,
    simulate_pass,
    slowest_rank_s,
)

second = st.floats(0, 1)
layer = st.builds(LayerSeconds, second, second, second, second, second)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_slowest_rank_below_simulated_below_serial_sum(
    data: st.DataObject, ranks: int, micros: int, layers: int, shared_link: bool
) -> None:
    costs = [[data.draw(layer) for _ in range(micros)] for _ in range(ranks)]
    links = [0] * ranks if shared_link else None
    cores = Cores(data.draw(st.booleans()), data.draw(st.sampled_from([0.0, 0.15, 0.9])))
    result = simulate_pass(costs, layers, links, cores)
    assert result.seconds_s >= slowest_rank_s(costs, layers, apart=cores.apart) - 1e-9
    assert result.seconds_s <= serial_s(costs, layers) + 1e-9
    check_tracks(result.slices)


def test_no_skew_and_no_contention_equal_the_closed_form() -> None:
    one = LayerSeconds(3e-4, 1e-4, 2e-4, 1.5e-4, 0.5e-4)
    closed = 58 * (3e-4 + max(1e-4, 0.5e-4) + 2e-4 + 1.5e-4)
    for ranks in (1, 4):
        assert simulate_pass([[one]] * ranks, 58).seconds_s == pytest.approx(closed, rel=1e-9)


def test_everybody_waits_for_the_slowest() -> None:
    quick, slow = LayerSeconds(1, 1, 1, 1), LayerSeconds(1, 1, 5, 1)
    assert simulate_pass([[quick], [slow]], 3).seconds_s == 3 * 8


def test_two_micro_batches_hide_the_exchange_as_far_as_there_is_work() -> None:
    whole, half = LayerSeconds(4, 2, 4, 2), LayerSeconds(2, 1, 2, 1)
    alone = simulate_pass([[whole]] * 2, 50).seconds_s
    both = simulate_pass([[half, half]] * 2, 50).seconds_s
    assert alone == 600
    # The device never waits but at the ends.
    assert both == pytest.approx(400, rel=0.02)


def test_a_shared_link_costs_time() -> None:
    costs = [[LayerSeconds(2, 1, 2, 1)] * 2] * 2
    free = simulate_pass(costs, 20).seconds_s
    contended = simulate_pass(costs, 20, [0, 0]).seconds_s
    assert free < contended <= serial_s(costs, 20)


def test_cores_of_their_own_let_attention_and_experts_run_at_once() -> None:
    costs = [[LayerSeconds(3, 1, 3, 1)] * 2]
    assert simulate_pass(costs, 50).seconds_s == pytest.approx(50 * 12, rel=0.02)
    apart = simulate_pass(costs, 50, cores=Cores(apart=True)).seconds_s
    assert apart == pytest.approx(50 * 8, rel=0.02)  # a micro-batch's own round trip


def test_an_exchange_slows_what_computes_beside_it() -> None:
    costs = [[LayerSeconds(4, 1, 4, 1)] * 2]
    free = simulate_pass(costs, 50).seconds_s
    # A tenth of the cores for four seconds of every sixteen.
    held = simulate_pass(costs, 50, cores=Cores(exchange_ratio=0.1)).seconds_s
    assert held - free == pytest.approx(50 * 4 * 0.1, rel=0.05)
    alone = [[LayerSeconds(4, 1, 4, 1)]]
    assert simulate_pass(alone, 5, cores=Cores(exchange_ratio=0.1)).seconds_s == 50
    with pytest.raises(MoesaicError, match="holds 0 to"):
        simulate_pass(alone, 5, cores=Cores(exchange_ratio=1.0))


@pytest.mark.parametrize(
    ("ranks", "layers", "links"),
    [
        ([], 1, None),
        ([[LayerSeconds(1, 1, 1, 1)]], 0, None),
        ([[LayerSeconds(1, 1, 1, 1)], []], 1, None),
        ([[LayerSeconds(1, 1, 1, 1)]], 1, [0, 1]),
        ([[LayerSeconds(1, -1, 1, 1)]], 1, None),
    ],
)
def test_impossible_passes_are_refused(
    ranks: list[list[LayerSeconds]], layers: int, links: list[int] | None
) -> None:
    with pytest.raises(MoesaicError) as caught:
        simulate_pass(ranks, layers, links)
    assert caught.value.kind == "invalid"
