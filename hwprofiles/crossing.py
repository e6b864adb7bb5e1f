"""How long bytes take to cross the links of a group: the bottleneck cut and its latency."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """What one rank sends in an exchange, one value a candidate; no seconds.

    `near_bytes` stay in the node, `far_bytes` leave it. `messages` are sent one after the other,
    `rounds` wait for one another. Where `pipelined`, both cuts are busy at once.
    """

    near_bytes: Array
    far_bytes: Array
    messages: Array
    rounds: int = 1
    pipelined: bool = False


@dataclass(frozen=True)
class Links:
    """The two cuts a rank sends through, per device and direction, and what each start costs."""

    near_bytes_per_s: Array
    far_bytes_per_s: Array
    near_latency_s: Array
    far_latency_s: Array
    fixed_s: float = 0.0
    """Start of the kernel itself."""
    per_message_s: float = 0.0

    def at(self, near_share: float, far_share: float) -> Links:
        """The same links of which an exchange achieves only a share."""
        return replace(
            self, near_bytes_per_s=self.near_bytes_per_s * near_share,
            far_bytes_per_s=self.far_bytes_per_s * far_share,
        )  # fmt: skip


def links_of(cluster: Cluster, ranks: Array, nodes: Array) -> Links:
    """Links that groups of `ranks` on `nodes` nodes send through.

    Raises:
        MoesaicError: `invalid` when a group is larger than the cluster or nodes do not divide it.
    """
    count, apart = np.asarray(ranks, dtype=int), np.asarray(nodes, dtype=int)
    uneven = (apart < 1) | (count < 1) | (count % np.maximum(apart, 1) > 0)
    if uneven.any():
        at = int(np.argmax(uneven))
        raise MoesaicError("invalid", f"{apart[at]} nodes do not divide {count[at]} ranks")
    wanted = np.minimum(apart * cluster.devices_per_node, np.maximum(cluster.device_count, 1))
    if count.max(initial=1) > cluster.device_count or apart.max(initial=1) > cluster.nodes:
        raise MoesaicError(
            "invalid",
            f"a group of {count.max()} ranks on {apart.max()} nodes; {cluster.name} has "
            f"{cluster.device_count} devices on {cluster.nodes} nodes",
        )
    near = _tiers(cluster, count // apart)
    far = _tiers(cluster, wanted)
    return Links(near[0], far[0], near[1], far[1])


def _tiers(cluster: Cluster, devices: NDArray[np.int64]) -> tuple[Array, Array]:
    """Bandwidth and latency of the tier that joins so many devices."""
    sizes, where = np.unique(devices, return_inverse=True)
    if not cluster.tiers:
        return np.full(len(where), np.inf), np.zeros(len(where))
    tiers = [cluster.tier_for(int(size)) for size in sizes]
    pairs = zip(tiers, sizes, strict=True)
    rate = np.array([tier.rate_bytes_per_s(int(size)) for tier, size in pairs])
    wait = np.array([tier.latency_s.value for tier in tiers])
    return rate[where.reshape(-1)], wait[where.reshape(-1)]


def crossing_s(crossing: Crossing, links: Links) -> Array:
    """Seconds of an exchange: the slower cut where both run at once, else one after the other.

    Alpha-beta model (Hockney 1994) over two cuts: each used cut adds its latency once a round.
    """
    near = crossing.near_bytes / links.near_bytes_per_s
    far = crossing.far_bytes / links.far_bytes_per_s
    wire = np.maximum(near, far) if crossing.pipelined else near + far
    waits = np.where(near > 0, links.near_latency_s, 0) + np.where(far > 0, links.far_latency_s, 0)
    starts = crossing.messages * links.per_message_s + crossing.rounds * waits
    used = (near > 0) | (far > 0)
    return np.where(used, links.fixed_s + starts + wire, 0.0)
