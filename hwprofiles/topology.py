"""The network as a graph: devices, packages, nodes, switches and rails, joined by links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwprofiles.device import Device
from hwprofiles.tier import LinkTier

if TYPE_CHECKING:
    import networkx as nx

HOST = "host"
"""Tier of the links between devices and their node's memory; collectives do not use them."""


@dataclass(frozen=True)
class Below:
    """A vertex that a tier joins, and the consecutive devices under it."""

    vertex: str
    first: int
    size: int


def build_graph(
    device: Device, tiers: Sequence[LinkTier], nodes: int, devices_per_node: int
) -> nx.DiGraph[str]:
    """Build the topology of equal nodes; each link is two edges, one a direction.

    Vertices carry `kind` (device, package, node, switch, rail, spine); devices also `unit`, `node`
    and `place`; all but devices the range `devices` below them. Edges carry `tier`, `kind`,
    `bandwidth_bytes_per_s` of their direction (shared by all devices below: contention) and
    `latency_s`. A tier of another kind than the nearer one has ports of its own on every device;
    one of the same kind, or behind PCIe, continues from the nearer switches.

    Args:
        device: what every leaf is.
        tiers: from the nearest to the farthest.
        nodes: equal nodes.
        devices_per_node: devices of each.
    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    total = nodes * devices_per_node
    for i in range(total):
        graph.add_node(f"device{i}", kind="device", unit=device.unit, node=i // devices_per_node,
                       place=i % devices_per_node)  # fmt: skip
    _add_nodes(graph, device, nodes, devices_per_node)
    leaves = [[Below(f"device{i}", i, 1) for i in range(total)]]
    below, nearer = leaves, None
    for tier in tiers:
        rises = nearer is not None and (nearer.kind in (tier.kind, "pcie")) and bool(below)
        started = below if rises else leaves
        wait_s = tier.latency_s.value
        if rises and nearer is not None:
            wait_s = max(wait_s - nearer.latency_s.value, 0.0)
        below = _joined(graph, tier, started, (wait_s, devices_per_node))
        nearer = tier
    return graph


def _add_nodes(graph: nx.DiGraph[str], device: Device, nodes: int, width: int) -> None:
    link = device.host_link_bytes_per_s
    rate = 0.0 if link is None else link.value  # no source states one: nothing crosses it
    for node in range(nodes):
        name = f"node{node}"
        graph.add_node(name, kind="node", devices=(node * width, (node + 1) * width))
        for i in range(node * width, (node + 1) * width):
            _link(graph, (f"device{i}", name), rate, 0.0, (HOST, "pcie"))


def _joined(
    graph: nx.DiGraph[str], tier: LinkTier, below: list[list[Below]], told: tuple[float, int]
) -> list[list[Below]]:
    """Join what is below into the domains of a tier; what the next tier may continue from."""
    wait_s, width = told
    if tier.wiring == "mesh":
        _mesh(graph, tier, below[0], wait_s)
        return []
    if tier.wiring in ("rails", "rails_apart"):
        return _rails(graph, tier, below[0], (wait_s, width))
    planes = max(tier.planes, len(below))
    return [_switches(graph, tier, below[min(p, len(below) - 1)], (wait_s, p, planes))
            for p in range(planes)]  # fmt: skip


def _switches(
    graph: nx.DiGraph[str], tier: LinkTier, below: list[Below], told: tuple[float, int, int]
) -> list[Below]:
    """One switch a domain (of one plane); two dies of one package meet in the package."""
    wait_s, plane, planes = told
    stem, kind = ("package", "package") if tier.kind == "die" else (tier.name, "switch")
    end = f"-plane{plane}" if planes > 1 else ""
    found: dict[int, Below] = {}
    for item in below:
        domain = item.first // tier.spans_devices
        name = f"{stem}{domain}{end}"
        held = found.get(domain, Below(name, item.first, 0))
        found[domain] = Below(name, held.first, held.size + item.size)
        rate = tier.bandwidth_bytes_per_s.value * item.size / planes
        _link(graph, (item.vertex, name), rate, wait_s / 2, (tier.name, tier.kind))
    for item in found.values():
        graph.add_node(item.vertex, kind=kind, devices=(item.first, item.first + item.size))
    return list(found.values())


def _mesh(graph: nx.DiGraph[str], tier: LinkTier, below: list[Below], wait_s: float) -> None:
    """A link between any two of a domain, each an equal part of a device's bandwidth."""
    rate = tier.bandwidth_bytes_per_s.value / max(tier.spans_devices - 1, 1)
    for i, one in enumerate(below):
        for other in below[i + 1 :]:
            if other.first // tier.spans_devices == one.first // tier.spans_devices:
                _link(graph, (one.vertex, other.vertex), rate, wait_s, (tier.name, tier.kind))


def _rails(
    graph: nx.DiGraph[str], tier: LinkTier, below: list[Below], told: tuple[float, int]
) -> list[list[Below]]:
    """Equal places of a domain's nodes on one switch; a spine joins them unless they stay apart."""
    wait_s, width = told
    rate = tier.bandwidth_bytes_per_s.value
    spines: dict[int, Below] = {}
    for item in below:
        domain, place = item.first // tier.spans_devices, item.first % width
        rail = f"{tier.name}{domain}-rail{place}"
        graph.add_node(rail, kind="rail", domain=domain, place=place)
        _link(graph, (item.vertex, rail), rate * item.size, wait_s / 2, (tier.name, tier.kind))
        if tier.wiring == "rails":
            spine = f"{tier.name}{domain}-spine"
            held = spines.get(domain, Below(spine, item.first, 0))
            spines[domain] = Below(spine, held.first, held.size + item.size)
            before = graph.edges[rail, spine]["bandwidth_bytes_per_s"] if graph.has_edge(
                rail, spine) else 0.0  # fmt: skip
            _link(graph, (rail, spine), before + rate * item.size, 0.0, (tier.name, tier.kind))
    for item in spines.values():
        graph.add_node(item.vertex, kind="spine", devices=(item.first, item.first + item.size))
    return [list(spines.values())] if spines else []


def _link(
    graph: nx.DiGraph[str], ends: tuple[str, str], rate: float, wait_s: float,
    of: tuple[str, str],
) -> None:  # fmt: skip
    """Both directions of a link."""
    for one, other in (ends, ends[::-1]):
        graph.add_edge(one, other, bandwidth_bytes_per_s=rate, latency_s=wait_s, tier=of[0],
                       kind=of[1])  # fmt: skip


def kinds_of(graph: nx.DiGraph[str]) -> dict[str, str]:
    """Kind of every vertex by its name."""
    return {name: str(told["kind"]) for name, told in graph.nodes(data=True)}
