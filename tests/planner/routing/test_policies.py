"""Each policy gives the experts a token runs and its overhead; a plan can be asked with any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hwprofiles.errors import MoesaicError
from planner.candidates import enumerate_layouts, layout_frame, phase_points
from planner.estimate import estimate_many
from planner.moe_model import MoeFfn
from planner.pipeline import parse_scenario
from planner.pricing import add_load, price, question_of
from planner.routing import UniformRouting, ZipfRouting, expert_shares
from planner.routing.choosing import capacity_effect, choosing
from planner.routing.policies import Policy

BLOCK, HIDDEN = MoeFfn(experts=8, top_k=2, width=100), 64
ROUTER = 2 * HIDDEN * 8


def policy(**data):
    return TypeAdapter(Policy).validate_python(data)


def chosen(block=BLOCK, **data):
    return choosing(policy(**data), block, HIDDEN)


@pytest.mark.parametrize(
    ("data", "mean"),
    [
        ({"kind": "top_k"}, 2), ({"kind": "top_k", "top_k": 5}, 5), ({"kind": "switch"}, 1),
        ({"kind": "null_experts", "null_experts": 8, "top_k": 3}, 1.5),  # AdaMoE: k·n / (n + m)
        ({"kind": "null_experts", "null_experts": 16, "top_k": 4}, 4 / 3),
        ({"kind": "null_experts", "null_experts": 40, "top_k": 7}, 7 * 8 / 48),
        ({"kind": "null_experts", "null_experts": 8, "top_k": 3, "mean_experts_count": 1.66}, 1.66),
        ({"kind": "skip", "skipped_share": 0.3}, 1.7),
        ({"kind": "skip", "skipped_share": 0.3, "protected_share": 0.5}, 1.85),
        ({"kind": "main_auxiliary", "main": 1}, 1),
        ({"kind": "schedule", "schedule": [[0, 8], [100, 4], [1000, 2]]}, 8),
        ({"kind": "schedule", "schedule": [[0, 8], [100, 4], [1000, 2]], "step": 999}, 4),
        ({"kind": "random_partition"}, 1),
        ({"kind": "dense_mixture", "visible": [[0, 1, 2], [2, 3]]}, 4),
        ({"kind": "similarity", "window_tokens": 10}, 2), ({"kind": "momentum"}, 2),
    ],
)  # fmt: skip
def test_experts_a_token_runs(data, mean):
    found = chosen(**data)
    assert found.mean_experts == pytest.approx(mean)
    assert found.experts_per_token.sum() == pytest.approx(1)
    assert found.experts_per_token.min() >= 0


def test_overheads():
    assert chosen(kind="top_k").router_flops_per_token == ROUTER
    assert chosen(kind="random_partition").router_flops_per_token == 0
    null = chosen(kind="null_experts", null_experts=8, top_k=3)
    assert null.router_flops_per_token == 2 * ROUTER
    assert chosen(kind="main_auxiliary", main=1).router_flops_per_token == ROUTER + 2 * HIDDEN
    momentum = chosen(kind="momentum")
    assert momentum.state_bytes_per_token == 2 * HIDDEN
    assert momentum.router_flops_per_token == ROUTER + 4 * HIDDEN
    near = chosen(kind="similarity", window_tokens=10)
    mapped = chosen(kind="similarity", window_tokens=10, by_attention=True)
    assert near.router_flops_per_token - mapped.router_flops_per_token == 2 * 10 * HIDDEN
    assert mapped.needs_attention_map
    assert not near.needs_attention_map
    assert chosen(kind="skip", skipped_share=0.1, protected_share=0.02).needs_attention_map
    assert chosen(kind="dense_mixture", visible=[[0, 1], [1]]).router_flops_per_token == 12 * HIDDEN


@pytest.mark.parametrize(
    "data",
    [{"kind": "top_k", "top_k": 9}, {"kind": "null_experts", "null_experts": 1, "top_k": 10},
     {"kind": "null_experts", "null_experts": 8, "top_k": 1, "mean_experts_count": 1.5},
     {"kind": "main_auxiliary", "main": 3}, {"kind": "dense_mixture", "visible": [[8]]},
     {"kind": "dense_mixture", "visible": [[]]}],
)  # fmt: skip
def test_more_experts_than_there_are_is_refused(data):
    with pytest.raises(MoesaicError, match=r"policy runs|top_k|experts"):
        chosen(**data)


@pytest.mark.parametrize(
    "data",
    [{"kind": "unheard"}, {"kind": "skip", "skipped_share": 2}, {"kind": "top_k", "top_k": 0},
     {"kind": "schedule", "schedule": [[5, 1]]}, {"kind": "schedule", "schedule": [[0, 1], [0, 2]]},
     {"kind": "schedule", "schedule": []}, {"kind": "top_k", "capacity_factor": 0},
     {"kind": "top_k", "capacity_factor": float("nan")}],
)  # fmt: skip
def test_bad_policies_are_refused(data):
    with pytest.raises(ValueError, match="validation error"):
        policy(**data)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.25, 8), tokens=st.integers(1, 5000), alpha=st.floats(0, 2))
def test_capacity_balances_its_books(factor, tokens, alpha):
    """Slots hold what is kept and what is padded, nothing else."""
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=alpha), BLOCK, 2)
    effect = capacity_effect(shares, BLOCK, tokens, factor)
    held = 8 * effect.slots_per_expert / (tokens * 2)
    assert 0 <= effect.dropped_ratio < 1
    if tokens <= 64:
        assert 1 - effect.dropped_ratio + effect.padded_ratio == pytest.approx(held)


def test_more_capacity_drops_less_and_pads_more():
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=1), BLOCK, 4)
    few, many = (capacity_effect(shares, BLOCK, 1000, factor) for factor in (1.0, 3.0))
    assert few.dropped_ratio > 0.1 > many.dropped_ratio
    assert few.padded_ratio < many.padded_ratio


def scenario_of(**data):
    return parse_scenario({
        "model": "mixtral-8x7b", "cluster": "dgx-h100", "policy": data,
        "workload": {"isl": 1000, "osl": 100, "concurrency": 8},
        "choices": {"tp": [1], "moe_ep": [8], "pp": [1]},
    })  # fmt: skip


def priced(**data):
    scenario = scenario_of(**data)
    points = phase_points(layout_frame(enumerate_layouts(scenario)), scenario)
    return price(points, question_of(scenario))


def test_a_plan_prices_what_the_policy_runs():
    both, one = priced(kind="top_k"), priced(kind="switch")
    half = priced(kind="skip", skipped_share=0.5)
    for name, factor in ((one, 0.5), (half, 0.75)):
        rows = name.timed.filter(kernel="grouped_gemm")["top_k"].to_numpy()
        assert rows == pytest.approx(both.timed.filter(kernel="grouped_gemm")["top_k"] * factor)
    prefill = [p.passes.filter(phase="prefill")["typical_s"].to_numpy() for p in (one, half, both)]
    assert (prefill[0] < prefill[1]).all()
    assert (prefill[1] < prefill[2]).all()


def test_a_random_partition_has_no_router_and_no_busy_rank():
    found = priced(kind="random_partition")
    assert (found.passes["busy_ratio"] == 1).all()
    assert found.timed.filter(stage="router").height == 0


def test_policies_go_round_in_a_scenario():
    scenario = scenario_of(kind="schedule", schedule=[[0, 8], [10, 2]], step=3)
    assert parse_scenario(scenario.model_dump(mode="json")) == scenario
    with pytest.raises(MoesaicError, match="runs 9 experts"):
        priced(kind="top_k", top_k=9)


def test_without_a_policy_the_model_decides():
    scenario = scenario_of(kind="top_k")
    points = phase_points(layout_frame(enumerate_layouts(scenario)), scenario)
    loaded = add_load(points, question_of(scenario))
    assert set(loaded["experts_per_token"]) == {2.0}
    assert set(loaded["router_columns"]) == {8.0}
    shares = expert_shares(UniformRouting(), BLOCK, 1)
    assert np.allclose(shares, 1 / 8)


def test_a_line_of_an_estimate_may_name_a_policy():
    line = {"model": "mixtral-8x7b", "device": "h100-sxm", "isl": 500, "osl": 50, "concurrency": 8}
    usual, one, bad = estimate_many(
        [line, {**line, "policy": {"kind": "switch"}}, {**line, "policy": {"kind": "none"}}]
    )
    assert one.ttft_s.typical < usual.ttft_s.typical
    assert "'switch'" in bad.error.message
