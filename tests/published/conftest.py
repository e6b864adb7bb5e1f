"""BigMac's machines (arXiv:2502.16927), one link efficiency fitted on k = 1; loads a layout was not
made for."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from hwprofiles.crossing import Links, crossing_s
from planner.estimate import estimate_one
from planner.formats.expert_load import read_expert_load
from planner.moe_model import MoeFfn
from planner.search.eplb import eplb
from planner.validation.papers import paper_figures
from planner.work.order import FineGrained, cdac, dcca, sharded_elements
from planner.work.volumes import crossing_of, exchange_of

NODES, RANKS = 4, 32
WAYS = {"training": 4, "inference": 2}
"""All-to-alls of a layer: forward only in inference."""
BASES = {"medium": (24, 1024), "xl": (24, 2048), "2.7b": (32, 2560), "6.7b": (32, 4096)}
"""Layers and width of the base models; of the last two from the GPT-3 paper, unverified."""
SEQUENCE, VOCAB, EXPERTS, RATIO = 2048, 50257, 64, 0.25
BATCH = 64 * SEQUENCE
OVERLAP = 4
"""Parts of Tutel's exchange that run beside the experts."""
START_SHARE = 0.172
"""Share of the k = 1 all-to-all that does not shrink with bytes, from Figure 4's all-to-all
speed-ups at r = 1/4: (a + 4c) / (a + c) = 3.48 and (a + 8c) / (a + 2c) = 3.72 give a / (a + c) of
0.173 and 0.171."""


def shaped(base="medium", k=1, tokens=BATCH, sequence=SEQUENCE, ep=RANKS):
    layers, hidden = BASES[base]
    return FineGrained(layers, hidden, VOCAB, EXPERTS, k, RATIO, ep, tokens, sequence)


