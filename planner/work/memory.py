"""Resident bytes of one device by bucket: weights, cache, activations, buffers."""

from __future__ import annotations

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
from planner.work.rows import Formats, routed_ranks

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
    weights = _weights(model, formats)
    stages = pl.when(pl.col("phase") == "decode").then(pl.col("pp")).otherwise(1.0)
    held = pl.col("batch") * stages
    cache = _cache_per_sequence(model, formats) * held / pl.col("pp")
    filled = points.with_columns(
        *(expression.alias(name) for name, expression in weights.items()),
        cache.alias("kv_bytes"),
        _activations(model).alias("activation_bytes"),
        pl.lit(buffer_bytes).alias("buffer_bytes"),
    )
    if formats.layout.apart:
        filled = filled.with_columns(*_taken_apart())
    return filled.with_columns(pl.sum_horizontal(MEMORY).alias("total_bytes"))


def _taken_apart() -> tuple[pl.Expr, pl.Expr]:
    """Routed bytes where experts have devices of their own: what one holds beyond attention's.

    The sum over buckets is then that of the fuller of both kinds of device.
    """
    experts = pl.col("routed_bytes") + pl.col("redundant_bytes")
    other = pl.sum_horizontal(
        "shared_bytes", "dense_bytes", "attention_bytes", "embedding_bytes", "kv_bytes"
    )
    beyond = pl.max_horizontal(experts - other, pl.lit(0.0))
    return beyond.alias("routed_bytes"), pl.lit(0.0).alias("redundant_bytes")


def _weights(model: MoeModel, formats: Formats) -> dict[str, pl.Expr]:
    count, kept = count_parameters(model), formats.weights
    tp, pp = pl.col("tp"), pl.col("pp")
    experts = routed_ranks(formats.layout) * pl.col("moe_tp")
    shared: pl.Expr = tp if formats.layout.shared_tp is None else pl.lit(formats.layout.shared_tp)
    if formats.layout.shared_ranks:  # the fullest device holds routed experts
        shared = pl.lit(float("inf"))
    uneven = (model.layer_count / pp).ceil() * pp / model.layer_count
    stage = uneven / pp
    small = (count.router + count.projection + count.norms) * BF16_BYTES
    ends = pl.when(pp > 1).then(0.5 if not model.tied_embeddings else 1.0).otherwise(1.0)
    mtp = model.mtp_layers * mtp_parameters(model) * dtype(kept.routed).weight_bytes
    one = 0.0
    if model.moe is not None:
        one = expert_parameters(model.moe, model.hidden) * _stored(model, formats, "routed")
    copies = pl.col("redundant_experts") * len(model.moe_layers)
    return {
        "routed_bytes": count.routed * _stored(model, formats, "routed") * stage / experts
        + mtp / experts,
        "redundant_bytes": copies * one * stage / experts,
        "shared_bytes": (count.shared * _stored(model, formats, "shared") / shared + small) * stage,
        "dense_bytes": count.dense * _stored(model, formats, "dense") * stage / tp,
        "attention_bytes": _attention(model, formats) * stage,
        "embedding_bytes": count.embedding * dtype(kept.embedding).weight_bytes * ends / tp,
    }


def _stored(model: MoeModel, formats: Formats, bucket: str) -> float:
    """Mean bytes of a bucket's weights: the checkpoint's own where its format is kept."""
    name: str = getattr(formats.weights, bucket)
    if name == getattr(model.weights, bucket) and bucket in model.weights.mean_bytes:
        return model.weights.mean_bytes[bucket]
    return dtype(name).weight_bytes


def _attention(model: MoeModel, formats: Formats) -> pl.Expr:
    """Head-wise matrices are cut by tp, MLA's down-projections are kept whole on every rank."""
    whole = 0
    for name, layers in model.kind_counts().items():
        part = model.kinds[name].attention
        if isinstance(part, MlaAttention):
            down = (part.q_lora_rank or 0) + part.kv_lora_rank + part.qk_rope_head_dim
            whole += layers * model.hidden * down
    cut = count_parameters(model).attention - whole
    return (whole + cut / pl.col("tp")) * _stored(model, formats, "attention")


def _cache_per_sequence(model: MoeModel, formats: Formats) -> pl.Expr:
    """Cache bytes of one sequence at its longest, all layers, on one tensor-parallel rank.

    GQA heads are cut by tp down to one head a rank; a latent is the same on every rank. Layers that
    keep a state hold it in fp32 with the convolution's tail, cut by tp, however long the sequence.
    """
    cached, states = pl.lit(0.0), 0.0
    for name, layers in model.kind_counts().items():
        kind = model.kinds[name]
        cached = cached + layers * _kept_elements(kind) * _share(kind)
        state, tail = state_elements(kind, model.hidden)
        states += layers * (state * FP32_BYTES + tail * BF16_BYTES)
    return cached * dtype(formats.kv_dtype).activation_bytes + states / pl.col("tp")


def _share(kind: LayerKind) -> pl.Expr:
    if isinstance(kind.attention, GqaAttention):
        return pl.max_horizontal(1 / pl.col("tp"), pl.lit(1 / kind.attention.kv_heads))
    return pl.lit(1.0)


def _kept_elements(kind: LayerKind) -> pl.Expr:
    """Numbers one sequence keeps in a layer's cache, its window applied."""
    context, window = pl.col("context_tokens"), getattr(kind.attention, "window_tokens", None)
    each = layer_kv_elements(kind)
    if window is None:
        return context * each
    inside = pl.min_horizontal(context, pl.lit(float(window)))
    if isinstance(kind.attention, CompressedAttention):
        return inside * kind.attention.head_dim + context * each
    return inside * each


def _activations(model: MoeModel) -> pl.Expr:
    """The widest moment of a pass: live hidden-wide tensors and one feed-forward intermediate."""
    widths = [0.0]
    for kind in model.kinds.values():
        ffn = kind.ffn
        if ffn is not None:
            widths.append(ffn.width * getattr(ffn, "top_k", 1) * (ffn.matrices - 1))
    per_token = (LIVE_TENSORS * model.hidden + max(widths)) * BF16_BYTES
    return pl.col("batch") * pl.col("new_tokens") * per_token
