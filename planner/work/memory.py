"""Resident bytes of one device by bucket: weights, cache, activations, buffers."""

from __future__ import annotations

import polars as pl

from hwprofiles.kernels import dtype
from planner.moe_model import GqaAttention, LayerKind, MlaAttention, MoeModel
from planner.parameters import (
    count_parameters,
    expert_parameters,
    layer_kv_elements,
    mtp_parameters,
)
from planner.work.rows import Formats

MEMORY = ("routed_bytes", "shared_bytes", "dense_bytes", "attention_bytes", "embedding_bytes",
          "redundant_bytes", "kv_bytes", "activation_bytes", "buffer_bytes")  # fmt: skip
"""Buckets, one column each."""
BF16_BYTES = 2
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
    return filled.with_columns(pl.sum_horizontal(MEMORY).alias("total_bytes"))


def _weights(model: MoeModel, formats: Formats) -> dict[str, pl.Expr]:
    count, kept = count_parameters(model), formats.weights
    experts, tp, pp = pl.col("moe_ep") * pl.col("moe_tp"), pl.col("tp"), pl.col("pp")
    uneven = (model.layer_count / pp).ceil() * pp / model.layer_count
    stage = uneven / pp
    small = (count.router + count.projection + count.norms) * BF16_BYTES
    ends = pl.when(pp > 1).then(0.5 if not model.tied_embeddings else 1.0).otherwise(1.0)
    mtp = model.mtp_layers * mtp_parameters(model) * dtype(kept.routed).weight_bytes
    one = 0.0
    if model.moe is not None:
        one = expert_parameters(model.moe, model.hidden) * dtype(kept.routed).weight_bytes
    copies = pl.col("redundant_experts") * len(model.moe_layers)
    return {
        "routed_bytes": count.routed * dtype(kept.routed).weight_bytes * stage / experts
        + mtp / experts,
        "redundant_bytes": copies * one * stage / experts,
        "shared_bytes": (count.shared * dtype(kept.shared).weight_bytes / tp + small) * stage,
        "dense_bytes": count.dense * dtype(kept.dense).weight_bytes * stage / tp,
        "attention_bytes": _attention(model, formats) * stage,
        "embedding_bytes": count.embedding * dtype(kept.embedding).weight_bytes * ends / tp,
    }


def _attention(model: MoeModel, formats: Formats) -> pl.Expr:
    """Head-wise matrices are cut by tp, MLA's down-projections are kept whole on every rank."""
    whole = 0
    for name, layers in model.kind_counts().items():
        part = model.kinds[name].attention
        if isinstance(part, MlaAttention):
            down = (part.q_lora_rank or 0) + part.kv_lora_rank + part.qk_rope_head_dim
            whole += layers * model.hidden * down
    cut = count_parameters(model).attention - whole
    return (whole + cut / pl.col("tp")) * dtype(formats.weights.attention).weight_bytes


def _cache_per_sequence(model: MoeModel, formats: Formats) -> pl.Expr:
    """Cache bytes of one sequence at its longest, all layers, on one tensor-parallel rank.

    GQA heads are cut by tp down to one head a rank; MLA's latent is the same on every rank.
    """
    total = pl.lit(0.0)
    for name, layers in model.kind_counts().items():
        kind = model.kinds[name]
        total = total + layers * layer_kv_elements(kind) * _share(kind) * _kept_tokens(kind)
    return total * dtype(formats.kv_dtype).activation_bytes


def _share(kind: LayerKind) -> pl.Expr:
    if isinstance(kind.attention, GqaAttention):
        return pl.max_horizontal(1 / pl.col("tp"), pl.lit(1 / kind.attention.kv_heads))
    return pl.lit(1.0)


def _kept_tokens(kind: LayerKind) -> pl.Expr:
    window = getattr(kind.attention, "window_tokens", None)
    context = pl.col("context_tokens")
    return context if window is None else pl.min_horizontal(context, pl.lit(float(window)))


def _activations(model: MoeModel) -> pl.Expr:
    """The widest moment of a pass: live hidden-wide tensors and one feed-forward intermediate."""
    widths = [0.0]
    for kind in model.kinds.values():
        ffn = kind.ffn
        if ffn is not None:
            widths.append(ffn.width * getattr(ffn, "top_k", 1) * (ffn.matrices - 1))
    per_token = (LIVE_TENSORS * model.hidden + max(widths)) * BF16_BYTES
    return pl.col("batch") * pl.col("new_tokens") * per_token
