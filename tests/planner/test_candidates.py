"""Layouts keep every rule, and a broken rule is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.candidates import Layout, broken_rule, divisors, enumerate_layouts, worker_sizes
from planner.model_library import load_model
from planner.pipeline import parse_scenario


def question(**changes):
    base = {
        "model": "deepseek-v3",
        "cluster": "dgx-h200-x4",
        "workload": {"isl": 4000, "osl": 1000},
    }
    return parse_scenario(base | changes)


def test_every_layout_keeps_the_sum_rule_and_the_cluster():
    scenario = question()
    layouts = enumerate_layouts(scenario)
    assert len(layouts) == len(set(layouts)) > 100
    for layout in layouts:
        assert layout.tp * layout.dp == layout.moe_tp * layout.moe_ep
        assert layout.devices <= 32
        assert 128 % layout.tp == 0
        assert 256 % layout.moe_ep == 0
        assert layout.tp <= 8


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(4, 1, 1, 1, 2), "tp·dp = 4"),
        (Layout(3, 1, 1, 3, 1), "128 query heads"),
        (Layout(1, 1, 62, 1, 1), "61 layers"),
        (Layout(1, 32, 1, 32, 1), "fp8 block"),
        (Layout(8, 96, 1, 1, 768), "does not divide 256 experts"),
    ],
)
def test_a_broken_rule_is_named(layout, words):
    assert words in broken_rule(layout, load_model("deepseek-v3"), "fp8_block")


def test_redundant_experts_open_other_expert_degrees():
    model = load_model("deepseek-v3")
    layout = Layout(1, 72, 1, 1, 72)
    assert broken_rule(layout, model, "fp8_block") is not None
    assert broken_rule(layout, model, "fp8_block", redundant=32) is None


def test_choices_restrict():
    layouts = enumerate_layouts(question(choices={"tp": [4], "pp": [1], "moe_ep": [32]}))
    assert layouts == [Layout(4, 8, 1, 1, 32)]


def test_devices_limit_restricts_worker_sizes():
    cluster = question().cluster
    assert worker_sizes(cluster, None) == [1, 2, 4, 8, 16, 32]
    assert worker_sizes(cluster, 8) == [1, 2, 4, 8]


@given(st.integers(1, 5000))
def test_divisors(number):
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


def test_experts_apart_leave_devices_to_attention():
    data = {"model": "deepseek-v3", "cluster": "dgx-h200", "workload": {"isl": 100, "osl": 10},
            "choices": {"experts_apart": [True]}}  # fmt: skip
    layouts = enumerate_layouts(parse_scenario(data))
    assert layouts
    for layout in layouts:
        assert layout.away == layout.moe_tp * layout.moe_ep
        assert layout.devices == layout.tp * layout.dp + layout.away <= 8
        assert layout.pp == 1
    assert {layout.away for layout in layouts if layout.devices == 8} == {1, 2, 4}
