"""Cuts agree with the topology's graph, and seconds with the alpha-beta model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.cluster import Cluster
from hwprofiles.crossing import Crossing, Links, crossing_s, links_of
from hwprofiles.cuts import cuts_of
from hwprofiles.errors import MoesaicError
from hwprofiles.library import resolve_cluster


@pytest.mark.parametrize("name", ["hgx-h800-x4", "dgx-h100-x4", "bigmac-testbed"])
def test_the_far_cut_is_the_graphs_smallest_cut_between_two_nodes(name):
    cluster = resolve_cluster(name)
    width = cluster.devices_per_node
    node = next(c for c in cuts_of(cluster.graph(), range(2 * width)) if c.around == "node0")
    links = links_of(cluster, np.array([2 * width]), np.array([2]))
    assert links.far_bytes_per_s[0] * width == pytest.approx(node.bytes_per_s)


def test_a_topology_in_two_pieces_is_refused():
    cluster = resolve_cluster("hgx-h800-x4").model_dump(mode="json")
    cluster["tiers"] = cluster["tiers"][:1]
    with pytest.raises(MoesaicError, match="disconnected"):
        Cluster.parse(cluster, what="cluster")


@given(
    near=st.integers(0, 10**9), far=st.integers(0, 10**9), messages=st.floats(0, 1e3),
    pipelined=st.booleans(),
)  # fmt: skip
def test_seconds_lie_between_the_slower_cut_and_both_in_a_row(near, far, messages, pipelined):
    one = np.array([1.0])
    links = Links(4e11 * one, 5e10 * one, 6e-7 * one, 3e-6 * one, 1e-5, 1e-7)
    found = crossing_s(Crossing(near * one, far * one, messages * one, 1, pipelined), links)[0]
    wire = max(near / 4e11, far / 5e10)
    if near == far == 0:
        assert found == 0
    else:
        assert wire + 1e-5 + messages * 1e-7 <= found * (1 + 1e-9)
        assert found <= (near / 4e11 + far / 5e10 + 1e-5 + messages * 1e-7 + 3.6e-6) * (1 + 1e-9)


def test_half_the_share_takes_twice_the_wire():
    one = np.array([1.0])
    links = Links(1e9 * one, 1e9 * one, 0 * one, 0 * one)
    sent = Crossing(1e9 * one, 1e9 * one, one)
    assert crossing_s(sent, links.at(0.5, 0.5))[0] == 2 * crossing_s(sent, links)[0] == 4


@pytest.mark.parametrize(("ranks", "nodes"), [(8, 3), (0, 1), (8, 0)])
def test_groups_that_do_not_divide_are_refused(ranks, nodes):
    with pytest.raises(MoesaicError, match=f"{nodes} nodes do not divide {ranks} ranks"):
        links_of(resolve_cluster("hgx-h800-x4"), np.array([ranks]), np.array([nodes]))
