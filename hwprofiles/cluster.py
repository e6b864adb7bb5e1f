"""Devices joined by link tiers: what a group of ranks has to cross."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.device import Device, Name
from hwprofiles.document import Document
from hwprofiles.sourced import Sourced
from hwprofiles.units import BytesPerS, Seconds

if TYPE_CHECKING:
    import networkx as nx


class LinkTier(Document):
    """One level of the network: it joins `spans_devices` devices into one domain."""

    name: str
    kind: Literal[
        "die", "nvlink", "hccs", "ub", "pcie", "infiniband", "roce", "ethernet", "upi", "none"
    ]
    spans_devices: Annotated[int, Field(ge=1)]
    bandwidth_bytes_per_s: Sourced[BytesPerS]
    """Per device and direction."""
    latency_s: Sourced[Seconds]


class Cluster(Document):
    """Equal nodes of equal devices; tiers from the nearest to the farthest."""

    schema_version: Literal[1] = 1
    name: Name
    title: str
    device: Device
    nodes: Annotated[int, Field(ge=1, le=100_000)]
    devices_per_node: Annotated[int, Field(ge=1, le=4096)]
    tiers: tuple[LinkTier, ...]

    @model_validator(mode="after")
    def _tiers_grow(self) -> Self:
        spans = [tier.spans_devices for tier in self.tiers]
        if spans != sorted(set(spans)):
            raise ValueError(f"tiers must span more devices each time, not {spans}")
        if self.device_count > 1 and (not spans or spans[-1] < self.device_count):
            raise ValueError(
                f"no link tier joins all {self.device_count} devices (largest spans "
                f"{spans[-1] if spans else 0}); the topology is disconnected"
            )
        return self

    @property
    def device_count(self) -> int:
        """Devices in the whole cluster."""
        return self.nodes * self.devices_per_node

    def tier_for(self, devices: int) -> LinkTier:
        """The nearest tier that joins this many consecutive devices."""
        return next(tier for tier in self.tiers if tier.spans_devices >= devices)

    def graph(self) -> nx.Graph[str]:
        """The topology as a graph: device leaves, one switch vertex for each domain of a tier.

        Edges carry `bandwidth_bytes_per_s` (per direction, all devices below) and `latency_s`.
        """
        import networkx as nx

        graph: nx.Graph[str] = nx.Graph()
        below = [(f"device{i}", 1) for i in range(self.device_count)]
        graph.add_nodes_from(name for name, _ in below)
        for tier in self.tiers:
            above: dict[int, int] = {}
            first = 0
            for name, size in below:
                domain = first // tier.spans_devices
                rate = tier.bandwidth_bytes_per_s.value * size
                latency_s = tier.latency_s.value / 2
                graph.add_edge(name, f"{tier.name}{domain}", bandwidth_bytes_per_s=rate,
                               latency_s=latency_s, tier=tier.name)  # fmt: skip
                above[domain] = above.get(domain, 0) + size
                first += size
            below = [(f"{tier.name}{domain}", size) for domain, size in above.items()]
        return graph
