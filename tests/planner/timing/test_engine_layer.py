"""The fitted layer weighs parts; where nothing was fitted, physics answers alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.library import load_device
from planner.engines import load_engine
from planner.model_library import load_model
from planner.timing.engine_layer import Term, find_layer, load_fit, polls_on, shape_of
from planner.timing.parts import Load, Parts, exponents, held_up_share, ttft_parts


def test_the_shipped_fit_names_its_rows():
    fit = load_fit()
    assert fit is not None
    assert fit.tpot.rows_count > 1000
    assert 0 < fit.tpot.held_out_median_ratio < 0.15
    assert {"any"} <= set(fit.ttft.known)


@pytest.mark.parametrize(
    ("engine", "device", "fitted"),
    [("sglang", "b200-sxm", True), ("vllm", "h100-sxm", True), ("mindie", "ascend-a3-die", True),
     ("mindie", "h100-sxm", False),
     ("llama-cpp", "b200-sxm", False)],
)  # fmt: skip
def test_only_fitted_engines_on_fitted_machines(engine, device, fitted):
    found = find_layer(load_engine(engine), load_device(device), "", "fp8")
    assert (found is not None) == fitted


def test_what_was_not_fitted_has_the_intervals_of_what_was_left_out():
    engine, known = load_engine("sglang", "0.5.9"), shape_of(load_model("deepseek-r1"))
    fit = load_fit()
    assert fit is not None
    spreads = {
        "known": find_layer(engine, load_device("gb200"), known, "fp8"),
        "model": find_layer(engine, load_device("gb200"), "90x1-dense", "fp8"),
        "machine": find_layer(engine, load_device("l40s"), known, "fp8"),
        "version": find_layer(load_engine("sglang", "0.9.1"), load_device("gb200"), known, "fp8"),
    }
    tpot = {what: layer.tpot for what, layer in spreads.items() if layer is not None}
    assert tpot["model"] == tpot["version"] == fit.tpot.known["new model"]
    assert tpot["machine"] == fit.tpot.known["new machine"]
    assert tpot["known"] == fit.tpot.known["any"]


def test_checkpoints_of_equal_sizes_are_one_model():
    assert shape_of(load_model("deepseek-r1")) == shape_of(load_model("deepseek-v3"))
    assert shape_of(load_model("kimi-k2")) != shape_of(load_model("deepseek-v3"))


def test_terms_hold_where_their_label_does():
    terms = [Term(on="all", where="sglang", log_ratio=0.5), Term(on="all", log_ratio=0.1)]
    features = {"1": np.ones(1)}
    assert exponents(terms, frozenset({"any"}), features, "all")[0] == pytest.approx(0.1)
    assert exponents(terms, frozenset({"any", "sglang"}), features, "all")[0] == pytest.approx(0.6)


def test_no_terms_is_the_sum_of_parts():
    parts = Parts({"a": np.array([1.0]), "b": np.array([2.0])}, {"1": np.ones(1)})
    assert parts.total((), frozenset({"any"}))[0] == pytest.approx(3)


@given(st.floats(0.01, 1000), st.integers(1, 10_000), st.integers(1, 64))
def test_prompts_of_others_hold_up_no_more_than_all_of_them(batch, osl, ranks):
    share = held_up_share(np.array([batch]), np.array([osl]), np.array([ranks]))[0]
    others = max(batch - 1 / ranks, 0) / osl
    assert share <= max(others * ranks, others) * (1 + 1e-9)
    assert share >= min(others, 1) * (1 - 1e-9)


def test_nobody_holds_up_a_single_caller():
    assert held_up_share(np.ones(1), np.full(1, 100.0), np.ones(1))[0] == 0


def waits(callers, median=0.0, open_loop=0.0, poll_passes=0.0):
    one = np.ones(1)
    load = Load(
        callers=callers * one, per_rank=callers * one, isl=8192 * one, prompt_s=0.2 * one,
        step_s=0.01 * one, launches=0 * one, ranks=one, pooled=0 * one, rides=one,
        busy=0.5 * one, open_loop=open_loop * one, uneven=one, osl=1024 * one,
        poll_passes=poll_passes * one,
    )  # fmt: skip
    return ttft_parts(load, median).seconds


def test_the_first_wave_has_half_of_its_prompts_ahead():
    assert waits(1)["wave"][0] == 0
    assert waits(21)["wave"][0] == pytest.approx(0.1 * 10 * (0.2 + 0.01))


def test_a_median_request_meets_no_wave():
    assert waits(64, 1.0)["wave"][0] == 0
    assert waits(64, 1.0)["prompt"] == waits(64)["prompt"]


def test_in_an_open_loop_prompts_queue_and_no_wave_comes():
    alone = waits(64, open_loop=1.0)
    assert alone["queue"][0] == pytest.approx(0.5 / (2 * 0.5) * 0.2)
    assert alone["queue"] == waits(1, open_loop=1.0)["queue"]
    assert alone["wave"][0] == alone["cold"][0] == 0


def test_an_engine_that_seldom_looks_lets_prompts_wait_and_meet():
    assert waits(64)["poll"][0] == 0
    met = 64 * 30 / 1024  # requests that end, and come back, between two looks
    assert waits(64, poll_passes=30.0)["poll"][0] == pytest.approx((30 * 0.01 + met * 0.2) / 2)


def test_sglang_on_blackwell_seldom_looks_and_elsewhere_always():
    engine = load_engine("sglang")
    assert [p.passes for p in polls_on(engine, load_device("b200-sxm"))] == [10, 30]
    assert polls_on(engine, load_device("h200-sxm")) == ()
