"""Rows of the feed-forward stage: dense blocks, router, routed experts, shared experts."""

from __future__ import annotations

import polars as pl

from hwprofiles.kernels import dtype as numbers
from planner.moe_model import DenseFfn, MoeFfn
from planner.work.rows import (
    LayerWork,
    gemm,
    per_layer,
    routed_ranks,
    stated,
    tokens,
    write_rows,
)

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
        moe_ep=routed_ranks(layer.formats.layout), busy_ratio=pl.col("busy_ratio"),
        active_experts=pl.col("active_experts"), dtype=layer.formats.weights.routed,
    )  # fmt: skip
    columns = stated(points, "router_columns", moe.experts)
    routing = points.filter(columns > 0)
    router = gemm(routing, "router", runs, (tokens(), columns, layer.hidden), "bf16")
    return [router, routed, *_loads(points, layer, moe), *shared_rows(points, layer, moe)]


def shared_rows(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> list[pl.DataFrame]:
    """Shared experts: cut like attention, cut among more ranks, or whole on ranks of their own."""
    if not moe.shared_width:
        return []
    layout, dtype = layer.formats.layout, layer.formats.weights.shared
    runs, width, matrices = per_layer(layer.layers), moe.shared_width, moe.matrices
    m, part = tokens(), width / pl.col("tp")
    moved: list[pl.DataFrame] = []
    if layout.shared_ranks:
        m, part = tokens() * pl.col("dp") / layout.shared_ranks, pl.lit(float(width))
    elif layout.shared_tp is not None:
        cut = layout.shared_tp
        m, part = tokens() * cut / pl.col("tp"), pl.lit(width / cut)
        if layer.formats.exchange != "group_gather":  # else every rank has every token by now
            size = m * layer.hidden * BF16_BYTES
            more = points.filter(pl.col("tp") < cut)
            moved = [write_rows(more, "shared", kernel, runs, devices=float(cut),
                                message_bytes=size, dtype="bf16")
                     for kernel in ("all_gather", "reduce_scatter")]  # fmt: skip
    up = gemm(points, "shared", runs, (m, part * (matrices - 1), layer.hidden), dtype)
    return [up, gemm(points, "shared", runs, (m, layer.hidden, part), dtype), *moved]


def _loads(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> list[pl.DataFrame]:
    """Weights that computation waits for: the first expert's of a queue, or each token's anew.

    In token order a choice loads its expert unless the choice before it was of the same one.
    """
    order = layer.formats.layout.order
    if order == "grouped":
        return []
    width = moe.width / pl.col("moe_tp")
    number = numbers(layer.formats.weights.routed).weight_bytes
    one = moe.matrices * (moe.latent or layer.hidden) * width * number
    count = pl.lit(1.0)
    if order == "token":
        pairs = tokens() * pl.col("dp") * stated(points, "experts_per_token", moe.top_k)
        here = pairs / pl.col("moe_ep") * pl.col("busy_ratio")
        count = 1 + pl.max_horizontal(here - 1, pl.lit(0.0)) * (1 - pl.col("moe_ep") / moe.experts)
    return [write_rows(points, "experts", "elementwise", per_layer(layer.layers),
                       bytes=one * count)]  # fmt: skip
