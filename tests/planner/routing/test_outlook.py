"""Every routing policy on one batch: experts a token, loads, experts touched, overhead."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.commands.models import command
from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.moe_model import MoeFfn
from planner.routing import UniformRouting, ZipfRouting, expert_shares
from planner.routing.choosing import block_of, choosing
from planner.routing.outlook import RoutingQuestion, answer_routing, outlook
from planner.routing.policies import Policy

BLOCK, HIDDEN, TOKENS, DEVICES = MoeFfn(experts=16, top_k=4, width=8), 32, 100, 4
UNEVEN = expert_shares(ZipfRouting(kind="zipf", alpha=0.7), BLOCK, 3)

POLICIES = [
    {"kind": "top_k"}, {"kind": "top_k", "scoring": "softmax"},
    {"kind": "top_k", "scoring": "sigmoid", "top_k": 6},
    {"kind": "group_limited", "groups": 4, "top_groups": 2}, {"kind": "grouped", "groups": 4},
    {"kind": "null_experts", "null_experts": 16, "top_k": 6},
    {"kind": "skip", "skipped_share": 0.3, "protected_share": 0.02},
    {"kind": "main_auxiliary", "main": 1}, {"kind": "schedule", "schedule": [[0, 16], [100, 2]]},
    {"kind": "schedule", "schedule": [[0, 16], [100, 2]], "step": 100},
    {"kind": "random_partition"}, {"kind": "dense_mixture", "visible": [[0, 1], [1, 2, 3]]},
    {"kind": "switch"}, {"kind": "similarity", "window_tokens": 64, "entropy_ratio": 0.6,
                         "churn_share": 0.1},
    {"kind": "similarity", "window_tokens": 64, "by_attention": True}, {"kind": "momentum"},
    {"kind": "top_k", "capacity_factor": 1.25},
]  # fmt: skip


def policy(data):
    return TypeAdapter(Policy).validate_python(data)


def seen(data, shares=UNEVEN, tokens=TOKENS):
    return outlook(policy(data), BLOCK, shares, HIDDEN, (tokens, DEVICES))


@pytest.mark.parametrize("data", POLICIES, ids=lambda data: "-".join(map(str, data.values())))
def test_loads_add_up_to_what_tokens_run(data):
    found = seen(data)
    mean = found.experts_per_token @ np.arange(len(found.experts_per_token))
    assert found.experts_per_token.sum() == pytest.approx(1)
    assert found.tokens_per_expert.sum(axis=1) == pytest.approx(TOKENS * mean)
    assert found.pairs_per_device.sum(axis=1) == pytest.approx(TOKENS * mean)
    assert found.tokens_per_expert.max() <= TOKENS * (1 + 1e-9)
    assert min(mean, 16) - 1e-9 <= found.experts_touched <= 16
    assert found.busy_ratio >= 1 - 1e-9
    assert found.imbalance_score >= 0
    assert 0 <= found.entropy_ratio <= 1 + 1e-9
    assert found.router_flops_per_token >= 0


def test_a_softmax_or_sigmoid_costs_its_few_operations():
    plain, soft, sigmoid = (choosing(policy({"kind": "top_k", "scoring": s}), BLOCK, HIDDEN)
                            for s in (None, "softmax", "sigmoid"))  # fmt: skip
    assert soft.router_flops_per_token - plain.router_flops_per_token == 3 * 16
    assert sigmoid.router_flops_per_token - plain.router_flops_per_token == 4 * 16


def test_groups_of_a_policy_do_what_a_model_with_such_groups_does():
    grouped = seen({"kind": "grouped", "groups": 4})
    assert (grouped.imbalance_score, grouped.busy_ratio) == (0, pytest.approx(1))
    assert seen({"kind": "top_k"}).imbalance_score > 0.5
    block = block_of(policy({"kind": "group_limited", "groups": 8, "top_groups": 4}),
                     load_model("deepseek-v3").moe)  # fmt: skip
    assert block == load_model("deepseek-v3").moe
    free = block_of(policy({"kind": "group_limited", "groups": 1, "top_groups": 1}), block)
    assert (free.router, free.groups) == ("group_limited", 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "grouped", "groups": 3}, "groups 3 must divide experts 16"),
        ({"kind": "grouped", "groups": 8}, "groups 8 must divide top_k 4"),
        ({"kind": "group_limited", "groups": 8, "top_groups": 1}, "top_k 4 of 2 experts in 1 of 8"),
        ({"kind": "group_limited", "groups": 2, "top_groups": 3}, "top_groups 3 is more than gro"),
    ],
)
def test_groups_that_do_not_fit_are_refused(data, says):
    with pytest.raises(MoesaicError, match=says):
        seen(data)


def test_who_touches_what():
    """All 16 in a dense phase, what the gates see in a mixture, one a part in a partition."""
    assert seen(POLICIES[8]).experts_touched == pytest.approx(16)
    assert seen(POLICIES[11]).experts_touched == 4
    assert seen(POLICIES[10], tokens=5).experts_touched == 5
    assert seen(POLICIES[10], tokens=5).tokens_per_expert.max() == pytest.approx(5 / 16)
    few, many = (seen({"kind": "switch"}, tokens=n).experts_touched for n in (2, 1000))
    assert few < 2
    assert many > 15.9


def test_stated_facts_are_passed_on():
    near = seen(POLICIES[13])
    assert (near.entropy_ratio, near.churn_share) == (0.6, 0.1)
    assert seen(POLICIES[14]).needs_attention_map
    assert seen(POLICIES[15]).state_bytes_per_token == 2 * HIDDEN
    full = seen(POLICIES[16])
    assert full.dropped_ratio > 0.05
    assert full.padded_ratio > full.dropped_ratio


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 10**9), alpha=st.floats(0, 3))
def test_any_batch_has_an_outlook(tokens, alpha):
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=alpha), BLOCK, 2)
    found = seen({"kind": "top_k"}, shares, tokens)
    assert np.isfinite(found.tokens_per_expert).all()
    assert 0 <= found.imbalance_score <= 4
    assert found.experts_touched >= 4 - 1e-9


def test_scores_of_batches_too_large_to_draw_fall_with_the_root_of_their_size():
    shares = expert_shares(UniformRouting(), BLOCK, 8)
    small, large = (seen({"kind": "top_k"}, shares, n).imbalance_score for n in (10**6, 10**8))
    assert small / large == pytest.approx(10, rel=0.02)


def run(*arguments):
    return CliRunner().invoke(command, ["routing", *arguments], catch_exceptions=True)


def test_the_verb_says_what_pangu_says(tmp_path):
    found = json.loads(run("pangu-pro-moe", "--devices", "8", "--tokens", "456", "-o",
                           "json").stdout)  # fmt: skip
    assert (found["imbalance_score"], found["busy_ratio"]) == (0, 1)
    free = run("pangu-pro-moe", "--devices", "8", "--tokens", "456", "-o", "json", "--set",
               "policy={kind: group_limited, groups: 1, top_groups: 1}")  # fmt: skip
    assert json.loads(free.stdout)["imbalance_score"] == pytest.approx(0.124, abs=0.005)
    load = tmp_path / "load.json"
    load.write_text(json.dumps({"logical_count": [[8.0, *[1.0] * 7]]}))
    table = run("mixtral-8x7b", "--devices", "8", "--load", str(load))
    assert table.exit_code == 0
    assert "busy ratio" in table.stdout


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([[1.0] * 7], "the load counts 7 experts, the model has 8"),
        ([[1.0] * 8] * 3, "the load has 3 layers with tokens, the model has 32"),
        ([[-1.0, *[1.0] * 7]], "counts are finite numbers of 0 or more"),
        ([["x"] * 8], "counts are rows of numbers"), ([[0.0] * 8], "no layer has any token"),
    ],
)  # fmt: skip
def test_loads_that_do_not_fit_name_both_sides(tmp_path, counts, says):
    load = tmp_path / "load.json"
    load.write_text(json.dumps({"counts": counts}))
    failed = run("mixtral-8x7b", "--load", str(load), "--set", "tokens=5").exception
    if counts == [[1.0] * 7]:  # a file may leave out experts that nobody chose
        assert failed is None
    else:
        assert says in str(failed)


def test_a_model_without_experts_and_devices_that_do_not_divide_are_refused():
    with pytest.raises(MoesaicError, match="has no routed experts"):
        answer_routing(RoutingQuestion(), load_model("llama-3.1-8b"))
    with pytest.raises(MoesaicError, match="7 does not divide 8 experts"):
        answer_routing(RoutingQuestion(devices=7), load_model("mixtral-8x7b"))
