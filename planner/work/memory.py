"""Resident bytes of one device by bucket: weights, cache, activations, buffers."""

from __future__ import annotations

from math import inf

import numpy as np
import polars as pl

from hwprofiles.kernels import dtype
from planner.moe_model import (
    CompressedAttention,
    GqaAttention,
    LayerKind,
    MlaAttention,
    MoeModel,
)
from planner.parameters import (
    count_parameters,
    expert_parameters,
    layer_kv_elements,
    mtp_parameters,
    state_elements,
)
from planner.work.rows import Array, Formats, Points, routed_ranks

MEMORY = ("routed_bytes", "shared_bytes", "dense_bytes", "attention_bytes", "embedding_bytes",
          "redundant_bytes", "kv_bytes", "activation_bytes", "buffer_bytes")  # fmt: skip
"""Buckets, one column each."""
BF16_BYTES, FP32_BYTES = 2, 4
LIVE_TENSORS = 6
"""Hidden-wide tensors alive at once in a pass: residual, norm, q/k/v, output, two exchanges."""


def add_memory(
    points: pl.DataFrame, model: MoeModel, formats: Formats, buffer_bytes: float
) -> pl.DataFrame:
    """Add one column a bucket of `MEMORY` and `total_bytes`, for the fullest device of a worker.

    Args:
        points: columns `POINT`. A decode rank holds `batch` sequences for each pipeline stage.
        model: the model.
        formats: numeric formats.
        buffer_bytes: what engine and driver take besides (context, graphs, communication).
    """
    found = memory_of(Points.of(points), model, formats, buffer_bytes)
    return points.with_columns(pl.Series(name, values) for name, values in found.items())


def memory_of(
    points: Points, model: MoeModel, formats: Formats, buffer_bytes: float
) -> dict[str, Array]:
    """The buckets of `MEMORY` and `total_bytes`; arguments as those of `add_memory`."""
    stages = np.where(points.decoding, points["pp"], 1.0)
    held = points["batch"] * stages
    cache = _cache_per_sequence(points, model, formats) * held / points["pp"]
    found = _weights(points, model, formats) | {
        "kv_bytes": cache,
        "activation_bytes": _activations(points, model),
        "buffer_bytes": np.full(points.count, float(buffer_bytes)),
    }
    if formats.layout.apart:
        _take_apart(found)
    total = np.zeros(points.count)
    for name in MEMORY:
        total = total + found[name]
    return {name: found[name] for name in MEMORY} | {"total_bytes": total}


def _take_apart(found: dict[str, Array]) -> None:
    """Routed bytes where experts have devices of their own: what one holds beyond attention's.

    The sum over buckets is then that of the fuller of both kinds of device.
    """
    kept = ("shared_bytes", "dense_bytes", "attention_bytes", "embedding_bytes", "kv_bytes")
    other: Array = sum((found[name] for name in kept), np.zeros(1))
    experts = found["routed_bytes"] + found["redundant_bytes"]
    found["routed_bytes"] = np.maximum(experts - other, 0.0)
    found["redundant_bytes"] = np.zeros_like(experts)


def _weights(points: Points, model: MoeModel, formats: Formats) -> dict[str, Array]:
    count, kept = count_parameters(model), formats.weights
    tp, pp = points["tp"], points["pp"]
    experts = routed_ranks(points, formats.layout) * points["moe_tp"]
    shared: Array | float = tp if formats.layout.shared_tp is None else formats.layout.shared_tp
    if formats.layout.shared_ranks:  # the fullest device holds routed experts
        shared = inf
    uneven = np.ceil(model.layer_count / pp) * pp / model.layer_count
    stage = uneven / pp
    small = (count.router + count.projection + count.norms) * BF16_BYTES
    ends = np.where(pp > 1, 0.5 if not model.tied_embeddings else 1.0, 1.0)
    mtp = model.mtp_layers * mtp_parameters(model) * dtype(kept.routed).weight_bytes
    one = 0.0
    if model.moe is not None:
        one = expert_parameters(model.moe, model.hidden) * _stored(model, formats, "routed")
    copies = points["redundant_experts"] * len(model.moe_layers)
    return {
        "routed_bytes": count.routed * _stored(model, formats, "routed") * stage / experts
        + mtp / experts,
        "redundant_bytes": copies * one * stage / experts,
        "shared_bytes": (count.shared * _stored(model, formats, "shared") / shared + small) * stage,
        "dense_bytes": count.dense * _stored(model, formats, "dense") * stage / tp,
        "attention_bytes": _attention(points, model, formats) * stage,
        "embedding_bytes": count.embedding * dtype(kept.embedding).weight_bytes * ends / tp,
    }


def _stored(model: MoeModel, formats: Formats, bucket: str) -> float:
    """Mean bytes of a bucket's weights: the checkpoint's own where its format is kept."""
    name: str = getattr(formats.weights, bucket)
    if name == getattr(model.weights, bucket) and bucket in model.weights.mean_bytes:
        return model.weights.mean_bytes[bucket]
    return dtype(name).weight_bytes


def _attention(points: Points, model: MoeModel, formats: Formats) -> Array:
    """Head-wise matrices are cut by tp, MLA's down-projections are kept whole on every rank."""
    whole = 0
    for name, layers in model.kind_counts().items():
        part = model.kinds[name].attention
        if isinstance(part, MlaAttention):
            down = (part.q_lora_rank or 0) + part.kv_lora_rank + part.qk_rope_head_dim
            whole += layers * model.hidden * down
    cut = count_parameters(model).attention - whole
    return (whole + cut / points["tp"]) * _stored(model, formats, "attention")


def _cache_per_sequence(points: Points, model: MoeModel, formats: Formats) -> Array:
    """Cache bytes of one sequence at its longest, all layers, on one tensor-parallel rank.

    GQA heads are cut by tp down to one head a rank; a latent is the same on every rank. Layers that
    keep a state hold it in fp32 with the convolution's tail, cut by tp, however long the sequence.
    """
    cached, states = np.zeros(points.count), 0.0
    for name, layers in model.kind_counts().items():
        kind = model.kinds[name]
        cached = cached + layers * _kept_elements(points, kind) * _share(points, kind)
        state, tail = state_elements(kind, model.hidden)
        states += layers * (state * FP32_BYTES + tail * BF16_BYTES)
    return cached * dtype(formats.kv_dtype).activation_bytes + states / points["tp"]


def _share(points: Points, kind: LayerKind) -> Array | float:
    if isinstance(kind.attention, GqaAttention):
        return np.maximum(1 / points["tp"], 1 / kind.attention.kv_heads)
    return 1.0


def _kept_elements(points: Points, kind: LayerKind) -> Array:
    """Numbers one sequence keeps in a layer's cache, its window applied."""
    context, window = points["context_tokens"], getattr(kind.attention, "window_tokens", None)
    each = layer_kv_elements(kind)
    if window is None:
        return context * each
    inside = np.minimum(context, float(window))
    if isinstance(kind.attention, CompressedAttention):
        return inside * kind.attention.head_dim + context * each
    return inside * each


def _activations(points: Points, model: MoeModel) -> Array:
    """The widest moment of a pass: live hidden-wide tensors and one feed-forward intermediate."""
    widths = [0.0]
    for kind in model.kinds.values():
        ffn = kind.ffn
        if ffn is not None:
            widths.append(ffn.width * getattr(ffn, "top_k", 1) * (ffn.matrices - 1))
    per_token = (LIVE_TENSORS * model.hidden + max(widths)) * BF16_BYTES
    return points["batch"] * points["new_tokens"] * per_token
