"""Rows of layers that keep a state, or compressed history, in the place of ordinary attention."""

from __future__ import annotations

import numpy as np

from planner.moe_model import (
    CompressedAttention,
    LinearAttention,
    MambaMixer,
    Mixer,
    ShortConv,
)
from planner.work.rows import (
    Array,
    LayerWork,
    Part,
    Points,
    Value,
    gemm,
    per_layer,
    tokens,
    write_rows,
)

BF16_BYTES = 2
STATE_BYTES = 4
"""Recurrent states are kept in fp32 (configs: `mamba_ssm_cache_dtype`, `mamba_ssm_dtype`)."""
CHUNK = 64
"""Tokens that a chunked scan multiplies among themselves (arXiv:2412.06464, section 3.3)."""
CONVOLUTION_PASSES = 2
SCAN_PASSES = 4
"""Mamba-1's scan reads x, dt and z and writes y for each inner channel."""


def linear_rows(points: Points, layer: LayerWork, part: LinearAttention) -> list[Part]:
    """Projections, convolution, the delta rule over the state, and the output matrix."""
    tp = points["tp"]
    key, value = part.key_heads * part.key_dim, part.value_heads * part.value_dim
    width = (2 * key + 2 * value + 2 * part.value_heads) / tp
    state = part.value_heads * part.key_dim * part.value_dim / tp
    return [
        _projection(points, layer, width, layer.hidden),
        _convolution(points, layer, (2 * key + value) / tp),
        *_scan(points, layer, state, (value / tp, 2 * part.key_dim + CHUNK)),
        _projection(points, layer, layer.hidden, value / tp),
    ]


def mamba_rows(points: Points, layer: LayerWork, part: MambaMixer) -> list[Part]:
    """Projections, convolution and scan; version 1's scan moves bytes, version 2's multiplies."""
    tp = points["tp"]
    inner, state = part.inner / tp, part.inner * part.state / tp
    if part.version == 1:
        small = part.dt_rank + 2 * part.state
        runs = per_layer(points, layer.layers)
        scan = tokens(points) * inner * STATE_BYTES * SCAN_PASSES
        return [
            _projection(points, layer, 2 * inner, layer.hidden),
            _convolution(points, layer, inner),
            _projection(points, layer, float(small), inner),
            _projection(points, layer, inner, float(part.dt_rank)),
            write_rows(points, "attention", "elementwise", runs, bytes=scan),
            _projection(points, layer, layer.hidden, inner),
        ]
    convolved = (part.inner + 2 * part.groups * part.state) / tp
    width = inner + convolved + part.heads / tp
    return [
        _projection(points, layer, width, layer.hidden),
        _convolution(points, layer, convolved),
        *_scan(points, layer, state, (inner, 2 * part.state + CHUNK)),
        _projection(points, layer, layer.hidden, inner),
    ]


def convolution_rows(points: Points, layer: LayerWork, _: ShortConv) -> list[Part]:
    """LFM2's block: three gates, a short convolution, the output matrix."""
    wide = layer.hidden / points["tp"]
    return [
        _projection(points, layer, 3 * wide, layer.hidden),
        _convolution(points, layer, 3 * wide),
        _projection(points, layer, layer.hidden, wide),
    ]


def compressed_rows(points: Points, layer: LayerWork, part: CompressedAttention) -> list[Part]:
    """DeepSeek-V4: one shared key-value head over a window and over compressed history."""
    tp = points["tp"]
    heads, context = part.heads / tp, points["past_tokens"] + points["new_tokens"]
    seen: Array | float = float(part.window_tokens)
    if part.compress_ratio:
        entries = context / part.compress_ratio
        if part.index_topk is not None:
            entries = np.minimum(entries, float(part.index_topk))
        seen = part.window_tokens + entries
    sizes: dict[str, Value] = {"heads": heads, "kv_heads": 1.0, "head_dim": part.head_dim,
                               "v_head_dim": part.head_dim, "window": seen}  # fmt: skip
    groups = part.output_groups * part.output_rank / tp
    down = part.q_lora_rank + part.head_dim * (3 if part.compress_ratio else 1)
    rows = [
        _projection(points, layer, float(down), layer.hidden),
        _projection(points, layer, heads * part.head_dim, part.q_lora_rank),
        *_core(points, layer, sizes),
        _projection(points, layer, groups, part.heads * part.head_dim / part.output_groups),
        _projection(points, layer, layer.hidden, groups),
    ]
    if part.index_heads is None or part.index_head_dim is None:
        return rows
    width = part.index_heads * part.index_head_dim
    return [*rows, _projection(points, layer, float(width), part.q_lora_rank)]


def mixer_rows(points: Points, layer: LayerWork, part: CompressedAttention | Mixer) -> list[Part]:
    """Rows of whatever stands in ordinary attention's place."""
    if isinstance(part, CompressedAttention):
        return compressed_rows(points, layer, part)
    if isinstance(part, LinearAttention):
        return linear_rows(points, layer, part)
    if isinstance(part, MambaMixer):
        return mamba_rows(points, layer, part)
    return convolution_rows(points, layer, part)


def _projection(
    points: Points, layer: LayerWork, columns: Array | float, inner: Array | float
) -> Part:
    runs, dtype = per_layer(points, layer.layers), layer.formats.weights.attention
    return gemm(points, "attention", runs, (tokens(points), columns, inner), dtype)


def _convolution(points: Points, layer: LayerWork, channels: Array) -> Part:
    size = tokens(points) * channels * BF16_BYTES * CONVOLUTION_PASSES
    return write_rows(
        points, "attention", "elementwise", per_layer(points, layer.layers), bytes=size
    )


def _scan(points: Points, layer: LayerWork, state: Array, product: tuple[Array, int]) -> list[Part]:
    """Decode reads and writes each sequence's state; prefill multiplies chunk by chunk."""
    runs = per_layer(points, layer.layers)
    prefill, decode = points.prefill, points.decode
    moved = points["batch"] * state * STATE_BYTES * 2
    return [
        write_rows(decode, "attention", "elementwise", runs, bytes=moved),
        gemm(prefill, "attention", runs, (tokens(points), product[0], product[1]), "bf16"),
        write_rows(prefill, "attention", "elementwise", runs, bytes=moved),
    ]


def _core(points: Points, layer: LayerWork, sizes: dict[str, Value]) -> list[Part]:
    runs = per_layer(points, layer.layers)
    formats = {"dtype": "bf16", "kv_dtype": layer.formats.kv_dtype}
    prefill, decode = points.prefill, points.decode
    batch, new, past = points["batch"], points["new_tokens"], points["past_tokens"]
    return [
        write_rows(prefill, "attention", "attention_prefill", runs, batch=batch, seq=new,
                   past=past, **sizes, **formats),
        write_rows(decode, "attention", "attention_decode", runs, batch=batch, seq=past,
                   queries=new, **sizes, **formats),
    ]  # fmt: skip
