"""Does it fit: the verdict, the largest that still does, and buffers against known sizes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.work.buffers import adapter_parameters, deepep_low_latency_bytes, hccl_bytes
from planner.work.fit import Layout, fit

V3, MIXTRAL = load_model("deepseek-v3"), load_model("mixtral-8x7b")
H200, H100 = 141e9, 80e9


def test_671b_in_fp8_fits_sixteen_h200_and_not_four():
    assert fit(V3, H200, Layout(dp=16, moe_ep=16)).fits
    four = fit(V3, H200, Layout(dp=4, moe_ep=4))
    assert not four.fits
    assert (four.shrink, four.largest_batch) == ("routed", 0)
    assert four.headroom_bytes < 0


def test_latent_cache_is_not_cut_by_tensor_parallelism():
    one = fit(V3, H200, Layout(tp=1, dp=8, moe_ep=8, batch=8))
    eight = fit(V3, H200, Layout(tp=8, moe_tp=1, moe_ep=8, batch=8))
    assert one.buckets["kv_bytes"] == eight.buckets["kv_bytes"]
    gqa = [fit(MIXTRAL, H200, Layout(tp=tp, moe_tp=tp, batch=8)).buckets["kv_bytes"]
           for tp in (1, 2, 8, 16)]  # fmt: skip
    assert gqa == pytest.approx([gqa[0], gqa[0] / 2, gqa[0] / 8, gqa[0] / 8])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 64), st.integers(1024, 65536))
def test_the_largest_batch_fits_and_one_more_does_not(batch, context):
    layout = Layout(dp=16, moe_ep=16, batch=batch, context_tokens=context)
    most = fit(V3, H200, layout).largest_batch
    assert most >= 1
    assert fit(V3, H200, layout.model_copy(update={"batch": most})).fits
    assert not fit(V3, H200, layout.model_copy(update={"batch": most + 1})).fits


def test_the_largest_context_stops_at_what_the_model_was_made_for():
    assert fit(V3, 1e13, Layout()).largest_context_tokens == V3.max_context_tokens
    windowed = fit(load_model("nemotron-h-56b"), 1e12, Layout())
    assert windowed.largest_context_tokens == 8192


def test_redundant_experts_adapters_and_buffers_are_counted():
    plain = fit(V3, H200, Layout(dp=16, moe_ep=16))
    more = fit(V3, H200, Layout(dp=16, moe_ep=16, redundant_experts=32, low_latency_tokens=128,
                                lora_rank=16, lora_count=4))  # fmt: skip
    one_expert = 3 * 7168 * 2048 * (1 + 4 / 128**2)
    assert more.buckets["redundant_bytes"] == pytest.approx(32 * 58 * one_expert / 16, rel=1e-6)
    assert more.buckets["adapter_bytes"] > 0
    extra = more.buckets["buffer_bytes"] - plain.buckets["buffer_bytes"]
    assert extra == deepep_low_latency_bytes(128, 7168, 288)
    both = adapter_parameters(MIXTRAL, 16, experts=True)
    assert both > adapter_parameters(MIXTRAL, 16, experts=False)
    assert hccl_bytes(3) == 3 * 2 * 200 * 2**20


@pytest.mark.parametrize(
    ("changes", "path"), [({"dp": 2}, "/moe_ep"), ({"pp": 99}, "/pp"),
                          ({"dp": 3, "moe_ep": 3}, "/moe_ep")],
)  # fmt: skip
def test_layouts_that_cannot_be_are_refused(changes, path):
    with pytest.raises(MoesaicError) as caught:
        fit(MIXTRAL, H100, Layout(**changes))
    assert caught.value.path == path
