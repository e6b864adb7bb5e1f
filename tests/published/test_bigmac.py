"""BigMac (arXiv:2502.16927): its equations, all-to-all times and shares against ours."""

import numpy as np
import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from hwprofiles.library import resolve_cluster
from planner.candidates import POINT, number
from planner.compression.exchange_order import as_dcca
from planner.engines import load_engine
from planner.model_library import load_model
from planner.moe_model import MoeFfn
from planner.pricing import Question, price
from planner.routing import UniformRouting
from planner.work.order import FineGrained, cdac, dcca, exchange_elements
from planner.work.sheet import formats_of
from planner.work.volumes import exchange_of, flat_pairwise

XL = FineGrained(
    layers=24, hidden=2048, vocab=50257, experts=64, top_k=8, ratio=0.25, ep=32, tokens=524_288,
    sequence=2048,
)  # fmt: skip


def test_table_4_parameters_flop_and_bytes():
    """Within 0.02 %; the printed GB are GiB, parameters are printed to three digits."""
    wide, narrow = cdac(XL), dcca(XL)
    assert wide.flops / 1e12 == pytest.approx(3490.67, rel=2e-4)
    assert narrow.flops / 1e12 == pytest.approx(3649.00, rel=2e-4)
    assert wide.exchange_bytes / 2**30 == pytest.approx(1488.00, rel=2e-4)
    assert narrow.exchange_bytes / 2**30 == pytest.approx(372.00, rel=2e-4)
    assert round(wide.parameters / 1e9, 2) == 3.73
    assert round(narrow.parameters / 1e9, 2) == 3.78
    assert narrow.parameters / wide.parameters - 1 == pytest.approx(0.0135, abs=2e-4)
    assert narrow.flops / wide.flops - 1 == pytest.approx(0.0454, abs=2e-4)


def test_equation_2_counts_both_directions_of_a_layer():
    assert exchange_elements(XL) == 2 * 8 * 31 / 32 * 524_288 * 2048


def test_flat_volume_is_equation_2():
    """The algorithm's bytes, summed over ranks and both directions, are the equation's."""
    moe = MoeFfn(experts=64, top_k=8, width=512)
    one = np.array([1.0])
    of = exchange_of(moe, np.full((1, 64), 1 / 64), 32 * one, 4 * one, 524_288 / 32 * one,
                     2048 * 2 * one)  # fmt: skip
    sent = flat_pairwise(of)
    both = 2 * 32 * (sent.near_bytes + sent.far_bytes)[0]
    assert both == pytest.approx(exchange_elements(XL) * 2)


WAYS_AND_K = [(way, k) for way in ("training", "inference") for k in (2, 4, 6, 8)]
MISSED = {("training", 2), ("inference", 2), ("inference", 4)}
WHY_MISSED = (
    "no time that grows with volume at a falling or steady pace meets these rows: see "
    "test_table_1_grows_faster_than_volume"
)


@pytest.mark.parametrize(
    ("way", "k"),
    [pytest.param(*row, marks=pytest.mark.xfail(reason=WHY_MISSED) if row in MISSED else ())
     for row in WAYS_AND_K],
)  # fmt: skip
def test_table_1_times_from_one_efficiency_fitted_on_k_1(testbed, shape_of, way, k):
    """Milliseconds within 10 %: reached 2.3, 3.9, 7.7 % in training, 6.7, 7.4 % in inference."""
    found = testbed.exchange_s(way, shape_of(k=k)) * 1e3
    assert found == pytest.approx(testbed.table["time", way, k], rel=0.10)


@pytest.mark.parametrize(("way", "k"), WAYS_AND_K)
def test_table_1_shares_from_one_efficiency_fitted_on_k_1(testbed, shape_of, way, k):
    """Shares of all-to-all within 10 %, other work growing with its FLOP: 7 % off at most."""
    exchange, rest = (part(way, shape_of(k=k)) for part in (testbed.exchange_s, testbed.rest_s))
    share = 100 * exchange / (exchange + rest)
    assert share == pytest.approx(testbed.table["share", way, k], rel=0.10)


