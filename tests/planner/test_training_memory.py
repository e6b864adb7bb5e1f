"""Training memory by bucket: what sharding, recomputation and a teacher must do."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.work.training_activations import ActivationRules
from planner.work.training_memory import BUCKETS, TRAINING, TrainingRules, training_memory

DEEPSEEK = load_model("deepseek-v3")


def total(model=DEEPSEEK, rules=None, **layout):
    row = dict.fromkeys(TRAINING, 1) | {"seq": 4096, "dp": 64, "ep": 32, "pp": 8, "tp": 2} | layout
    frame = training_memory(pl.DataFrame([row]), model, rules or TrainingRules())
    found = frame.row(0, named=True)
    assert found["total_bytes"] == pytest.approx(sum(found[name] for name in BUCKETS))
    return found


def test_each_zero_stage_shares_one_more_state():
    found = [total(rules=TrainingRules(zero=zero))["total_bytes"] for zero in (0, 1, 2, 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.3 * found[1]


def test_recomputation_trades_activations_only():
    kept = total(pp=1)
    rules = TrainingRules(activations=ActivationRules(recompute=("moe_act", "mla_up_proj")))
    some, full = (
        total(rules=rules, pp=1),
        total(rules=TrainingRules(activations=ActivationRules(full=True)), pp=1),
    )
    assert full["activation_bytes"] < some["activation_bytes"] < kept["activation_bytes"]
    assert full["optimizer_bytes"] == kept["optimizer_bytes"]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 8, 32]))
def test_more_devices_never_need_more_each(pp, micro, ep):
    one = total(pp=pp, micro_batch=micro, ep=ep)["total_bytes"]
    assert total(pp=pp, micro_batch=micro, ep=ep * 2)["total_bytes"] <= one
    assert total(pp=pp, micro_batch=micro * 2, ep=ep)["total_bytes"] >= one


def test_a_teacher_adds_its_weights_and_no_states():
    student = load_model("qwen3-30b-a3b")
    alone = total(student)
    both = total(student, TrainingRules(teacher=load_model("qwen3-235b-a22b")))
    assert both["weights_bytes"] > 5 * alone["weights_bytes"]
    assert both["optimizer_bytes"] == alone["optimizer_bytes"]


def test_every_model_of_the_catalogue_has_a_number():
    from planner.model_library import entries

    for name in entries():
        found = total(load_model(name))
        assert all(found[bucket] >= 0 for bucket in BUCKETS)
        assert found["total_bytes"] > 0


def test_bad_layouts_are_refused():
    with pytest.raises(MoesaicError, match="columns"):
        training_memory(pl.DataFrame({"tp": [1]}), DEEPSEEK, TrainingRules())
    with pytest.raises(MoesaicError, match="degree"):
        total(pp=0)
    empty = pl.DataFrame(schema=dict.fromkeys(TRAINING, pl.Int64))
    assert training_memory(empty, DEEPSEEK, TrainingRules()).height == 0
