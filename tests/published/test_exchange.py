"""Published dispatch and combine times against volumes from the routing, half of them fitted."""

import csv

import numpy as np
import pytest

from hwprofiles.crossing import Links, crossing_s, links_of
from hwprofiles.errors import MoesaicError
from hwprofiles.library import resolve_cluster
from planner.moe_model import MoeFfn
from planner.work.volumes import ALGORITHMS, crossing_of, exchange_of

HIDDEN, TOP_K, EXPERTS = 7168, 8, 256
EQUAL = np.full((58, EXPERTS), 1 / EXPERTS)
TOKEN_BYTES = {"dispatch": HIDDEN * (1 + 4 / 128), "combine": HIDDEN * 2}
"""FP8 with a scale for 128 numbers out, BF16 back (DeepEP README)."""
INT8_BYTES = {"dispatch": HIDDEN + 512, "combine": HIDDEN * 2}
"""INT8 and a 512-byte head out (CloudMatrix384, arXiv:2506.12708)."""


def crossings(algorithm, ranks, tokens, token_bytes, node_ranks, groups=None):
    """Crossings of one candidate each; `groups` limits a token to that many nodes."""
    found, reached = [], []
    for count in ranks:
        nodes = max(count // node_ranks, 1)
        limited = {
            "router": "group_limited",
            "groups": nodes,
            "top_groups": min(nodes, groups or 1),
        }
        moe = MoeFfn(experts=EXPERTS, top_k=TOP_K, width=2048, **(limited if groups else {}))
        one = np.array([1.0])
        of = exchange_of(moe, EQUAL, count * one, nodes * one, tokens * one, token_bytes * one)
        found.append(crossing_of(algorithm, of))
        reached.append(of.nodes_reached[0] if nodes > 1 else of.ranks_reached[0])
    return found, np.array(reached)


def column(found, name):
    return np.array([getattr(crossing, name)[0] for crossing in found])


def fit(terms, seconds, half):
    """Coefficients of the terms that make relative errors of the fitted half least."""
    matrix = np.stack(terms, axis=1)
    scaled = matrix[half] / seconds[half, None]
    return matrix @ np.linalg.lstsq(scaled, np.ones(len(scaled)), rcond=None)[0]


@pytest.fixture(scope="module")
def collectives(shared):
    """Value of each published row by id."""
    with (shared / "data" / "measured" / "collectives.csv").open() as stream:
        return {row["id"]: float(row["value"]) for row in csv.DictReader(stream)
                if row["id"].startswith("cc-deepep-")}  # fmt: skip


@pytest.mark.parametrize("way", ["dispatch", "combine"])
@pytest.mark.parametrize(
    ("version", "ranks"), [("v1", (8, 16, 32, 64)), ("v0", (8, 16, 32, 64, 128, 256))]
)
def test_deepep_low_latency(collectives, version, ranks, way):
    """A start and a rate across nodes fitted on every other row: the rest within 15 %."""
    seconds = np.array([collectives[f"cc-deepep-{version}-ll-{way}-ep{r}"] for r in ranks]) / 1e6
    found, _ = crossings("low_latency", ranks, 128, TOKEN_BYTES[way], 8)
    half = np.arange(len(ranks)) % 2 == 0
    predicted = fit([np.ones(len(ranks)), column(found, "far_bytes")], seconds, half)
    assert predicted == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize("way", ["dispatch", "combine"])
def test_deepep_normal(collectives, way):
    """NVLink rate from EP8, InfiniBand rate from EP32; EP16 and EP64 within 15 %.

    The printed bandwidth counts a token once for each rank (one node) or node that it goes to; the
    published runs keep a token to at most four nodes (DeepEP README).
    """
    ranks = (8, 16, 32, 64)
    rates = np.array([collectives[f"cc-deepep-v1-normal-{way}-ep{r}"] for r in ranks]) * 1e9
    found, reached = crossings("node_deduplicated", ranks, 4096, TOKEN_BYTES[way], 8, groups=4)
    seconds = reached * 4096 * TOKEN_BYTES[way] / rates
    near, far = column(found, "near_bytes"), column(found, "far_bytes")
    one = np.array([1.0])
    links = Links(near[0] / seconds[0] * one, far[2] / seconds[2] * one, 0 * one, 0 * one)
    predicted = [crossing_s(crossing, links)[0] for crossing in found]
    assert predicted == pytest.approx(seconds, rel=0.15)
    h800 = resolve_cluster("hgx-h800-x4")
    stated = links_of(h800, np.array([32]), np.array([4]))
    assert 0.5 < links.near_bytes_per_s[0] / stated.near_bytes_per_s[0] < 0.8
    assert 0.8 < links.far_bytes_per_s[0] / stated.far_bytes_per_s[0] < 0.95


ASCEND_NORMAL = {"dispatch": (146, 107, 102, 81, 57), "combine": (125, 103, 95, 91, 81)}
"""GB/s at EP 8, 16, 32, 64, 128, 4,096 tokens (sgl-kernel-npu README, A3 SuperPOD)."""


@pytest.mark.parametrize("way", ["dispatch", "combine"])
def test_deepep_ascend_normal(way):
    """A rate and a start for each peer from EP 8, 32 and 128; EP 16 and 64 within 15 %."""
    ranks = (8, 16, 32, 64, 128)
    sent = TOP_K * 4096 * INT8_BYTES[way]
    seconds = sent / np.array(ASCEND_NORMAL[way]) / 1e9
    found, _ = crossings("flat_pairwise", ranks, 4096, INT8_BYTES[way], 16)
    moved = column(found, "near_bytes") + column(found, "far_bytes")
    half = np.array([True, False, True, False, True])
    predicted = fit([moved, column(found, "messages")], seconds, half)
    assert predicted == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize(
    ("name", "fitted", "held"),
    [("A3 SuperPOD, EP 8 and 32 of each way, EP 16 held",
      {8: (132, 126), 32: (153, 151)}, {16: (139, 135)}),
     ("CloudMatrix384, dispatch fitted, combine held", {8: (116,), 256: (152,)},
      {8: (118,), 256: (149,)})],
)  # fmt: skip
def test_ascend_low_latency(name, fitted, held):
    """128 tokens: a start and a cost of each message that leaves the rank; within 15 %."""
    rows = [(count, us, True) for count, values in fitted.items() for us in values]
    rows += [(count, us, False) for count, values in held.items() for us in values]
    found, _ = crossings("low_latency", [row[0] for row in rows], 128, INT8_BYTES["dispatch"], 16)
    seconds, half = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    predicted = fit([np.ones(len(rows)), column(found, "messages")], seconds, half)
    assert predicted == pytest.approx(seconds, rel=0.15), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_rank_sends_nothing_and_one_node_nothing_across(algorithm):
    alone, _ = crossings(algorithm, (1,), 100, 10, 8)
    inside, _ = crossings(algorithm, (8,), 100, 10, 8)
    assert alone[0].near_bytes[0] == alone[0].far_bytes[0] == inside[0].far_bytes[0] == 0
    assert inside[0].near_bytes[0] > 0


def test_a_token_crosses_once_a_node_where_the_algorithm_does_that():
    ranks = (16, 32, 64)
    far = {name: column(crossings(name, ranks, 100, 10, 8)[0], "far_bytes") for name in ALGORITHMS}
    assert (far["node_deduplicated"] < far["flat_pairwise"]).all()
    assert far["hierarchical"] == pytest.approx(far["flat_pairwise"])
    assert far["gather_scatter"] == pytest.approx([1000, 3000, 7000])


def test_groups_that_do_not_divide_and_unknown_algorithms_are_refused():
    one = np.array([1.0])
    moe = MoeFfn(experts=256, top_k=8, width=10)
    with pytest.raises(MoesaicError, match="3 nodes do not divide 32 ranks"):
        exchange_of(moe, EQUAL, 32 * one, 3 * one, one, one)
    with pytest.raises(MoesaicError, match="48 ranks or nodes do not divide 256 experts"):
        exchange_of(moe, EQUAL, 48 * one, 3 * one, one, one)
    with pytest.raises(MoesaicError, match="flat_pairwise"):
        crossing_of("flat_pairwize", exchange_of(moe, EQUAL, one, one, one, one))
    with pytest.raises(MoesaicError, match="hgx-h800-x4 has 32 devices"):
        links_of(resolve_cluster("hgx-h800-x4"), np.array([64]), np.array([8]))
