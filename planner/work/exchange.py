"""Rows that cross the network between router and experts: CDAC and DCCA side by side.

CDAC sends hidden-wide tokens (communicate, descend, ascend, communicate). DCCA narrows them first
and widens them last (descend, communicate, communicate, ascend; BigMac, arXiv:2502.16927, Table 3).
"""

from __future__ import annotations

import polars as pl

from planner.moe_model import MoeFfn
from planner.work.rows import LayerWork, Value, gemm, per_layer, tokens, write_rows

BF16_BYTES = 2


def exchange_rows(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    """Dispatch and combine of a layer, or the sum over ranks that hold the same tokens."""
    moe = layer.kind.ffn
    if not isinstance(moe, MoeFfn):
        return _dense_sum(points, layer)
    width = moe.latent or layer.hidden
    return [
        *_projections(points, layer, moe),
        *_all_to_all(points.filter(pl.col("dp") > 1), layer, moe, width),
        *_rank_sum(points.filter((pl.col("dp") == 1) & (pl.col("tp") > 1)), layer, width),
    ]


def _projections(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> list[pl.DataFrame]:
    """DCCA's shared projections, computed where the token lives; CDAC has none."""
    if moe.latent is None:
        return []
    runs, hidden, own = per_layer(layer.layers), layer.hidden, tokens() / pl.col("tp")
    return [
        gemm(points, "projection", runs, (own, moe.latent, hidden), "bf16"),
        gemm(points, "projection", runs, (own, hidden, moe.latent), "bf16"),
    ]


def _all_to_all(
    points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int
) -> list[pl.DataFrame]:
    """Tokens of each rank go to the ranks that hold their experts, and come back summed."""
    runs, own = per_layer(layer.layers), tokens() / pl.col("tp")
    sizes: dict[str, Value] = {
        "devices": pl.col("moe_ep"), "tokens": own, "hidden": width, "top_k": moe.top_k,
        "experts": moe.experts, "busy_ratio": pl.col("busy_ratio"),
        "nodes": nodes_of(pl.col("moe_ep") * pl.col("moe_tp")),
    }  # fmt: skip
    spread = points.filter(pl.col("moe_ep") > 1)
    cut = points.filter(pl.col("moe_tp") > 1)
    gathered = own * pl.col("moe_tp") * width * BF16_BYTES
    group: dict[str, Value] = {"devices": pl.col("moe_tp"), "message_bytes": gathered,
                               "dtype": "bf16", "nodes": nodes_of(pl.col("moe_tp"))}  # fmt: skip
    return [
        write_rows(spread, "dispatch", "moe_dispatch", runs, **sizes,
                   dtype=layer.formats.dispatch_dtype),
        write_rows(spread, "combine", "moe_combine", runs, **sizes,
                   dtype=layer.formats.combine_dtype),
        write_rows(cut, "dispatch", "all_gather", runs, **group),
        write_rows(cut, "combine", "reduce_scatter", runs, **group),
    ]  # fmt: skip


def nodes_of(ranks: pl.Expr) -> pl.Expr:
    """Nodes that consecutive ranks span; moe_tp ranks are neighbours, moe_ep strides over them."""
    return (ranks / pl.col("node_devices")).ceil()


def _rank_sum(points: pl.DataFrame, layer: LayerWork, width: int) -> list[pl.DataFrame]:
    """Without data parallelism every rank has every token: experts' outputs are summed."""
    size = tokens() * width * BF16_BYTES
    return [write_rows(points, "combine", "all_reduce", per_layer(layer.layers),
                       devices=pl.col("tp"), message_bytes=size, dtype="bf16")]  # fmt: skip


def _dense_sum(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    if layer.kind.ffn is None:
        return []
    shared = points.filter(pl.col("tp") > 1)
    size = tokens() * layer.hidden * BF16_BYTES
    return [write_rows(shared, "all_reduce", "all_reduce", per_layer(layer.layers),
                       devices=pl.col("tp"), message_bytes=size, dtype="bf16")]  # fmt: skip
