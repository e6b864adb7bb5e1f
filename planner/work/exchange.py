"""Rows that cross the network between router and experts: CDAC and DCCA side by side.

CDAC sends hidden-wide tokens (communicate, descend, ascend, communicate). DCCA narrows them first
and widens them last (descend, communicate, communicate, ascend; BigMac, arXiv:2502.16927, Table 3).
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from hwprofiles.errors import unknown_name
from hwprofiles.kernels import dtype
from planner.moe_model import MoeFfn
from planner.work.rows import LayerWork, Value, gemm, per_layer, stated, tokens, write_rows

BF16_BYTES = 2
REACHED = ("ranks_reached", "nodes_reached")
"""Places that a token goes to, where the routing was asked for them."""
Rows = Callable[[pl.DataFrame, LayerWork, MoeFfn, int], list[pl.DataFrame]]


def exchange_rows(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    """Dispatch and combine of a layer, or the sum over ranks that hold the same tokens."""
    moe = layer.kind.ffn
    if not isinstance(moe, MoeFfn):
        return _dense_sum(points, layer)
    width = moe.latent or layer.hidden
    return [
        *_projections(points, layer, moe),
        *_exchanged(points.filter(_apart(layer) | (pl.col("dp") > 1)), layer, moe, width),
        *_rank_sum(points.filter(~_apart(layer) & (pl.col("dp") == 1) & (pl.col("tp") > 1)), layer,
                   width),
        *gathered_again(points.filter(_apart(layer) | (pl.col("dp") > 1)), layer),
    ]  # fmt: skip


def _apart(layer: LayerWork) -> pl.Expr:
    """Experts on devices of their own are always across a link."""
    return pl.lit(layer.formats.layout.apart)


def gathered_again(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    """The second half of a split sum: normed parts go to all ranks that cut attention."""
    if layer.formats.layout.attention_sum != "split":
        return []
    size = tokens() * layer.hidden * BF16_BYTES
    cut = points.filter(pl.col("tp") > 1)
    return [write_rows(cut, "all_gather", "all_gather", per_layer(layer.layers),
                       devices=pl.col("tp"), message_bytes=size, dtype="bf16")]  # fmt: skip


def _projections(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> list[pl.DataFrame]:
    """DCCA's shared projections, computed where the token lives; CDAC has none."""
    if moe.latent is None:
        return []
    runs, hidden, own = per_layer(layer.layers), layer.hidden, tokens() / pl.col("tp")
    return [
        gemm(points, "projection", runs, (own, moe.latent, hidden), "bf16"),
        gemm(points, "projection", runs, (own, hidden, moe.latent), "bf16"),
    ]


def _exchanged(
    points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int
) -> list[pl.DataFrame]:
    """Tokens of each rank go to the ranks that hold their experts, and come back summed."""
    if layer.formats.exchange not in EXCHANGES:
        raise unknown_name("exchange", layer.formats.exchange, EXCHANGES, "/choices/exchange")
    runs, own = per_layer(layer.layers), _own()
    if layer.formats.exchange == "group_gather":
        return _group_gathered(points, layer, moe, width)
    spread = points.filter(_apart(layer) | (pl.col("moe_ep") > 1))
    cut = points.filter(pl.col("moe_tp") > 1)
    gathered = own * pl.col("moe_tp") * width * BF16_BYTES
    group: dict[str, Value] = {"devices": pl.col("moe_tp"), "message_bytes": gathered,
                               "dtype": "bf16", "nodes": nodes_of(pl.col("moe_tp"))}  # fmt: skip
    return [
        *EXCHANGES[layer.formats.exchange](spread, layer, moe, width),
        write_rows(cut, "dispatch", "all_gather", runs, **group),
        write_rows(cut, "combine", "reduce_scatter", runs, **group),
    ]


def _library(library: str | None) -> Rows:
    """Dispatch and combine kernels of a library; none: the engine's own."""

    def rows(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int) -> list[pl.DataFrame]:
        sizes: dict[str, Value] = {
            "devices": _partners(layer), "tokens": _sent(layer), "hidden": width,
            "top_k": _goals(points, layer, moe), "experts": moe.experts,
            "busy_ratio": pl.col("busy_ratio"), "nodes": expert_nodes(),
        }  # fmt: skip
        if library is not None:
            sizes["library"] = library
        sizes |= {name: pl.col(name) for name in REACHED if name in points.columns}
        return [
            write_rows(points, stage, f"moe_{stage}", per_layer(layer.layers), **sizes, dtype=name)
            for stage, name in _directions(layer)
        ]

    return rows


def _directions(layer: LayerWork) -> tuple[tuple[str, str], tuple[str, str]]:
    """Stage and format of both ways."""
    return ("dispatch", layer.formats.dispatch_dtype), ("combine", layer.formats.combine_dtype)


def _flat(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int) -> list[pl.DataFrame]:
    """One all-to-all over all expert ranks, a copy for each expert of a token."""
    found = []
    for stage, name in _directions(layer):
        group = {"devices": _partners(layer), "nodes": expert_nodes()}
        size = _pair_bytes(points, layer, moe, width * dtype(name).activation_bytes)
        found += _pairs_sent(points, layer, stage, size, group)
    return found


def _two_stages(
    points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int
) -> list[pl.DataFrame]:
    """First among the ranks of a node, then among nodes, larger messages (Tutel's 2DH)."""
    inside = (pl.col("moe_ep") / expert_nodes()).ceil()
    found = []
    for stage, name in _directions(layer):
        size = _pair_bytes(points, layer, moe, width * dtype(name).activation_bytes)
        near = {"devices": inside, "nodes": pl.lit(1.0)}
        far = {"devices": expert_nodes(), "nodes": expert_nodes()}
        found += _pairs_sent(points.filter(inside > 1), layer, stage, size, near)
        found += _pairs_sent(points.filter(expert_nodes() > 1), layer, stage, size, far)
    return found


