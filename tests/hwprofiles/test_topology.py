"""The network as a graph: what stands in it, its cuts, and what happens where links are missing."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.cluster import Cluster
from hwprofiles.crossing import crossing_s, links_of
from hwprofiles.cuts import all_to_all_s, bottleneck, cuts_of, farthest_s
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import kernel_rows
from hwprofiles.library import load_cluster, resolve_cluster
from hwprofiles.timing import time_kernels
from planner.moe_model import MoeFfn
from planner.work.volumes import crossing_of, exchange_of


def kinds(graph):
    found = [kind for _, kind in graph.nodes(data="kind")]
    return {kind: found.count(kind) for kind in sorted(set(found))}


def without(cluster, **changes):
    """A catalogue cluster with its last tier changed."""
    data = cluster.model_dump(mode="json")
    data["tiers"][-1] |= changes
    return Cluster.parse(data, what="cluster")


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("dgx-h100-x4", {"device": 32, "node": 4, "switch": 4, "rail": 8, "spine": 1}),
        ("hgx-h800-x4", {"device": 32, "node": 4, "switch": 4, "rail": 8}),
        # 7 switches a node and 7 planes between nodes (arXiv:2506.12708); dies two a package
        ("cloudmatrix384", {"device": 768, "package": 384, "node": 48, "switch": 48 * 7 + 7}),
        ("gb200-nvl72", {"device": 72, "node": 18, "switch": 2}),
        ("atlas-800i-a2", {"device": 8, "node": 1, "switch": 1}),
    ],
)
def test_what_stands_in_the_graph(name, held):
    assert kinds(load_cluster(name).graph()) == held


def test_links_carry_bandwidth_a_direction_latency_tier_and_kind():
    graph = load_cluster("cloudmatrix384").graph()
    assert {kind for *_, kind in graph.edges(data="kind")} == {"die", "ub", "pcie"}
    for one, other, edge in graph.edges(data=True):
        assert edge["bandwidth_bytes_per_s"] >= 0
        assert graph.edges[other, one]["latency_s"] == edge["latency_s"] >= 0
    assert graph.edges["device3", "package1"]["bandwidth_bytes_per_s"] == 224e9
    assert graph.edges["device3", "ub-node0-plane6"]["bandwidth_bytes_per_s"] == 196e9 / 7
    assert graph.nodes["device17"] == {"kind": "device", "unit": "die", "node": 1, "place": 1}


def test_a_mesh_has_a_link_a_pair_and_two_of_it_no_more():
    """Atlas A2: 56 GB/s a pair, both directions; 28 GB/s one way."""
    cluster = load_cluster("atlas-800i-a2")
    graph = cluster.graph()
    assert graph.edges["device0", "device7"]["bandwidth_bytes_per_s"] == 28e9
    graph.remove_edges_from([e for e in graph.edges if graph.edges[e]["kind"] == "roce"])
    for size in (2, 4, 8):
        cut = bottleneck(graph, range(size))
        tier = links_of(cluster, np.array([size]), np.array([1]))
        assert cut.bytes_per_s / cut.devices == pytest.approx(28e9 * (size - cut.devices))
        assert tier.near_bytes_per_s[0] == pytest.approx(28e9 * (size - 1))


def test_ports_that_a_node_shares_are_contended():
    """One network port a machine: alone a device has all of it, eight have an eighth each."""
    graph = load_cluster("bigmac-testbed").graph()
    assert all_to_all_s(graph, [0, 8], 12.5e9) == pytest.approx(1 + farthest_s(graph, [0, 8]))
    sixteen = all_to_all_s(graph, range(16), 12.5e9 / 64)
    assert sixteen == pytest.approx(1 + farthest_s(graph, range(16)))


def test_rails_that_never_meet_forward_inside_the_node():
    apart, joined = (load_cluster(n).graph() for n in ("hgx-h800-x4", "dgx-h100-x4"))
    assert farthest_s(apart, [0, 8]) == 2.7e-6  # the same rail
    assert farthest_s(apart, [0, 8, 9]) == pytest.approx(3.3e-6)  # another: over NVLink
    assert farthest_s(joined, [0, 9]) == 2.7e-6
    with pytest.raises(MoesaicError, match="no link joins device0 and device9"):
        cuts_of(apart, [0, 9])


@settings(max_examples=15, deadline=None)
@given(nodes=st.sampled_from([2, 4]), top_k=st.integers(1, 8), tokens=st.integers(1, 4096))
@pytest.mark.parametrize("name", ["hgx-h800-x4", "dgx-h100-x4", "dgx-b200-x4"])
def test_the_fast_path_is_the_bottleneck_cut_of_the_graph(name, nodes, top_k, tokens):
    """Flat exchange with both cuts at once: two bandwidths say what the whole graph says."""
    cluster, ranks, one = load_cluster(name), nodes * 8, np.array([1.0])
    moe = MoeFfn(experts=64, top_k=top_k, width=8)
    of = exchange_of(moe, np.full((1, 64), 1 / 64), ranks * one, nodes * one, tokens * one,
                     1024 * one)  # fmt: skip
    links = links_of(cluster, ranks * one, nodes * one)
    fast = crossing_s(crossing_of("fused", of), links)[0]
    fast -= links.near_latency_s[0] + links.far_latency_s[0]
    graph = cluster.graph()
    slow = all_to_all_s(graph, range(ranks), tokens * 1024 * top_k / ranks)
    assert fast == pytest.approx(slow - farthest_s(graph, range(ranks)))


def test_a_link_taken_out_shows_in_the_cut():
    graph = load_cluster("dgx-h100-x4").graph()
    whole = bottleneck(graph, range(32))
    graph.remove_edges_from([("device5", "infiniband0-rail5"), ("infiniband0-rail5", "device5")])
    hurt = bottleneck(graph, range(32))
    assert (whole.bytes_per_s, hurt.bytes_per_s) == (400e9, 350e9)
    assert hurt.around in ("node0", "nvlink0")
    nx.set_edge_attributes(graph, {("nvlink3", "device31"): {"bandwidth_bytes_per_s": 1e9}})
    assert all_to_all_s(graph, range(32), 1e6) >= 31 * 1e6 / 351e9


def test_one_device_exchanges_nothing():
    graph = load_cluster("dgx-h100").graph()
    assert all_to_all_s(graph, [3], 1e9) == 0
    assert cuts_of(graph, [3]) == []


@pytest.mark.parametrize(
    ("group", "says"),
    [([0, 8], "device8 is not among the 8 devices"), ([0, 0], "each once"), ([-1], "device-1"),
     ([], "each once")],
)  # fmt: skip
def test_groups_that_are_not_there_are_refused(group, says):
    with pytest.raises(MoesaicError, match=says):
        cuts_of(load_cluster("dgx-h100").graph(), group)


def test_a_graph_in_two_pieces_is_refused_with_both_sides():
    graph = load_cluster("bigmac-testbed").graph()
    graph.remove_node("infiniband0")
    with pytest.raises(MoesaicError, match="no link joins device0 and device8: the topology is d"):
        all_to_all_s(graph, range(32), 1.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wiring": "rails"}, "needs a wiring_source"),
        ({"wiring": "ring"}, "mesh"),
        ({"spans_devices": 16}, "no link tier joins all 32 devices"),
    ],
)
def test_bad_wiring_is_refused(changes, says):
    with pytest.raises(MoesaicError, match=says):
        without(resolve_cluster("bigmac-testbed"), **changes)


def test_rails_without_a_link_inside_the_node_are_disconnected():
    data = load_cluster("hgx-h800-x4").model_dump(mode="json")
    data["tiers"] = data["tiers"][1:]
    with pytest.raises(MoesaicError, match="no nearer tier joins the 8 devices of a node"):
        Cluster.parse(data, what="cluster")


def test_bandwidth_of_nothing_is_no_link():
    rate = load_cluster("dgx-h100-x4").tiers[-1].bandwidth_bytes_per_s.model_dump(mode="json")
    cut_off = without(load_cluster("dgx-h100-x4"), bandwidth_bytes_per_s=rate | {"value": 0})
    with pytest.raises(MoesaicError, match="disconnected"):
        all_to_all_s(cut_off.graph(), range(32), 1.0)


def test_two_cards_of_a_mesh_reduce_over_one_link():
    """Pangu Pro MoE's prefill on two 800I A2 cards: its all-reduces cross 28 GB/s, not 196."""
    cluster = load_cluster("atlas-800i-a2")
    rows = kernel_rows([
        {"kernel": "all_reduce", "devices": n, "nodes": 1, "message_bytes": 1e9} for n in (2, 8)
    ])  # fmt: skip
    two, eight = time_kernels(rows, cluster)["typical_s"]
    assert two / eight == pytest.approx(7 * (1 / 2) / (7 / 8), rel=1e-3)
