"""Rows of the attention stage: projections, scores and values, norms, the sum over ranks."""

from __future__ import annotations

import numpy as np

from planner.moe_model import GqaAttention, MlaAttention
from planner.work.mixers import mixer_rows
from planner.work.rows import LayerWork, Part, Points, Value, gemm, per_layer, tokens, write_rows

NORM_PASSES = 3
"""A fused residual add and norm reads two hidden-wide tensors and writes one more."""
BF16_BYTES = 2
PROMPT = "prompt_tokens"
"""Column of passes over prompts of unequal length: fewer, longer prompts of as many tokens, so that
scores count E[isl²]."""


def attention_rows(points: Points, layer: LayerWork) -> list[Part]:
    """Everything between two residual adds around attention, on one tensor-parallel rank."""
    part = layer.kind.attention
    if isinstance(part, MlaAttention):
        return [*_mla(points, layer, part), *_sum(points, layer)]
    if isinstance(part, GqaAttention):
        return [*_gqa(points, layer, part), *_sum(points, layer)]
    other = part or layer.kind.mixer
    return [*mixer_rows(points, layer, other), *_sum(points, layer)] if other else []


def _gqa(points: Points, layer: LayerWork, part: GqaAttention) -> list[Part]:
    runs, dtype, tp = per_layer(points, layer.layers), layer.formats.weights.attention, points["tp"]
    heads = part.heads / tp
    kv_heads = np.maximum(part.kv_heads / tp, 1.0)
    query = heads * part.head_dim * (1 + part.output_gate)
    wide: list[Part] = []
    if part.query_rank:  # every rank has the low rank whole, and widens it to its own heads
        wide = [gemm(points, "attention", runs, (tokens(points), query, part.query_rank), dtype)]
        query = np.full(points.count, float(part.query_rank))
    width = query + kv_heads * (part.head_dim + part.value_dim)
    core: dict[str, Value] = {
        "heads": heads, "kv_heads": kv_heads, "head_dim": part.head_dim,
        "v_head_dim": part.value_dim,
    }  # fmt: skip
    if part.window_tokens:
        core["window"] = part.window_tokens
    return [
        gemm(points, "attention", runs, (tokens(points), width, layer.hidden), dtype),
        *wide,
        *_core(points, layer, "attention", core),
        gemm(
            points, "attention", runs, (tokens(points), layer.hidden, heads * part.value_dim), dtype
        ),
    ]


def _mla(points: Points, layer: LayerWork, part: MlaAttention) -> list[Part]:
    """Down-projections are replicated; heads are cut by tp. Decode runs the absorbed form."""
    runs, dtype = per_layer(points, layer.layers), layer.formats.weights.attention
    heads, rank = part.heads / points["tp"], part.kv_lora_rank
    source = part.q_lora_rank or layer.hidden
    down = (part.q_lora_rank or 0) + rank + part.qk_rope_head_dim
    core: dict[str, Value] = {"heads": heads, "kv_heads": heads, "head_dim": part.qk_head_dim,
            "v_head_dim": part.v_head_dim, "kv_rank": rank,
            "rope_dim": part.qk_rope_head_dim}  # fmt: skip
    if part.index_topk:
        core["window"] = part.index_topk
    prefill, decode = points.prefill, points.decode
    expand = heads * (part.qk_nope_head_dim + part.v_head_dim)
    absorb = heads * (part.qk_nope_head_dim + part.v_head_dim)
    return [
        gemm(points, "attention", runs, (tokens(points), down, layer.hidden), dtype),
        gemm(points, "attention", runs, (tokens(points), heads * part.qk_head_dim, source), dtype),
        gemm(prefill, "attention", runs, (tokens(points), expand, rank), dtype),
        gemm(decode, "attention", runs, (tokens(points), absorb, rank), "bf16"),
        *_core(points, layer, "mla", core),
        gemm(
            points,
            "attention",
            runs,
            (tokens(points), layer.hidden, heads * part.v_head_dim),
            dtype,
        ),
    ]


def _core(points: Points, layer: LayerWork, name: str, sizes: dict[str, Value]) -> list[Part]:
    """Scores and values: prefill over new tokens and the past, decode over the cache."""
    runs = per_layer(points, layer.layers)
    formats = {"dtype": "bf16", "kv_dtype": layer.formats.kv_dtype}
    prefill, decode = points.prefill, points.decode
    batch, new, past = points["batch"], points["new_tokens"], points["past_tokens"]
    long = np.where(np.isnan(points[PROMPT]), new, points[PROMPT]) if PROMPT in points else new
    return [
        write_rows(prefill, "attention", f"{name}_prefill", runs, batch=batch * new / long,
                   seq=long, past=past, **sizes, **formats),
        write_rows(decode, "attention", f"{name}_decode", runs, batch=batch, seq=past, queries=new,
                   **sizes, **formats),
    ]  # fmt: skip


def _sum(points: Points, layer: LayerWork) -> list[Part]:
    """Norms, and the all-reduce that closes a tensor-parallel block (Megatron-LM, section 3).

    Split, every rank keeps its part of the sum and norms only that; `exchange.gathered_again` gives
    the other half of the all-reduce.
    """
    runs, size = per_layer(points, layer.layers), tokens(points) * layer.hidden * BF16_BYTES
    norms = layer.kind.norms * NORM_PASSES
    shared = points.where(points["tp"] > 1)
    if layer.formats.layout.attention_sum == "split":
        return [
            write_rows(points, "norms", "elementwise", runs, bytes=size * norms / points["tp"]),
            write_rows(shared, "reduce_scatter", "reduce_scatter", runs, devices=points["tp"],
                       message_bytes=size, dtype="bf16"),
        ]  # fmt: skip
    return [
        write_rows(points, "norms", "elementwise", runs, bytes=size * norms),
        write_rows(shared, "all_reduce", "all_reduce", runs, devices=points["tp"],
                   message_bytes=size, dtype="bf16"),
    ]  # fmt: skip
