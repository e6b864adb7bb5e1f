"""How long collectives and exchanges occupy the links, in seconds at the stated bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.timing.rows import Array, Rows, Work

POINT_TO_POINT = "deepep_low_latency"
"""The library whose ranks send to each other without a stop inside the node, over NVLink and the
network at once (README of DeepEP, "pure RDMA"); its normal kernels forward inside the node what has
crossed it."""
ALL_AT_ONCE = "gloo"
"""The library that posts the sends to all ranks before it waits (gloo/alltoall.cc), so that links
inside and across nodes are busy at once."""


@dataclass(frozen=True)
class Group:
    """A group of ranks split into the part inside a node and the part across nodes."""

    ranks: Array
    nodes: Array
    near_bytes_per_s: Array
    far_bytes_per_s: Array
    near_latency_s: Array
    far_latency_s: Array

    @property
    def ranks_per_node(self) -> Array:
        """Ranks that share a node."""
        return self.ranks / self.nodes


def group_of(rows: Rows, cluster: Cluster) -> Group:
    """Where each row's group lies on the cluster.

    Raises:
        MoesaicError: `invalid` when the group is larger than the cluster.
    """
    ranks = rows.get("devices")
    if ranks.max(initial=1) > cluster.device_count:
        raise MoesaicError(
            "invalid",
            f"a group of {ranks.max():.0f} ranks on {cluster.name}, which has "
            f"{cluster.device_count} devices",
            "/devices",
        )
    width = cluster.devices_per_node
    nodes = rows.get("nodes", np.nan)
    nodes = np.where(np.isnan(nodes), np.ceil(ranks / width), nodes)
    inside = np.maximum(ranks / nodes, 1).astype(int)
    joined = np.minimum(nodes * width, cluster.device_count).astype(int)
    near_rate, near_wait = _each(inside, cluster, lambda n: cluster.tier_for(n).rate_bytes_per_s(n))
    far_rate, far_wait = _each(
        joined, cluster, lambda n: cluster.tier_for(n).bandwidth_bytes_per_s.value
    )
    return Group(ranks, nodes, near_rate, far_rate, near_wait, far_wait)


def _each(
    sizes: NDArray[np.int64], cluster: Cluster, rate: Callable[[int], float]
) -> tuple[Array, Array]:
    """Bandwidth and latency of the tier that joins so many devices, each size looked up once."""
    if not cluster.tiers:
        return np.full(len(sizes), np.inf), np.zeros(len(sizes))
    if len(sizes) and (sizes == sizes[0]).all():
        known, back = sizes[:1], np.zeros(len(sizes), dtype=np.intp)
    else:
        known, back = np.unique(sizes, return_inverse=True)
    rates = np.array([rate(int(size)) for size in known], dtype=np.float64)
    waits = np.array(
        [cluster.tier_for(int(size)).latency_s.value for size in known], dtype=np.float64
    )
    return rates[back], waits[back]


def _over_links(
    near: Array, far: Array, group: Group, together: NDArray[np.bool_] | None = None
) -> Work:
    """Seconds for `near` bytes inside the node and `far` bytes across, one after the other.

    `together`: both at once, so that the slower one counts.
    """
    inside, across = near / group.near_bytes_per_s, far / group.far_bytes_per_s
    wire = inside + across
    if together is not None:
        wire = np.where(together, np.maximum(inside, across), wire)
    hops = np.log2(np.maximum(group.ranks_per_node, 1)) * group.near_latency_s
    hops = hops + np.log2(np.maximum(group.nodes, 1)) * group.far_latency_s
    return Work(np.zeros_like(wire), np.zeros_like(wire), wire, hops)


def ring(shares: float) -> Callable[[Rows, Cluster], Work]:
    """A ring or tree that moves `shares` times the buffer: 2 for all-reduce, 1 for its halves."""

    def count(rows: Rows, cluster: Cluster) -> Work:
        group, size = group_of(rows, cluster), rows.get("message_bytes")
        near = shares * (1 - 1 / group.ranks_per_node) * size
        far = shares * (1 - 1 / group.nodes) * size / group.ranks_per_node
        return replace(_over_links(near, far, group), rows_count=group.ranks - 1)

    return count


def all_to_all(rows: Rows, cluster: Cluster) -> Work:
    """Every rank sends an equal part of its buffer to every other."""
    group, size = group_of(rows, cluster), rows.get("message_bytes")
    near = size * (group.ranks_per_node - 1) / group.ranks
    far = size * (1 - 1 / group.nodes)
    work = _over_links(near, far, group, _by_library(rows, ALL_AT_ONCE))
    return replace(work, rows_count=group.ranks - 1)


def exchange(rows: Rows, cluster: Cluster) -> Work:
    """Dispatch or combine: a token travels once per node it needs, then once per rank inside."""
    group, k = group_of(rows, cluster), rows.get("top_k")
    token = rows.get("tokens") * rows.get("hidden") * rows.activation() * rows.get("busy_ratio", 1)
    nodes_hit = _reached(rows.get("nodes_reached", np.nan), group.nodes, k)
    ranks_hit = _reached(rows.get("ranks_reached", np.nan), group.ranks, k)
    far = token * nodes_hit * (1 - 1 / group.nodes)
    near = token * ranks_hit * (1 - 1 / group.ranks_per_node)
    work = _over_links(near, far, group, _by_library(rows, POINT_TO_POINT))
    return replace(work, rows_count=rows.get("tokens"))


def _by_library(rows: Rows, name: str) -> NDArray[np.bool_]:
    """True for rows of one exchange library."""
    labels, codes = rows.texts("_library" if "_library" in rows.names else "library")
    found: NDArray[np.bool_] = np.array([label == name for label in labels])[codes]
    return found


def _reached(stated: Array, parts: Array, top_k: Array) -> Array:
    """Distinct parts that a token's experts lie on: as stated, else of top_k equal draws."""
    return np.where(np.isnan(stated), parts * (1 - (1 - 1 / parts) ** top_k), stated)
