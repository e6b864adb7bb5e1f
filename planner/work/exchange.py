"""Rows that cross the network between router and experts: CDAC and DCCA side by side.

CDAC sends hidden-wide tokens (communicate, descend, ascend, communicate). DCCA narrows them first
and widens them last (descend, communicate, communicate, ascend; BigMac, arXiv:2502.16927, Table 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwprofiles.errors import unknown_name
from hwprofiles.kernels import dtype
from planner.moe_model import MoeFfn
from planner.work.rows import (
    Array,
    LayerWork,
    Part,
    Points,
    Value,
    gemm,
    per_layer,
    stated,
    tokens,
    write_rows,
)

BF16_BYTES = 2
REACHED = ("ranks_reached", "nodes_reached")
"""Places that a token goes to, where the routing was asked for them."""
Rows = Callable[[Points, LayerWork, MoeFfn, int], list[Part]]


def exchange_rows(points: Points, layer: LayerWork) -> list[Part]:
    """Dispatch and combine of a layer, or the sum over ranks that hold the same tokens."""
    moe = layer.kind.ffn
    if not isinstance(moe, MoeFfn):
        return _dense_sum(points, layer)
    width = moe.latent or layer.hidden
    joined = layer.formats.layout.apart | (points["dp"] > 1)
    spread, alone = points.where(joined), points.where(~joined & (points["tp"] > 1))
    return [
        *_projections(points, layer, moe),
        *_exchanged(spread, layer, moe, width),
        *_rank_sum(alone, layer, width),
        *gathered_again(spread, layer),
    ]


def gathered_again(points: Points, layer: LayerWork) -> list[Part]:
    """The second half of a split sum: normed parts go to all ranks that cut attention."""
    if layer.formats.layout.attention_sum != "split":
        return []
    size = tokens(points) * layer.hidden * BF16_BYTES
    cut = points.where(points["tp"] > 1)
    return [write_rows(cut, "all_gather", "all_gather", per_layer(points, layer.layers),
                       devices=points["tp"], message_bytes=size, dtype="bf16")]  # fmt: skip


def _projections(points: Points, layer: LayerWork, moe: MoeFfn) -> list[Part]:
    """DCCA's shared projections, computed where the token lives; CDAC has none."""
    if moe.latent is None:
        return []
    runs, hidden, own = per_layer(points, layer.layers), layer.hidden, tokens(points) / points["tp"]
    return [
        gemm(points, "projection", runs, (own, moe.latent, hidden), "bf16"),
        gemm(points, "projection", runs, (own, hidden, moe.latent), "bf16"),
    ]


