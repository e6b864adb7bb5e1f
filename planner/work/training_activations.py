"""What one layer keeps for its backward pass, in bytes a token on one device.

The terms are those of arXiv:2205.05198, section 4.1, taken apart: norms' inputs, linear layers'
inputs, dropout masks, attention's operands, the feed-forward's inner numbers. With two norms, full
heads and four times the hidden width they add up to s·b·h·(10 + 24/t + 5·a·s/(h·t)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from planner.moe_model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    LayerKind,
    LinearAttention,
    MambaMixer,
    MlaAttention,
    MoeFfn,
    MoeModel,
)

NUMBER_BYTES = 2
MASK_BYTES = 1
FP32_BYTES = 4
SCORE_BYTES = 5
"""Softmax input, softmax output and a mask for each pair: 2 + 2 + 1 (arXiv:2205.05198)."""

Module = Literal["core_attn", "moe_act", "mlp", "moe", "layernorm", "mla_up_proj"]


@dataclass(frozen=True)
class ActivationRules:
    """What a run keeps and what it computes again; names as in Megatron-Core.

    Args:
        full: keep each layer's input only.
        recompute: modules run again; `core_attn` is what older texts call selective.
        sequence_parallel: norms and dropouts are cut by tensor parallelism too.
        flash: attention never writes its scores.
        dropout: masks are kept (2022 models), one byte a number.
    """

    full: bool = False
    recompute: tuple[Module, ...] = ()
    sequence_parallel: bool = True
    flash: bool = True
    dropout: bool = False


def checkpoint_bytes(model: MoeModel, rules: ActivationRules) -> pl.Expr:
    """Bytes a token of one layer's input."""
    cut = pl.col("tp") if rules.sequence_parallel else pl.lit(1.0)
    return NUMBER_BYTES * model.hidden / cut


def layer_activation_bytes(model: MoeModel, kind: LayerKind, rules: ActivationRules) -> pl.Expr:
    """Bytes a token that one layer keeps.

    Args:
        model: the model, for its hidden width.
        kind: the layer.
        rules: what is kept.

    Returns:
        An expression over the columns tp, ep, etp and seq.
    """
    tp = pl.col("tp")
    parts = sum(part is not None for part in (kind.attention or kind.mixer, kind.ffn))
    norms = 0 if "layernorm" in rules.recompute else parts
    whole = (parts + norms) * model.hidden * NUMBER_BYTES
    whole += parts * model.hidden * MASK_BYTES * rules.dropout
    spread = tp if rules.sequence_parallel else pl.lit(1.0)
    inner = _attention(kind.attention, rules) + _mixer(kind)
    total = whole / spread + inner * NUMBER_BYTES / tp + _scores(kind.attention, rules)
    if isinstance(kind.ffn, DenseFfn):
        width = 0 if "mlp" in rules.recompute else kind.ffn.width * kind.ffn.matrices
        total = total + width * NUMBER_BYTES / tp
    if isinstance(kind.ffn, MoeFfn):
        total = total + _routed(kind.ffn, model, rules)
    return total


def _attention(part: Attention | None, rules: ActivationRules) -> float:
    """Numbers a token that heads hold: queries, keys, values and the output."""
    if part is None:
        return 0.0
    if isinstance(part, MlaAttention):
        return _latent(part, rules)
    if isinstance(part, CompressedAttention):
        return 2.0 * part.heads * part.head_dim + part.head_dim + part.q_lora_rank
    queries = part.heads * part.head_dim
    keys = part.kv_heads * part.head_dim
    before_norm = (queries + keys) * part.qk_norm
    output = part.heads * part.value_dim
    return float(queries + keys + part.kv_heads * part.value_dim + output + before_norm)


def _latent(part: MlaAttention, rules: ActivationRules) -> float:
    """Latent attention keeps its latents, and the widened heads unless they are made again."""
    latents = (part.q_lora_rank or 0) + part.kv_lora_rank + part.qk_rope_head_dim
    output = part.heads * part.v_head_dim
    if "mla_up_proj" in rules.recompute:
        return float(latents + output)
    return float(latents + output + part.heads * (2 * part.qk_head_dim + part.v_head_dim))


def _mixer(kind: LayerKind) -> float:
    mixer = kind.mixer
    if isinstance(mixer, LinearAttention):
        key, value = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
        return float(2 * (2 * key + value) + 2 * value)
    if isinstance(mixer, MambaMixer):
        return float(4 * mixer.inner + 2 * mixer.groups * mixer.state)
    return 0.0


def _scores(part: Attention | None, rules: ActivationRules) -> pl.Expr:
    if part is None or rules.flash or "core_attn" in rules.recompute:
        return pl.lit(0.0)
    return SCORE_BYTES * part.heads * pl.col("seq") / pl.col("tp")


def _routed(moe: MoeFfn, model: MoeModel, rules: ActivationRules) -> pl.Expr:
    """Experts keep the tokens sent to them, balanced over ranks, and their inner numbers."""
    wide = moe.latent or model.hidden
    logits = pl.lit(float(2 * moe.experts * FP32_BYTES))
    shared = moe.shared_width * moe.matrices * NUMBER_BYTES / pl.col("tp")
    if "moe" in rules.recompute:
        return logits
    inner = moe.width * (moe.matrices - (1 if "moe_act" in rules.recompute else 0))
    tokens = moe.top_k * NUMBER_BYTES * (wide + inner / pl.col("etp"))
    return logits + shared + tokens
