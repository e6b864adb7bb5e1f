"""Formats as they run: what the device cannot compute in is taken wider, never narrower."""

import pytest

from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_device
from planner.model_library import load_model
from planner.work.precision import formats_on


@pytest.mark.parametrize(
    ("model", "precision", "device", "routed", "attention"),
    [
        ("gpt-oss-120b", "fp4", "h100-sxm", "w4a16_mxfp4", "bf16"),
        ("gpt-oss-120b", "fp8", "b200-sxm", "w4a8_mxfp4", "bf16"),
        ("deepseek-r1", "fp4", "b200-sxm", "nvfp4", "fp8_block"),
        ("deepseek-r1", "fp8", "a100-sxm-80g", "w8a16", "w8a16"),
        ("qwen3-30b-a3b", None, "h100-sxm", "bf16", "bf16"),
    ],
)
def test_formats(model, precision, device, routed, attention):
    weights = formats_on(load_model(model), precision, "bf16", load_device(device)).weights
    assert (weights.routed, weights.attention) == (routed, attention)


def test_unknown_precision():
    with pytest.raises(MoesaicError, match="fp5"):
        formats_on(load_model("deepseek-r1"), "fp5", "bf16", load_device("h100-sxm"))
