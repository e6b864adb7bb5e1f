"""Lengths as a distribution: moments, questions that give them, and the simulator beside them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.estimate import estimate_one
from planner.lengths import PairLengths, QuantileLengths, SummaryLengths, alike, summed_up
from planner.pipeline import make_plan, parse_scenario, read_scenario
from planner.simulation.question import SimulationQuestion
from planner.simulation.record import RequestLog
from planner.simulation.simulate import measures, prepare, run_once
from planner.simulation.summary import Slo

TOKENS = st.integers(1, 100_000)
POINT = {"model": "qwen3-30b-a3b", "cluster": "dgx-h100", "backend": "vllm", "tp": 2, "moe_tp": 2,
         "moe_ep": 1, "concurrency": 16}  # fmt: skip


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=2, max_size=50))
def test_a_summary_keeps_the_moments_of_its_pairs(pairs):
    exact = PairLengths(kind="pairs", pairs=tuple(pairs)).moments()
    short = SummaryLengths.model_validate(summed_up(pairs)).moments()
    for name in ("isl", "osl", "long_isl", "past", "grown"):
        assert getattr(short, name) == pytest.approx(getattr(exact, name), rel=1e-6)


@given(TOKENS, TOKENS)
def test_equal_lengths_are_the_plain_question(isl, osl):
    same = PairLengths(kind="pairs", pairs=((isl, osl),) * 3).moments()
    flat = QuantileLengths(kind="quantiles", isl={0: isl, 1: isl}, osl={0: osl, 1: osl}).moments()
    for found in (same, flat):
        assert vars(found) == pytest.approx(vars(alike(isl, osl)))


def test_spread_only_lengthens():
    """E[isl²] ≥ E[isl]², and long answers are met more often than asked for."""
    found = QuantileLengths(kind="quantiles", isl={0.1: 100, 0.5: 800, 0.99: 9000},
                            osl={0.0: 1, 0.5: 200, 1.0: 4000}).moments()  # fmt: skip
    assert found.long_isl > found.isl
    assert found.past > found.isl + found.osl / 2


def test_equal_lengths_change_no_answer():
    plain = estimate_one(POINT | {"isl": 2000, "osl": 300})
    same = estimate_one(POINT | {"lengths": {"kind": "pairs", "pairs": [[2000, 300]] * 2}})
    assert same.model_dump() == plain.model_dump()


def test_a_plan_takes_lengths():
    asked = {"model": "qwen3-30b-a3b", "cluster": "dgx-h100", "choices": {"modes": ["agg"]}}
    spread = {"kind": "summary", "isl_tokens": 4000, "osl_tokens": 500,
              "isl_variation_ratio": 1.5, "osl_variation_ratio": 1.5,
              "correlation_ratio": 0.7}  # fmt: skip
    plain = make_plan(parse_scenario(asked | {"workload": {"isl": 4000, "osl": 500}}))
    found = make_plan(parse_scenario(asked | {"workload": {"lengths": spread}}))
    assert found.scenario.workload.isl == 4000
    assert found.output_tokens_per_s.typical < plain.output_tokens_per_s.typical
    again = parse_scenario(found.scenario.model_dump(mode="json"))
    assert again.workload == found.scenario.workload


def test_a_trace_file_is_summed_up(tmp_path):
    rows = "\n".join(f"{isl},{osl}" for isl, osl in ((100, 10), (3000, 500), (900, 90)))
    (tmp_path / "lengths.csv").write_text("num_prefill_tokens,num_decode_tokens\n" + rows)
    path = tmp_path / "question.yaml"
    path.write_text("model: qwen3-30b-a3b\ncluster: dgx-h100\n"
                    "workload: {lengths: {file: lengths.csv}}\n")  # fmt: skip
    workload = read_scenario(path).workload
    assert (workload.isl, workload.osl) == (1333, 200)
    assert workload.moments.long_isl > 2000


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"lengths": {"kind": "pairs", "pairs": [[10, 1]]}, "isl": 11, "osl": 1}, "one of them"),
        ({"lengths": {"kind": "pairs", "pairs": []}}, "pairs"),
        ({"lengths": {"kind": "quantiles", "isl": {0.5: 10, 0.9: 5}, "osl": {0: 1, 1: 2}}}, "fall"),
        ({"lengths": {"kind": "quantiles", "isl": {1.5: 10, 0: 5}, "osl": {0: 1, 1: 2}}}, "isl"),
        ({"lengths": {"kind": "heavy"}}, "kind"),
        ({"lengths": {"kind": "summary", "isl_tokens": 0, "osl_tokens": 5}}, "isl_tokens"),
    ],
)
def test_bad_lengths_are_named(extra, says):
    with pytest.raises(MoesaicError, match=says) as error:
        estimate_one(POINT | extra)
    assert error.value.kind == "invalid"


def simulated(pairs, path):
    """Seconds between two tokens and tokens a second (Little's law) of a closed loop."""
    path.write_text("num_prefill_tokens,num_decode_tokens\n"
                    + "\n".join(f"{isl},{osl}" for isl, osl in pairs))  # fmt: skip
    asked = {
        "name": "lengths", "model": POINT["model"], "cluster": POINT["cluster"], "backend": "vllm",
        "layout": {"tp": 2, "dp": 1, "moe_tp": 2, "moe_ep": 1}, "requests": 700, "seeds": 1,
        "load": {"kind": "closed", "concurrency": 16,
                 "lengths": {"isl": 8000, "osl": 800, "file": str(path)}},
    }  # fmt: skip
    log = RequestLog(None)
    run = run_once(prepare(SimulationQuestion.parse(asked, what="question")), "typical", 0, log,
                   None)  # fmt: skip
    table = log.close()
    found = measures(run, table, Slo())
    after = (table["finished_s"] - table["first_token_s"]).sum() / (table["osl_tokens"] - 1).sum()
    return after, 16 * table["osl_tokens"].mean() / found["e2e_mean_s"]


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """The simulator with all lengths at the mean, and the closed form beside it."""
    found = simulated([(8000, 800)], tmp_path_factory.mktemp("same") / "lengths.csv")
    return found, estimate_one(POINT | {"isl": 8000, "osl": 800})


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_closed_form_moves_as_the_simulator_does(uniform, correlation, tmp_path):
    """Long prompts with long answers slow decoding by a seventh; means alone would say nothing.

    Lognormal, 1.5 standard deviations over mean; TPOT and throughput move within 5 points.
    """
    random, spread = np.random.default_rng(1), np.sqrt(np.log(1 + 1.5**2))
    normal = random.normal(size=(4000, 2))
    normal[:, 1] = correlation * normal[:, 0] + np.sqrt(1 - correlation**2) * normal[:, 1]
    drawn = np.exp(spread * normal - spread**2 / 2) * [8000, 800]
    pairs = np.clip(drawn.round(), 1, 60_000).astype(int).tolist()
    (tpot, rate), plain = uniform
    slower, fewer = simulated(pairs, tmp_path / "lengths.csv")
    found = estimate_one(POINT | {"lengths": summed_up(pairs)})
    moved = found.tpot_s.typical / plain.tpot_s.typical
    assert moved == pytest.approx(slower / tpot, abs=0.05)
    kept = (found.output_tokens_per_s_per_device.typical
            / plain.output_tokens_per_s_per_device.typical)  # fmt: skip
    assert kept == pytest.approx(fewer / rate, abs=0.05)