def _exchanged(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
    """Tokens of each rank go to the ranks that hold their experts, and come back summed."""
    if layer.formats.exchange not in EXCHANGES:
        raise unknown_name("exchange", layer.formats.exchange, EXCHANGES, "/choices/exchange")
    runs, own = per_layer(points, layer.layers), _own(points)
    if layer.formats.exchange == "group_gather":
        return _group_gathered(points, layer, moe, width)
    spread = points.where(layer.formats.layout.apart | (points["moe_ep"] > 1))
    cut = points.where(points["moe_tp"] > 1)
    gathered = own * points["moe_tp"] * width * BF16_BYTES
    group: dict[str, Value] = {
        "devices": points["moe_tp"], "nodes": nodes_of(points, points["moe_tp"]),
        "message_bytes": gathered, "dtype": "bf16",
    }  # fmt: skip
    return [
        *EXCHANGES[layer.formats.exchange](spread, layer, moe, width),
        write_rows(cut, "dispatch", "all_gather", runs, **group),
        write_rows(cut, "combine", "reduce_scatter", runs, **group),
    ]


def _library(library: str | None) -> Rows:
    """Dispatch and combine kernels of a library; none: the engine's own."""

    def rows(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
        sizes: dict[str, Value] = {
            "devices": _partners(points, layer), "tokens": _sent(points, layer), "hidden": width,
            "top_k": _goals(points, layer, moe), "experts": moe.experts,
            "busy_ratio": points["busy_ratio"], "nodes": expert_nodes(points),
        }  # fmt: skip
        if library is not None:
            sizes["library"] = library
        sizes |= {name: points[name] for name in REACHED if name in points}
        return [
            write_rows(
                points, stage, f"moe_{stage}", per_layer(points, layer.layers), **sizes, dtype=name
            )
            for stage, name in _directions(layer)
        ]

    return rows


def _directions(layer: LayerWork) -> tuple[tuple[str, str], tuple[str, str]]:
    """Stage and format of both ways."""
    return ("dispatch", layer.formats.dispatch_dtype), ("combine", layer.formats.combine_dtype)


def _flat(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
    """One all-to-all over all expert ranks, a copy for each expert of a token."""
    found = []
    for stage, name in _directions(layer):
        group: dict[str, Array | float] = {
            "devices": _partners(points, layer),
            "nodes": expert_nodes(points),
        }
        size = _pair_bytes(points, layer, moe, width * dtype(name).activation_bytes)
        found += _pairs_sent(points, layer, stage, size, group)
    return found


def _two_stages(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
    """First among the ranks of a node, then among nodes, larger messages (Tutel's 2DH)."""
    inside = np.ceil(points["moe_ep"] / expert_nodes(points))
    found = []
    for stage, name in _directions(layer):
        size = _pair_bytes(points, layer, moe, width * dtype(name).activation_bytes)
        near: dict[str, Array | float] = {"devices": inside, "nodes": 1.0}
        far: dict[str, Array | float] = {
            "devices": expert_nodes(points),
            "nodes": expert_nodes(points),
        }
        found += _pairs_sent(points.where(inside > 1), layer, stage, size, near)
        found += _pairs_sent(points.where(expert_nodes(points) > 1), layer, stage, size, far)
    return found


def _pair_bytes(points: Points, layer: LayerWork, moe: MoeFfn, token_bytes: float) -> Array:
    """Bytes of one rank's token-expert pairs, at the pace of the busiest rank."""
    pairs = _sent(points, layer) * _goals(points, layer, moe)
    return pairs * token_bytes * points["busy_ratio"]


def _own(points: Points) -> Array:
    """Tokens that one rank of attention sends."""
    return tokens(points) / points["tp"]


def _sent(points: Points, layer: LayerWork) -> Array:
    """Tokens of the slower end: what a rank sends, or what fewer expert ranks take each."""
    if not layer.formats.layout.apart:
        return _own(points)
    attention, experts = points["tp"] * points["dp"], points["moe_ep"] * points["moe_tp"]
    return _own(points) * np.maximum(attention / experts, 1.0)


def _partners(points: Points, layer: LayerWork) -> Array:
    """Ranks among which tokens travel."""
    ranks = points["moe_ep"]
    return ranks + points["tp"] * points["dp"] if layer.formats.layout.apart else ranks


def _goals(points: Points, layer: LayerWork, moe: MoeFfn) -> Array:
    """Experts that a token is sent to; a shared expert on ranks of its own is one more."""
    away = float(layer.formats.layout.shared_ranks > 0 and moe.shared_width > 0)
    return stated(points, "experts_per_token", moe.top_k) + away


def _pairs_sent(
    points: Points, layer: LayerWork, stage: str, size: Array, group: dict[str, Array | float]
) -> list[Part]:
    return [write_rows(points, stage, "all_to_all", per_layer(points, layer.layers), **group,
                       message_bytes=size, dtype="bf16")]  # fmt: skip


def _gathered(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
    """Every rank takes every token, and results are summed: top_k does not matter."""
    del moe
    found = []
    for kernel, (stage, name) in zip(
        ("all_gather", "reduce_scatter"), _directions(layer), strict=True
    ):
        number = width * dtype(name).activation_bytes
        size = tokens(points) / points["tp"] * points["moe_ep"] * number
        found.append(
            write_rows(points, stage, kernel, per_layer(points, layer.layers),
                       devices=points["moe_ep"], nodes=expert_nodes(points), message_bytes=size,
                       dtype="bf16")
        )  # fmt: skip
    return found


def _group_gathered(points: Points, layer: LayerWork, moe: MoeFfn, width: int) -> list[Part]:
    """Every rank of the worker takes every token, moe_tp ranks too (H2P, arXiv:2505.21411)."""
    del moe
    ranks, found = points["tp"] * points["dp"], []
    for kernel, (stage, name) in zip(
        ("all_gather", "reduce_scatter"), _directions(layer), strict=True
    ):
        size = tokens(points) * points["dp"] * width * dtype(name).activation_bytes
        found.append(
            write_rows(points, stage, kernel, per_layer(points, layer.layers), devices=ranks,
                       nodes=nodes_of(points, ranks), message_bytes=size, dtype="bf16")
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


def expert_nodes(points: Points) -> Array:
    """Nodes over which the expert-parallel ranks spread."""
    return nodes_of(points, points["moe_ep"] * points["moe_tp"])


def nodes_of(points: Points, ranks: Array) -> Array:
    """Nodes that consecutive ranks span; moe_tp ranks are neighbours, moe_ep strides over them."""
    return np.asarray(np.ceil(ranks / points["node_devices"]))


def _rank_sum(points: Points, layer: LayerWork, width: int) -> list[Part]:
    """Without data parallelism every rank has every token: experts' outputs are summed."""
    size = tokens(points) * width * BF16_BYTES
    if layer.formats.layout.attention_sum == "split":
        own = write_rows(points, "combine", "reduce_scatter", per_layer(points, layer.layers),
                         devices=points["tp"], message_bytes=size, dtype="bf16")  # fmt: skip
        return [*gathered_again(points, layer), own, *gathered_again(points, layer)]
    return [write_rows(points, "combine", "all_reduce", per_layer(points, layer.layers),
                       devices=points["tp"], message_bytes=size, dtype="bf16")]  # fmt: skip


def _dense_sum(points: Points, layer: LayerWork) -> list[Part]:
    if layer.kind.ffn is None:
        return []
    shared = points.where(points["tp"] > 1)
    size, runs = tokens(shared) * layer.hidden * BF16_BYTES, per_layer(shared, layer.layers)
    if layer.formats.layout.attention_sum == "split":
        own = write_rows(shared, "reduce_scatter", "reduce_scatter", runs, devices=shared["tp"],
                         message_bytes=size, dtype="bf16")  # fmt: skip
        return [*gathered_again(shared, layer), own, *gathered_again(shared, layer)]
    return [write_rows(shared, "all_reduce", "all_reduce", runs, devices=shared["tp"],
                       message_bytes=size, dtype="bf16")]  # fmt: skip
