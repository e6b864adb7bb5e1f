"""Numeric formats as an engine runs them: checkpoint, asked precision, what the device computes."""

from __future__ import annotations

from dataclasses import replace

from hwprofiles.device import Device
from hwprofiles.errors import unknown_name
from hwprofiles.kernels import DTYPES, dtype
from planner.moe_model import MoeModel
from planner.work.rows import Formats
from planner.work.sheet import formats_of

SHORT = {"fp4": "nvfp4", "int4": "w4a16", "w8a8": "int8", "fp16": "bf16"}
"""Precisions as people write them; fp4 is NVFP4 unless the checkpoint is 4-bit itself."""
WIDER: dict[str, tuple[str, ...]] = {
    "w4a8_mxfp4": ("w4a16_mxfp4",),
    "nvfp4": ("w4a16",),
    "fp8": ("w8a16",),
    "fp8_block": ("w8a16",),
    "w4a8": ("w4a16",),
    "int8": ("w8a16",),
    "bf16": ("fp16",),
}
"""What runs in a format's place where the device does not compute in it: same weights, wider
activations (vLLM's Marlin kernels; gpt-oss model card: MXFP4 with BF16 or FP8 activations)."""


DOT_PRODUCTS = {"q4_0": "q4_0_dot", "q8_0": "q8_0_dot"}
"""What processors make of ggml's formats: the same weights, activations in Q8_0."""


def formats_on(
    model: MoeModel, precision: str | None, kv_dtype: str | None, device: Device,
    cache_needs: str = "fp8",
) -> Formats:  # fmt: skip
    """Formats of a question on a device, with an engine that keeps an 8-bit cache where it can.

    A checkpoint whose experts are already narrower than the asked precision keeps its own.

    Raises:
        MoesaicError: `unknown_name` for a precision that is no format.
    """
    asked = _asked(model, precision)
    formats = formats_of(model, asked, kv_dtype or _cache(precision, device, cache_needs))
    kinds = formats.weights.model_dump().items()
    kept = {name: kind and runnable(kind, device) for name, kind in kinds}
    return replace(formats, weights=formats.weights.model_validate(kept))


def _asked(model: MoeModel, precision: str | None) -> str | None:
    if precision is None:
        return None
    own = dtype(model.weights.routed).weight_bytes
    name = SHORT.get(precision.lower(), precision.lower())
    if name not in DTYPES:
        raise unknown_name("precision", precision, [*DTYPES, *SHORT], "/precision")
    return None if own < 1 and own <= dtype(name).weight_bytes + 0.1 else name


def _cache(precision: str | None, device: Device, needs: str) -> str:
    """Deployments in 8 or 4 bits keep an 8-bit cache where the device computes in `needs`."""
    narrow = precision is not None and ("8" in precision or "4" in precision)
    able = {"fp8", needs} <= set(device.peak_flop_per_s)
    return "fp8" if narrow and able else "bf16"


def runnable(name: str, device: Device) -> str:
    """The format itself where the device computes in it, else the nearest that it can run."""
    if name == "mxfp4":  # products in 8 bits where tensor cores read 4-bit weights, else in 16
        return "w4a8_mxfp4" if "fp4" in device.peak_flop_per_s else "w4a16_mxfp4"
    if device.kind == "cpu" and name in DOT_PRODUCTS:
        return DOT_PRODUCTS[name]
    options = (name, *WIDER.get(name, ()))
    return next((o for o in options if dtype(o).compute in device.peak_flop_per_s), name)
