"""The fitted layer weighs parts; where nothing was fitted, physics answers alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.library import load_device
from planner.engines import load_engine
from planner.timing.engine_layer import (
    Parts,
    Term,
    exponents,
    find_layer,
    held_up_share,
    load_fit,
    median_over_mean,
)


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
    found = find_layer(load_engine(engine), load_device(device), "fp8")
    assert (found is not None) == fitted


def test_terms_hold_where_their_label_does():
    terms = [Term(on="all", where="sglang", log_ratio=0.5), Term(on="all", log_ratio=0.1)]
    features = {"1": np.ones(1)}
    assert exponents(terms, frozenset({"any"}), features, "all")[0] == pytest.approx(0.1)
    assert exponents(terms, frozenset({"any", "sglang"}), features, "all")[0] == pytest.approx(0.6)


def test_no_terms_is_the_sum_of_parts():
    parts = Parts({"a": np.array([1.0]), "b": np.array([2.0])}, {"1": np.ones(1)})
    assert parts.total((), frozenset({"any"}))[0] == pytest.approx(3)


@given(st.floats(0.01, 1000), st.integers(1, 10_000), st.integers(1, 64))
def test_a_prompt_holds_up_no_less_than_its_own_rank_and_no_more_than_all(batch, osl, ranks):
    share = held_up_share(np.array([batch]), np.array([osl]), np.array([ranks]))[0]
    rate = batch / osl
    assert share <= max(rate * ranks, rate) * (1 + 1e-9)
    assert share >= min(rate, 1) * (1 - 1e-9)


def test_a_median_wait_is_below_the_mean_where_many_call():
    assert 0.1 < median_over_mean("sglang", 64) < 1
