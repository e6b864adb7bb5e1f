"""SGLang's DeepSeek-V3 prefill at EP32, experts balanced and as routed, against our passes.

32 H100 on four nodes, 16,384 tokens a device in two overlapping halves, 32 redundant experts
(LMSYS, large-scale EP, 2025-05-05).
"""

import csv
import dataclasses
import json

import numpy as np
import pytest

from planner.estimate import Group
from planner.model_library import load_model, resolve_model
from planner.point import Point
from planner.pricing import price
from planner.routing import MeasuredRouting
from planner.routing.imbalance import max_over_mean
from planner.search.eplb import eplb

RANKS, SLOTS, TOKENS = 32, 288, 16_384
BALANCED = 59_337
"""Tokens a second and node at 4,096 tokens a prompt, every expert equally loaded; the other row of
the pair is 50,302, as routed (facts of the same page)."""
LENGTHS = ("512", "1024", "2048", "500out1500", "1000out1000", "1800out100", "2000out100")


@pytest.fixture(scope="module")
def as_routed(shared):
    """Measured tokens a second and node by prompt length."""
    with (shared / "data" / "measured" / "serving.csv").open() as stream:
        return {int(row["isl"]): float(row["value"]) for row in csv.DictReader(stream)
                if row["id"].startswith("sv-sgl96-prefill-")}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(shared):
    """Shares of 58 layers by the prompts they were recorded on."""
    folder, found = shared / "data" / "traces" / "expert_load_deepseek_v3", {}
    for name in LENGTHS:
        text = (folder / f"prefill_in{name}.json").read_text()
        counts = np.array(json.loads(text)["logical_count"], dtype=float)
        used = counts[counts.sum(axis=1) > 0]
        found[name] = used / used.sum(axis=1, keepdims=True)
    return found


def placed(shares, judged):
    """Load of each slot when copies and ranks follow one recording and tokens another."""
    layers = []
    for row, seen in zip(shares, judged, strict=True):
        slots = eplb(row, SLOTS, RANKS).reshape(-1)
        layers.append(seen[slots] / np.bincount(slots, minlength=len(row))[slots])
    return np.array(layers)


def tokens_per_s_per_node(slots, isl):
    """A pass over 288 slots, nine a rank; `slots` none: every one equally loaded."""
    line = {
        "model": "deepseek-v3", "cluster": "dgx-h100-x4", "backend": "sglang", "precision": "fp8",
        "tp": 1, "dp": RANKS, "moe_ep": RANKS, "isl": isl, "osl": 1, "concurrency": 1,
        "experts": {"overlap": "micro_batch"},
    }  # fmt: skip
    group = Group.of([Point.model_validate(line)], resolve_model)
    model = load_model("deepseek-v3")
    kinds = {
        name: kind.model_copy(update={"ffn": kind.ffn.model_copy(update={"experts": SLOTS})})
        if kind.ffn == model.moe else kind
        for name, kind in model.kinds.items()
    }  # fmt: skip
    question = dataclasses.replace(
        group.question, model=model.model_copy(update={"kinds": kinds}),
        routing=group.question.routing if slots is None else MeasuredRouting(
            kind="measured", counts=tuple(tuple(row) for row in slots)),
    )  # fmt: skip
    points = group.passes({0: 1.0}).filter(phase="prefill")
    points = points.with_columns(batch=TOKENS / isl)
    seconds = price(points, question, fitted=False).passes["typical_s"][0]
    return TOKENS * 8 / seconds


def test_a_placement_is_even_on_its_own_prompts_and_uneven_on_others(recorded):
    """Busiest rank over mean: 1.007 where it was made, 1.02 to 1.27 on other prompts."""
    own = max_over_mean(placed(recorded["1024"], recorded["1024"]), RANKS).mean()
    assert own < 1.01
    pairs = (("512", "2048"), ("1024", "2048"), ("2048", "512"), ("512", "1024"))
    others = [max_over_mean(placed(recorded[a], recorded[b]), RANKS).mean() for a, b in pairs]
    assert all(1.08 < ratio < 1.3 for ratio in others)


@pytest.mark.parametrize("isl", [1024, 2048, 4096])
def test_tokens_a_second_as_routed(as_routed, recorded, isl):
    """Within 10 % where the placement follows other prompts: +3.6, +2.6 and -6.2 %."""
    slots = placed(recorded["1024"], recorded["2048"])
    assert tokens_per_s_per_node(slots, isl) == pytest.approx(as_routed[isl], rel=0.10)


def test_tokens_a_second_balanced():
    """Within 20 %: 48,939 against 59,337."""
    assert tokens_per_s_per_node(None, 4096) == pytest.approx(BALANCED, rel=0.20)


def test_balance_is_worth_what_the_busiest_rank_has_more(as_routed, recorded):
    """Part of the 18 %: the products of the busiest rank alone wait, exchange hides behind them."""
    even = tokens_per_s_per_node(None, 4096)
    for a, b in (("512", "2048"), ("1024", "2048")):
        slots = placed(recorded[a], recorded[b])
        busy = max_over_mean(slots, RANKS).mean()
        worth = even / tokens_per_s_per_node(slots, 4096)
        assert 1 < worth < min(busy, BALANCED / as_routed[4096])


@pytest.mark.xfail(
    reason="reached 1.09: 1.18 would take a busiest rank of 1.4 times the mean in every "
    "layer; placements from other recorded prompts give 1.27 at most, and the run's own balance is "
    "not published"
)
def test_balance_is_worth_18_percent(recorded, as_routed):
    """59,337 against 50,302, within 3 points, from the recording that fits worst."""
    slots = placed(recorded["512"], recorded["2000out100"])
    worth = tokens_per_s_per_node(None, 4096) / tokens_per_s_per_node(slots, 4096)
    assert worth == pytest.approx(BALANCED / as_routed[4096], abs=0.03)
