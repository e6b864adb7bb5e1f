"""Published layouts hold what they say, and cost what their authors report."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.candidates import Layout, broken_rule
from planner.model_library import load_model
from planner.timing.apart import LayerSeconds, apart_pass_s
from planner.work.layouts import (
    EXPERT_SLOTS,
    ExpertSlots,
)

V3 = load_model("deepseek-v3")


@pytest.mark.parametrize(
    ("name", "each"),
    [("deepseek-v3-prefill-ep32", 9), ("deepseek-r1-decode-ep144", 2),
     ("deepseek-v3-decode-ep320", 1), ("cloudmatrix384-decode-ep320", 1)],
)  # fmt: skip
def test_slots_of_published_deployments(name, each):
    assert EXPERT_SLOTS[name].slots_per_rank == each


def test_copies_even_the_recorded_load(shared):
    path = shared / "data" / "traces" / "expert_load_deepseek_v3" / "prefill_in1024.json"
    counts = np.array(json.loads(path.read_text())["logical_count"], dtype=float)
    used = counts[counts.sum(axis=1) > 0]
    shares = used / used.sum(axis=1, keepdims=True)
    plain = ExpertSlots("plain", 32, 256, 0, 0, "no copies").busiest(V3.moe, shares, 1e6)
    copied = EXPERT_SLOTS["deepseek-v3-prefill-ep32"].busiest(V3.moe, shares, 1e6)
    assert copied < 1.1
    assert plain > 2.2


def test_uneven_slots_are_refused():
    with pytest.raises(MoesaicError, match="30 ranks do not divide 256 experts and 0 copies"):
        _ = ExpertSlots("odd", 30, 256, 0, 0, "none").slots_per_rank


def test_h2p_is_a_legal_layout():
    """Attention DP2 TP4, routed experts TP2 EP4 on eight devices."""
    h2p = Layout(tp=4, dp=2, pp=1, moe_tp=2, moe_ep=4)
    assert broken_rule(h2p, load_model("pangu-pro-moe"), "int8") is None


def test_experts_apart_as_xdeepserve_runs_them():
    """480 + 288 dies, batch 96 a die, two micro-batches: about 93 ms an iteration."""
    layer = LayerSeconds(0.7e-3, 0.172e-3, 0.12e-3, 0.193e-3)
    assert apart_pass_s(layer, 61, 2, fixed_s=7e-3) == pytest.approx(93e-3, rel=0.01)


@given(
    times=st.tuples(*[st.floats(1e-6, 1e-2)] * 4), layers=st.integers(1, 100),
    micro=st.integers(1, 8),
)  # fmt: skip
def test_a_pass_lies_between_the_busier_side_and_one_after_the_other(times, layers, micro):
    layer = LayerSeconds(*times)
    found = apart_pass_s(layer, layers, micro)
    busier = layers * micro * max(layer.attention_s, layer.experts_s)
    assert max(busier, layers * layer.round_s) <= found * (1 + 1e-12)
    assert found <= layers * micro * layer.round_s + layer.round_s


@pytest.mark.parametrize(("layers", "micro"), [(0, 1), (1, 0), (-1, 2)])
def test_no_layers_and_no_micro_batches_are_refused(layers, micro):
    with pytest.raises(MoesaicError, match="at least 1"):
        apart_pass_s(LayerSeconds(1, 1, 1, 1), layers, micro)