def sent(of, ratio, algorithm="flat_pairwise", tp=1, capacity=1.0):
    """What a rank sends in one all-to-all."""
    one, ranks = np.array([1.0]), of.ep
    nodes = max(min(ranks * tp // (RANKS // NODES), NODES), 1)
    moe = MoeFfn(experts=EXPERTS, top_k=of.top_k, width=256)
    return crossing_of(algorithm, exchange_of(
        moe, np.full((1, EXPERTS), 1 / EXPERTS), ranks * one, nodes * one,
        of.tokens / (ranks * tp) * one, of.hidden * 2 * ratio * capacity * one,
    ))  # fmt: skip


@dataclass(frozen=True)
class Testbed:
    """Table 1 and what its k = 1 rows say of links and other work."""

    table: dict

    def links(self, way):
        """Links whose one efficiency makes k = 1 take the printed time, the start within."""
        plain = Links(np.array([32e9]), np.array([1.5625e9]), np.zeros(1), np.zeros(1))
        seconds = self.table["time", way, 1] / 1e3
        exchanges = WAYS[way] * BASES["medium"][0]
        wire = exchanges * crossing_s(sent(shaped(), 1), plain)[0]
        efficiency = wire / (seconds * (1 - START_SHARE))
        start = Links(
            plain.near_bytes_per_s, plain.far_bytes_per_s, np.zeros(1), np.zeros(1),
            seconds * START_SHARE / exchanges,
        )  # fmt: skip
        return start.at(efficiency, efficiency)

    def exchange_s(self, way, of, *, narrowed=False, chunks=1, **how):
        """All-to-all seconds of an iteration; each of `chunks` parts starts anew."""
        crossing, links = sent(of, of.ratio if narrowed else 1.0, **how), self.links(way)
        one = crossing_s(crossing, links)[0] + (chunks - 1) * links.fixed_s
        return WAYS[way] * of.layers * one

    def rest_s(self, way, of, *, narrowed=False, ranks=RANKS):
        """Other seconds of an iteration: those of k = 1 by the FLOP of Table 3."""
        first = self.table["time", way, 1] * (100 / self.table["share", way, 1] - 1) / 1e3
        flops = (dcca if narrowed else cdac)(of).flops
        return first * flops / cdac(shaped()).flops * RANKS / ranks

    def sharded_s(self, way, of, tp, *, narrowed=False):
        """Gathers and scatters among tp ranks, forward and (in training) backward."""
        times = of.layers * WAYS[way] / 2
        size = 2 * sharded_elements(of, tp, narrowed=narrowed)
        return times * size / self.links(way).near_bytes_per_s[0]

    def step_s(self, way, of, *, narrowed, tp=1):
        """Seconds of an iteration, one part after the other."""
        parts = (
            self.exchange_s(way, of, narrowed=narrowed, tp=tp),
            self.rest_s(way, of, narrowed=narrowed, ranks=of.ep * tp),
            self.sharded_s(way, of, tp, narrowed=narrowed),
        )
        return sum(parts)

    def speed_up(self, way, of, tp=1):
        """Fine-grained over BigMac, whole iterations."""
        wide, narrow = (self.step_s(way, of, narrowed=n, tp=tp) for n in (False, True))
        return wide / narrow

    def tutel_s(self, way, of, capacity, *, narrowed):
        """Two-stage exchange in four parts, experts beside it but for the last part (Tutel)."""
        exchange = self.exchange_s(
            way, of, narrowed=narrowed, chunks=OVERLAP, algorithm="hierarchical", capacity=capacity
        )
        routed = self.rest_s(way, of) - self.rest_s(way, replace(of, top_k=0))
        rest = self.rest_s(way, of, narrowed=narrowed) - routed
        experts = routed * capacity
        return rest + max(exchange, experts) + min(exchange, experts) / OVERLAP


@pytest.fixture(scope="session")
def testbed(shared):
    """Table 1's milliseconds and shares by (what, way, k)."""
    found = {}
    with (shared / "data" / "papers" / "bigmac.csv").open() as stream:
        for row in csv.DictReader(stream):
            for way in WAYS:
                for name in (f"a2a_time_{way}", f"a2a_share_{way}"):
                    if row["metric"] == name and row["setting"].startswith("Table 1"):
                        k = int(row["setting"].split("top_k=")[1].split(";")[0])
                        found[name.split("_")[1], way, k] = float(row["value"])
    return Testbed(found)


@pytest.fixture(scope="session")
def shape_of():
    """A base model with k of 64 experts, its batch and its ranks."""
    return shaped


def after_eplb(seen, served, ranks=32, slots=288):
    """Counts of `served` on each rank of a layout made from `seen`, as equal experts a rank."""
    found = np.zeros_like(served)
    for layer, (old, new) in enumerate(zip(seen, served, strict=True)):
        places = eplb(old, slots, ranks)
        copies = np.bincount(places.ravel(), minlength=new.size)
        found[layer] = np.repeat((new / copies)[places].sum(axis=1), new.size // ranks)
    return found


@pytest.fixture(scope="session")
def served_elsewhere(shared):
    """DeepSeek-V3's load when a layout balanced on one published prefill load serves another.

    32 redundant experts on 32 ranks, every ordered pair of three loads, each as a routing.
    """
    folder = shared / "data/traces/expert_load_deepseek_v3"
    loads = []
    for name in ("prefill_in512", "prefill_in1024", "prefill_in2048"):
        counts = np.array(read_expert_load(folder / f"{name}.json").counts, dtype=float)
        loads.append(counts[counts.sum(axis=1) > 0])
    pairs = [(a, b) for a in loads for b in loads if a is not b]
    return [{"kind": "measured", "counts": after_eplb(*pair).tolist()} for pair in pairs]


@pytest.fixture(scope="session")
def error_of():
    """Relative error of the estimate of a paper's figure, by its name."""

    @cache
    def found(name):
        figure = paper_figures()[name]
        return getattr(estimate_one(figure.point), figure.target).typical / figure.value - 1

    return found
