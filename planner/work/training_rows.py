"""Rows that training runs between matrix products: activations, token permutes, casts, the loss.

Serving engines fuse most of them away; training frameworks keep inputs and outputs for backward.
"""

from __future__ import annotations

from hwprofiles.kernels import DTYPES
from planner.moe_model import DenseFfn, GqaAttention, LayerKind, MoeFfn, MoeModel
from planner.work.rows import Array, Formats, Part, Points, gemm, per_layer, tokens, write_rows

NUMBER_BYTES = 2
PASSES = 2
"""A tensor is read and written once."""
GATED_TENSORS = 3
"""Gate and up are read, their product is written."""
PERMUTES = 2
"""Tokens are sorted by expert before the experts and put back after them."""
CAST_BYTES = 3.0
"""A 16-bit number is read, an 8-bit one written."""
LOGIT_BYTES = 10
"""Logits in bf16, their fp32 copy, and the softmax written over it."""


def training_rows(points: Points, model: MoeModel, formats: Formats) -> list[Part]:
    """The rows of one micro-batch's forward pass that a prefill does not have."""
    rows = [
        gemm(points, "head", 1, (tokens(points), model.vocab / points["tp"], model.hidden), "bf16"),
        write_rows(points, "head", "elementwise", 1,
                   bytes=tokens(points) * (model.vocab / points["tp"]) * LOGIT_BYTES),
    ]  # fmt: skip
    for name, layers in model.kind_counts().items():
        kind, runs = model.kinds[name], per_layer(points, layers)
        for stage, size in _sizes(points, kind, model, formats).items():
            rows.append(write_rows(points, stage, "elementwise", runs, bytes=tokens(points) * size))
    return rows


def _sizes(points: Points, kind: LayerKind, model: MoeModel, formats: Formats) -> dict[str, Array]:
    """Bytes a token moves in each stage of a layer."""
    tp, part = points["tp"], kind.attention
    found: dict[str, Array] = {}
    if isinstance(part, GqaAttention):
        heads = (part.heads + part.kv_heads) * part.head_dim
        found["rotary"] = heads * NUMBER_BYTES * PASSES * (1 + part.qk_norm) / tp
    if isinstance(kind.ffn, DenseFfn):
        found["activation"] = _gated(kind.ffn.width, kind.ffn.matrices) / tp
        found["cast"] = _casts(formats.weights.dense, model.hidden * 2 + kind.ffn.width) / tp
    if isinstance(kind.ffn, MoeFfn):
        found |= _routed(points, kind.ffn, model, formats)
    return found


def _routed(points: Points, moe: MoeFfn, model: MoeModel, formats: Formats) -> dict[str, Array]:
    wide, cut = moe.latent or model.hidden, points["moe_tp"]
    inner = moe.top_k * moe.width / cut
    return {
        "permute": float(moe.top_k * wide * NUMBER_BYTES * PASSES * PERMUTES) / points["tp"],
        "activation": inner * (_gated(1, moe.matrices))
        + _gated(moe.shared_width, moe.matrices) / points["tp"],
        "cast": _casts(formats.weights.routed, moe.top_k * wide) / points["tp"]
        + _casts(formats.weights.routed, 1.0) * inner,
    }


def _gated(width: float, matrices: int) -> float:
    tensors = GATED_TENSORS if matrices == GATED_TENSORS else PASSES
    return float(width * NUMBER_BYTES * tensors)


def _casts(dtype: str, width: float) -> float:
    """Casting the inputs of low-precision products, each also transposed for backward."""
    low = DTYPES[dtype].compute in ("fp8", "fp4", "int8")
    return PASSES * CAST_BYTES * width if low else 0.0