def test_table_1_grows_faster_than_volume(testbed):
    """Why three rows are missed: they contradict one another and the paper's own Figure 4.

    Let t(k) be any time fitted on k = 1, every other row within 10 %. In inference t(4) is then at
    most 1.1 · 268.7 = 296 ms and t(8) at least 0.9 · 696.5 = 627 ms: 2.12 times as long for twice
    the bytes, though a start or larger messages only make it less than twice. t(8) / t(2) is at
    least 4.29 for four times the bytes. In training t(2) is at most 589 ms; where
    further bytes never cost more than the first, t(8) is then at most 337 + 7 · 252 = 2,103 ms;
    printed, less 10 %, are 2,145.

    The same volumes in Figure 4: all of Top-4 against a quarter of it (as much as k = 1) 3.48, of
    Top-8 against a quarter (k = 2) 3.72. Table 1 has 3.23 and 4.45 in training, 2.83 and 5.24 in
    inference. What the figure says becomes slower, becomes faster in the table, and the other way
    round; capacity factors, copies by node and imbalance scale all of one row's bytes alike or
    grow more slowly than k.
    """
    times = {way: {k: testbed.table["time", way, k] for k in (1, 2, 4, 6, 8)}
             for way in ("training", "inference")}  # fmt: skip
    few, many = times["inference"], times["training"]
    assert 0.9 * few[8] / (1.1 * few[4]) > 2.1
    assert 0.9 * few[8] / (1.1 * few[2]) > 4.2
    assert many[1] + 7 * (1.1 * many[2] - many[1]) < 0.9 * many[8]
    for row in (few, many):
        assert row[4] / row[1] < 3.48 * 0.94
        assert row[8] / row[2] > 3.72 * 1.19


def test_no_start_meets_more_rows_of_table_1(testbed):
    """Of all starts, Figure 4's among them, none carries more than five of the eight times."""
    met = []
    for start in np.linspace(0, 0.95, 191):
        grown = {k: start + (1 - start) * k for _, k in WAYS_AND_K}
        met.append(sum(
            abs(testbed.table["time", way, 1] * grown[k] / testbed.table["time", way, k] - 1) <= 0.1
            for way, k in WAYS_AND_K
        ))  # fmt: skip
    assert max(met) == len(WAYS_AND_K) - len(MISSED)


@pytest.mark.parametrize(("k", "printed", "exchange"), [(4, 2.37, 3.48), (8, 2.95, 3.72)])
def test_end_to_end_speed_up_in_training(testbed, shape_of, k, printed, exchange):
    """Within 6 % from the k = 1 row alone: 2.365 and 2.794."""
    of = shape_of(k=k)
    wide, narrow = (testbed.exchange_s("training", of, narrowed=n) for n in (False, True))
    assert wide / narrow == pytest.approx(exchange, rel=0.01)
    assert testbed.speed_up("training", of) == pytest.approx(printed, rel=0.06)


def price_s(model, ranks):
    """Seconds of one forward pass of 4,096 tokens a rank on the paper's machines."""
    row = {
        "tp": 1, "dp": ranks, "pp": 1, "moe_tp": 1, "moe_ep": ranks, "devices": ranks,
        "phase": "prefill", "batch": 2, "new_tokens": 2048, "past_tokens": 0,
        "context_tokens": 2048, "osl": 1, "step_tokens": 1, "redundant_experts": 0,
        "node_devices": 8,
    }  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    question = Question(
        model, resolve_cluster("bigmac-testbed"), load_engine("vllm"), UniformRouting(),
        formats_of(model, None, "bf16"),
    )  # fmt: skip
    return price(number(pl.DataFrame([row], schema=schema)), question).passes["typical_s"][0]


def test_without_expert_parallelism_dcca_is_slightly_slower():
    wide = load_model("bigmac-gpt3-xl-fine-grained")
    narrow = as_dcca(wide, 0.25)
    assert 0.90 < price_s(wide, 1) / price_s(narrow, 1) < 1
    assert price_s(wide, 32) / price_s(narrow, 32) > 2


def test_the_what_if_of_the_fine_grained_model_is_bigmac():
    found = as_dcca(load_model("bigmac-gpt3-xl-fine-grained"), 0.25)
    assert found.kinds == load_model("bigmac-gpt3-xl").kinds
    assert "what-if" in found.assumptions[-1]


@pytest.mark.parametrize(
    ("name", "ratio", "said"),
    [("bigmac-gpt3-xl", 0.25, "512 of 2048 already"), ("llama-3.1-8b", 0.5, "no routed experts"),
     ("mixtral-8x7b", 0.3, "both must be whole"), ("mixtral-8x7b", 1.5, "between 0 and 1"),
     ("mixtral-8x7b", float("nan"), "between 0 and 1")],
)  # fmt: skip
def test_impossible_what_ifs_are_refused(name, ratio, said):
    with pytest.raises(MoesaicError, match=said):
        as_dcca(load_model(name), ratio)
