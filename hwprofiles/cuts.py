"""What a topology lets through: the bottleneck cut of a group, and its all-to-all time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwprofiles.errors import MoesaicError
from hwprofiles.topology import HOST, kinds_of

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Cut:
    """A part of a group and what leaves it at once."""

    around: str
    """The device, package, node, switch or rail that the part is."""
    devices: int
    """Devices of the group in the part."""
    bytes_per_s: float
    """Over all links that leave it, one direction."""


def cuts_of(graph: nx.DiGraph[str], group: Sequence[int]) -> list[Cut]:
    """The cuts around every kind of part of a group, one for parts that look alike.

    The capacity is a maximum flow over links, switches and devices of the group: others do not
    forward. Parts of one kind with as many devices count as alike where every link stands as the
    catalogue says; a graph with a link changed or taken out is told apart by the sum of its links.

    Args:
        graph: as `Cluster.graph()` builds it, links changed or taken out as you like.
        group: numbers of the devices that exchange.

    Raises:
        MoesaicError: `invalid` for a device that is not there or twice, or a group that no links
            join.
    """
    members = _members(graph, group)
    among = _among(graph, members)
    _check_joined(among, members)
    found: dict[tuple[str, int, float], Cut] = {}
    for around, kind, inside in _parts(graph, members):
        if not inside or len(inside) == len(members):
            continue
        signature = (kind, len(inside), _links_sum(among, inside))
        if signature not in found:
            found[signature] = Cut(around, len(inside), _flow(among, inside, members))
    return list(found.values())


def all_to_all_s(graph: nx.DiGraph[str], group: Sequence[int], pair_bytes: float) -> float:
    """Seconds until every device of a group has sent `pair_bytes` to every other.

    No cut lets its bytes through faster than its links do; the farthest pair adds its latency.
    """
    if len(group) <= 1:
        return 0.0
    cuts = cuts_of(graph, group)
    wire = max(c.devices * (len(group) - c.devices) * pair_bytes / c.bytes_per_s for c in cuts)
    return wire + farthest_s(graph, group)


def bottleneck(graph: nx.DiGraph[str], group: Sequence[int]) -> Cut:
    """The cut that an all-to-all waits for: most pairs for its links."""
    size = len(group)
    return max(cuts_of(graph, group),
               key=lambda c: c.devices * (size - c.devices) / c.bytes_per_s)  # fmt: skip


def farthest_s(graph: nx.DiGraph[str], group: Sequence[int]) -> float:
    """Latency between the two devices of a group that are farthest apart."""
    import networkx as nx

    members = _members(graph, group)
    among = _among(graph, members)
    waits = nx.single_source_dijkstra_path_length(among, members[0], weight="latency_s")
    return float(max(waits[name] for name in members))


def _members(graph: nx.DiGraph[str], group: Sequence[int]) -> list[str]:
    names = [f"device{i}" for i in group]
    missing = [name for name in names if name not in graph]
    if missing or len(set(names)) != len(names) or not names:
        count = list(kinds_of(graph).values()).count("device")
        said = f"{missing[0]} is not among" if missing else "a group names each once, of"
        raise MoesaicError("invalid", f"{said} the {count} devices of the topology", "/devices")
    return names


def _among(graph: nx.DiGraph[str], members: list[str]) -> nx.DiGraph[str]:
    """The links that a group may use."""
    import networkx as nx

    held = set(members)
    others = [n for n, kind in kinds_of(graph).items() if kind == "device" and n not in held]
    among: nx.DiGraph[str] = nx.DiGraph(graph)
    among.remove_nodes_from(others)
    among.remove_edges_from(
        [(a, b) for a, b, edge in among.edges(data=True)
         if edge["tier"] == HOST or edge["bandwidth_bytes_per_s"] <= 0]
    )  # fmt: skip
    return among


def _check_joined(among: nx.DiGraph[str], members: list[str]) -> None:
    import networkx as nx

    reached = nx.descendants(among, members[0]) | {members[0]}
    apart = next((name for name in members if name not in reached), None)
    if apart is not None:
        raise MoesaicError(
            "invalid", f"no link joins {members[0]} and {apart}: the topology is disconnected",
            "/cluster/tiers",
        )  # fmt: skip


def _parts(graph: nx.DiGraph[str], members: list[str]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Name, kind and devices of every part of a group."""
    for name in members:
        yield name, "device", frozenset([name])
    for vertex, told in graph.nodes(data=True):
        if "devices" in told:
            first, last = told["devices"]
            inside = [n for n in members if first <= int(n[len("device") :]) < last]
            yield vertex, told["kind"], frozenset(inside)
        elif told["kind"] == "rail":
            yield vertex, "rail", frozenset(n for n in members if graph.has_edge(n, vertex))


def _links_sum(among: nx.DiGraph[str], inside: frozenset[str]) -> float:
    """Bandwidth of all links that devices of a part and switches next to them have."""
    near = set(inside).union(*(among.successors(name) for name in inside))
    links = among.out_edges(near, data=True)
    return float(sum(edge["bandwidth_bytes_per_s"] for _, _, edge in links))


def _flow(among: nx.DiGraph[str], inside: frozenset[str], members: list[str]) -> float:
    import networkx as nx

    sized: nx.DiGraph[str] = nx.DiGraph()
    for a, b, edge in among.edges(data=True):
        sized.add_edge(a, b, capacity=edge["bandwidth_bytes_per_s"])
    for name in members:
        if name in inside:
            sized.add_edge("from", name)
        else:
            sized.add_edge(name, "to")
    return float(nx.maximum_flow_value(sized, "from", "to"))
