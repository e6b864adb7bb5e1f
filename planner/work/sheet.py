"""The work sheet: every kernel that every forward pass runs, stage by stage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from hwprofiles.kernels import DTYPES
from planner.moe_model import MoeModel
from planner.work.attention import attention_rows
from planner.work.exchange import exchange_rows
from planner.work.experts import feed_forward_rows
from planner.work.rows import Formats, LayerWork, Part, Points, gemm, sheet_of, tokens, write_rows

BF16_BYTES = 2
GGML = ("q4_0", "q8_0", "q4_k_m")
"""Formats of files that hold every matrix in it, the embedding too (llama.cpp, llama-quantize)."""
STAGES: tuple[Callable[[Points, LayerWork], list[Part]], ...] = (
    attention_rows,
    exchange_rows,
    feed_forward_rows,
)
"""What a layer does, in order; a new stage is one function here."""


def formats_of(
    model: MoeModel, precision: str | None, kv_dtype: str, exchange: str = "library"
) -> Formats:
    """Formats of a question: the checkpoint's own, or one precision for all matrix products.

    Dispatch travels in 8 bits where the experts compute in 8 or fewer, else in 16 (DeepEP README).
    """
    weights = model.weights
    if precision is not None:
        kept = weights.model_dump() | dict.fromkeys(("routed", "shared", "dense"), precision)
        if DTYPES[precision].compute in ("fp8", "int8", "bf16"):
            kept["attention"] = precision
        if precision in GGML:
            kept["embedding"] = precision
        weights = weights.model_validate(kept)
    compute = DTYPES[weights.routed].compute
    dispatch = {"fp8": "fp8_block", "fp4": "fp8_block", "int8": "int8"}.get(compute, "bf16")
    return Formats(weights, kv_dtype, dispatch, exchange=exchange)


def build_sheet(points: pl.DataFrame, model: MoeModel, formats: Formats) -> pl.DataFrame:
    """Expand forward passes into kernel rows.

    Args:
        points: one pass a row, columns `POINT`, `busy_ratio` and `active_experts`.
        model: the model every point runs.
        formats: numeric formats.

    Returns:
        Columns `SHEET`, many rows a point; `repeat_count` counts runs in one pass.
    """
    return sheet_of(sheet_parts(Points.of(points), model, formats))


def sheet_parts(points: Points, model: MoeModel, formats: Formats) -> list[Part]:
    """The kernels that passes run, layer by layer; arguments as those of `build_sheet`."""
    parts = []
    for name, layers in model.kind_counts().items():
        layer = LayerWork(model.kinds[name], layers, model.hidden, formats)
        for stage in STAGES:
            parts += stage(points, layer)
    return parts + _ends(points, model, formats)


def _ends(points: Points, model: MoeModel, formats: Formats) -> list[Part]:
    """Embedding look-up, the head on the tokens that need logits, hops between pipeline stages."""
    size = tokens(points) * model.hidden * BF16_BYTES
    logits = np.where(points.decoding, tokens(points), points["batch"])
    staged = points.where(points["pp"] > 1)
    vocab = model.vocab / points["tp"]
    apart = np.where(points["tp"] * points["dp"] >= points["node_devices"], 2.0, 1.0)
    return [
        write_rows(points, "head", "elementwise", 1, bytes=2 * size),
        gemm(points, "head", 1, (logits, vocab, model.hidden), formats.weights.embedding),
        write_rows(staged, "pipeline", "send_recv", points["pp"] - 1, devices=2, nodes=apart,
                   message_bytes=size / points["tp"], dtype="bf16"),
    ]  # fmt: skip
