"""Devices joined by link tiers: what a group of ranks has to cross."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.device import Device, Name
from hwprofiles.document import Document
from hwprofiles.tier import LinkTier
from hwprofiles.topology import build_graph

if TYPE_CHECKING:
    import networkx as nx


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
        for tier, nearer in zip(self.tiers, (0, *spans), strict=False):
            if tier.wiring == "rails_apart" and nearer < self.devices_per_node > 1:
                raise ValueError(
                    f"rails of tier {tier.name} join equal places of nodes only, and no nearer "
                    f"tier joins the {self.devices_per_node} devices of a node; the topology is "
                    "disconnected"
                )
        return self

    @property
    def device_count(self) -> int:
        """Devices in the whole cluster."""
        return self.nodes * self.devices_per_node

    def tier_for(self, devices: int) -> LinkTier:
        """The nearest tier that joins this many consecutive devices."""
        return next(tier for tier in self.tiers if tier.spans_devices >= devices)

    def graph(self) -> nx.DiGraph[str]:
        """The topology as a graph: vertices and edges as `hwprofiles.topology` describes them."""
        return build_graph(self.device, self.tiers, self.nodes, self.devices_per_node)
