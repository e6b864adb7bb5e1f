"""Rows of the feed-forward stage: dense blocks, router, routed experts, shared experts."""

from __future__ import annotations

import polars as pl

from planner.moe_model import DenseFfn, MoeFfn
from planner.work.rows import LayerWork, gemm, per_layer, stated, tokens, write_rows

BF16_BYTES = 2


def feed_forward_rows(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    """The feed-forward half of a layer on the busiest rank, exchange apart."""
    part = layer.kind.ffn
    if isinstance(part, DenseFfn):
        return _two_gemms(points, layer, "dense", (part.width, part.matrices),
                          layer.formats.weights.dense)  # fmt: skip
    if isinstance(part, MoeFfn):
        return _moe(points, layer, part)
    return []


def _two_gemms(
    points: pl.DataFrame, layer: LayerWork, stage: str, shape: tuple[int, int], dtype: str
) -> list[pl.DataFrame]:
    """Gate and up as one product, then down; the width is cut by tp."""
    width, matrices = shape
    runs, part = per_layer(layer.layers), width / pl.col("tp")
    return [
        gemm(points, stage, runs, (tokens(), part * (matrices - 1), layer.hidden), dtype),
        gemm(points, stage, runs, (tokens(), layer.hidden, part), dtype),
    ]


def _moe(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> list[pl.DataFrame]:
    runs = per_layer(layer.layers)
    routed = write_rows(
        points, "experts", "grouped_gemm", runs,
        tokens=tokens() * pl.col("dp"), hidden=moe.latent or layer.hidden, inter=moe.width,
        matrices=moe.matrices, experts=moe.experts + pl.col("redundant_experts"),
        top_k=stated(points, "experts_per_token", moe.top_k), moe_tp=pl.col("moe_tp"),
        moe_ep=pl.col("moe_ep"), busy_ratio=pl.col("busy_ratio"),
        active_experts=pl.col("active_experts"), dtype=layer.formats.weights.routed,
    )  # fmt: skip
    columns = stated(points, "router_columns", moe.experts)
    routing = points.filter(columns > 0)
    router = gemm(routing, "router", runs, (tokens(), columns, layer.hidden), "bf16")
    shared = []
    if moe.shared_width:
        shared = _two_gemms(points, layer, "shared", (moe.shared_width, moe.matrices),
                            layer.formats.weights.shared)  # fmt: skip
    return [router, routed, *shared]