def _pair_bytes(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, token_bytes: float) -> pl.Expr:
    """Bytes of one rank's token-expert pairs, at the pace of the busiest rank."""
    pairs = _sent(layer) * _goals(points, layer, moe)
    return pairs * token_bytes * pl.col("busy_ratio")


def _own() -> pl.Expr:
    """Tokens that one rank of attention sends."""
    return tokens() / pl.col("tp")


def _sent(layer: LayerWork) -> pl.Expr:
    """Tokens of the slower end: what a rank sends, or what fewer expert ranks take each."""
    if not layer.formats.layout.apart:
        return _own()
    attention, experts = pl.col("tp") * pl.col("dp"), pl.col("moe_ep") * pl.col("moe_tp")
    return _own() * pl.max_horizontal(attention / experts, pl.lit(1.0))


def _partners(layer: LayerWork) -> pl.Expr:
    """Ranks among which tokens travel."""
    ranks = pl.col("moe_ep")
    return ranks + pl.col("tp") * pl.col("dp") if layer.formats.layout.apart else ranks


def _goals(points: pl.DataFrame, layer: LayerWork, moe: MoeFfn) -> pl.Expr:
    """Experts that a token is sent to; a shared expert on ranks of its own is one more."""
    away = float(layer.formats.layout.shared_ranks > 0 and moe.shared_width > 0)
    return stated(points, "experts_per_token", moe.top_k) + away


def _pairs_sent(
    points: pl.DataFrame, layer: LayerWork, stage: str, size: pl.Expr, group: dict[str, pl.Expr]
) -> list[pl.DataFrame]:
    return [write_rows(points, stage, "all_to_all", per_layer(layer.layers), **group,
                       message_bytes=size, dtype="bf16")]  # fmt: skip


def _gathered(
    points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int
) -> list[pl.DataFrame]:
    """Every rank takes every token, and results are summed: top_k does not matter."""
    del moe
    found = []
    for kernel, (stage, name) in zip(
        ("all_gather", "reduce_scatter"), _directions(layer), strict=True
    ):
        number = width * dtype(name).activation_bytes
        size = tokens() / pl.col("tp") * pl.col("moe_ep") * number
        found.append(
            write_rows(points, stage, kernel, per_layer(layer.layers), devices=pl.col("moe_ep"),
                       nodes=expert_nodes(), message_bytes=size, dtype="bf16")
        )  # fmt: skip
    return found


def _group_gathered(
    points: pl.DataFrame, layer: LayerWork, moe: MoeFfn, width: int
) -> list[pl.DataFrame]:
    """Every rank of the worker takes every token, moe_tp ranks too (H2P, arXiv:2505.21411)."""
    del moe
    ranks, found = pl.col("tp") * pl.col("dp"), []
    for kernel, (stage, name) in zip(
        ("all_gather", "reduce_scatter"), _directions(layer), strict=True
    ):
        size = tokens() * pl.col("dp") * width * dtype(name).activation_bytes
        found.append(
            write_rows(points, stage, kernel, per_layer(layer.layers), devices=ranks,
                       nodes=nodes_of(ranks), message_bytes=size, dtype="bf16")
        )  # fmt: skip
    return found


EXCHANGES: dict[str, Rows] = {
    "library": _library(None),
    "flat_pairwise": _flat,
    "hierarchical": _two_stages,
    "node_deduplicated": _library("deepep_normal"),
    "low_latency": _library("deepep_low_latency"),
    "gather_scatter": _gathered,
    "group_gather": _group_gathered,
    "fused": _flat,
}
"""Ways to reach the experts by name; their volumes are in `planner/work/volumes.py`."""


def expert_nodes() -> pl.Expr:
    """Nodes over which the expert-parallel ranks spread."""
    return nodes_of(pl.col("moe_ep") * pl.col("moe_tp"))


def nodes_of(ranks: pl.Expr) -> pl.Expr:
    """Nodes that consecutive ranks span; moe_tp ranks are neighbours, moe_ep strides over them."""
    return (ranks / pl.col("node_devices")).ceil()


def _rank_sum(points: pl.DataFrame, layer: LayerWork, width: int) -> list[pl.DataFrame]:
    """Without data parallelism every rank has every token: experts' outputs are summed."""
    size = tokens() * width * BF16_BYTES
    if layer.formats.layout.attention_sum == "split":
        own = write_rows(points, "combine", "reduce_scatter", per_layer(layer.layers),
                         devices=pl.col("tp"), message_bytes=size, dtype="bf16")  # fmt: skip
        return [*gathered_again(points, layer), own, *gathered_again(points, layer)]
    return [write_rows(points, "combine", "all_reduce", per_layer(layer.layers),
                       devices=pl.col("tp"), message_bytes=size, dtype="bf16")]  # fmt: skip


def _dense_sum(points: pl.DataFrame, layer: LayerWork) -> list[pl.DataFrame]:
    if layer.kind.ffn is None:
        return []
    shared = points.filter(pl.col("tp") > 1)
    size = tokens() * layer.hidden * BF16_BYTES
    if layer.formats.layout.attention_sum == "split":
        own = write_rows(shared, "reduce_scatter", "reduce_scatter", per_layer(layer.layers),
                         devices=pl.col("tp"), message_bytes=size, dtype="bf16")  # fmt: skip
        return [*gathered_again(shared, layer), own, *gathered_again(shared, layer)]
    return [write_rows(shared, "all_reduce", "all_reduce", per_layer(layer.layers),
                       devices=pl.col("tp"), message_bytes=size, dtype="bf16")]  # fmt: skip
