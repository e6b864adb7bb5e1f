"""Rows of the feed-forward stage: dense blocks, router, routed experts, shared experts."""

from __future__ import annotations

import numpy as np

from hwprofiles.kernels import dtype as numbers
from planner.moe_model import DenseFfn, MoeFfn
from planner.work.rows import (
    Array,
    LayerWork,
    Part,
    Points,
    gemm,
    per_layer,
    routed_ranks,
    stated,
    tokens,
    write_rows,
)

BF16_BYTES = 2


def feed_forward_rows(points: Points, layer: LayerWork) -> list[Part]:
    """The feed-forward half of a layer on the busiest rank, exchange apart."""
    part = layer.kind.ffn
    if isinstance(part, DenseFfn):
        return _two_gemms(points, layer, "dense", (part.width, part.matrices),
                          layer.formats.weights.dense)  # fmt: skip
    if isinstance(part, MoeFfn):
        return _moe(points, layer, part)
    return []


def _two_gemms(
    points: Points, layer: LayerWork, stage: str, shape: tuple[int, int], dtype: str
) -> list[Part]:
    """Gate and up as one product, then down; the width is cut by tp."""
    width, matrices = shape
    runs, part = per_layer(points, layer.layers), width / points["tp"]
    return [
        gemm(points, stage, runs, (tokens(points), part * (matrices - 1), layer.hidden), dtype),
        gemm(points, stage, runs, (tokens(points), layer.hidden, part), dtype),
    ]


def _moe(points: Points, layer: LayerWork, moe: MoeFfn) -> list[Part]:
    runs = per_layer(points, layer.layers)
    routed = write_rows(
        points, "experts", "grouped_gemm", runs,
        tokens=tokens(points) * points["dp"], hidden=moe.latent or layer.hidden, inter=moe.width,
        matrices=moe.matrices, experts=moe.experts + points["redundant_experts"],
        top_k=stated(points, "experts_per_token", moe.top_k), moe_tp=points["moe_tp"],
        moe_ep=routed_ranks(points, layer.formats.layout), busy_ratio=points["busy_ratio"],
        active_experts=points["active_experts"], dtype=layer.formats.weights.routed,
    )  # fmt: skip
    columns = stated(points, "router_columns", moe.experts)
    routing = points.where(columns > 0)
    router = gemm(routing, "router", runs, (tokens(points), columns, layer.hidden), "bf16")
    return [router, routed, *_loads(points, layer, moe), *shared_rows(points, layer, moe)]


def shared_rows(points: Points, layer: LayerWork, moe: MoeFfn) -> list[Part]:
    """Shared experts: cut like attention, cut among more ranks, or whole on ranks of their own."""
    if not moe.shared_width:
        return []
    layout, dtype = layer.formats.layout, layer.formats.weights.shared
    runs, width, matrices = per_layer(points, layer.layers), moe.shared_width, moe.matrices
    m: Array = tokens(points)
    part: Array | float = width / points["tp"]
    moved: list[Part] = []
    if layout.shared_ranks:
        m, part = tokens(points) * points["dp"] / layout.shared_ranks, float(width)
    elif layout.shared_tp is not None:
        cut = layout.shared_tp
        m, part = tokens(points) * cut / points["tp"], width / cut
        if layer.formats.exchange != "group_gather":  # else every rank has every token by now
            size = m * layer.hidden * BF16_BYTES
            more = points.where(points["tp"] < cut)
            moved = [write_rows(more, "shared", kernel, runs, devices=float(cut),
                                message_bytes=size, dtype="bf16")
                     for kernel in ("all_gather", "reduce_scatter")]  # fmt: skip
    up = gemm(points, "shared", runs, (m, part * (matrices - 1), layer.hidden), dtype)
    return [up, gemm(points, "shared", runs, (m, layer.hidden, part), dtype), *moved]


def _loads(points: Points, layer: LayerWork, moe: MoeFfn) -> list[Part]:
    """Weights that computation waits for: the first expert's of a queue, or each token's anew.

    In token order a choice loads its expert unless the choice before it was of the same one.
    """
    order = layer.formats.layout.order
    if order == "grouped":
        return []
    width = moe.width / points["moe_tp"]
    number = numbers(layer.formats.weights.routed).weight_bytes
    one = moe.matrices * (moe.latent or layer.hidden) * width * number
    count: Array | float = 1.0
    if order == "token":
        pairs = tokens(points) * points["dp"] * stated(points, "experts_per_token", moe.top_k)
        here = pairs / points["moe_ep"] * points["busy_ratio"]
        count = 1 + np.maximum(here - 1, 0.0) * (1 - points["moe_ep"] / moe.experts)
    return [write_rows(points, "experts", "elementwise", per_layer(points, layer.layers),
                       bytes=one * count)]  # fmt: skip
