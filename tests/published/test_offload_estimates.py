"""Estimates with experts on storage or beside a processor, against SmallThinker and KTransformers.

Storage: two numbers fitted on the i9-14900K (arXiv:2507.20984, Tables 4 to 7). Host: one number of
the engine fitted on the decode rows of one socket (KTransformers v0.2). The rest is predicted.
"""

import pytest

from planner.estimate import estimate_one
from planner.offload import offload_fit
from planner.validation.offload_fit import fit_offload
from planner.validation.papers import paper_figures


def named(*parts):
    return [name for name in paper_figures() if all(part in name for part in parts)]


@pytest.mark.parametrize("name", named("st-", "-limited-"))
def test_limited_memory_within_5_percent(error_of, name):
    """8 GiB for the 21B and 1 GiB for the 4B model; reached: at most 4.1 % (21B on the phone)."""
    assert abs(error_of(name)) < 0.05


@pytest.mark.parametrize("name", named("st-", "-memory-"))
def test_in_memory_within_30_percent(error_of, name):
    """No number of these devices is fitted; reached: at most 27 % (Qwen3-30B on the phone)."""
    assert abs(error_of(name)) < 0.30


def test_the_form_of_waiting_is_chosen_by_evidence():
    """Waiting in series errs by 4 % on machines not fitted on, hiding behind attention by 8 %,
    full overlap by 21 %."""
    fit, shipped = fit_offload(), offload_fit()
    assert shipped.popularity_exponent == pytest.approx(fit.popularity_exponent, abs=1e-3)
    assert shipped.storage_share == pytest.approx(fit.storage_share, abs=1e-3)
    errors = shipped.held_out_ratio
    assert shipped.waiting == min(errors, key=errors.__getitem__) == "serial"
    assert errors["serial"] < 0.05 < errors["prefetch"] < errors["overlapped"]


def board(rate):
    """The 4B model in 1 GiB on an RK3588 with another storage."""
    point = paper_figures()["st-4-limited-rk3588"].point
    away = point["offload"] | {"storage_bytes_per_s": rate}
    return estimate_one(point | {"offload": away})


def test_a_slow_board_is_told_apart_from_a_fast_one():
    """NVMe class keeps its 15 tokens/s; SD and eMMC cards (0.1 to 0.4 GB/s) collapse."""
    fast = estimate_one(paper_figures()["st-4-limited-rk3588"].point)
    assert 1 / fast.tpot_s.typical == pytest.approx(15.04, rel=0.05)
    for rate, most in ((0.4e9, 6), (0.1e9, 2)):
        slow = board(rate)
        assert 1 / slow.tpot_s.typical < most
        assert slow.offload.waiting_share > 0.8
        assert any("is the bottleneck" in text for text in slow.assumptions)


@pytest.mark.parametrize("name", named("kt-", "-decode"))
def test_ktransformers_decode_within_10_percent(error_of, name):
    """One and two sockets, 8 and 6 experts, v0.2 and v0.2.1, 500 to 7,678 tokens of context."""
    assert abs(error_of(name)) < 0.10


@pytest.mark.parametrize("name", named("kt-02-single", "-prefill"))
def test_ktransformers_prefill_on_one_socket_within_15_percent(error_of, name):
    assert abs(error_of(name)) < 0.15


@pytest.mark.xfail(
    strict=True,
    reason="reached -17 to -36 %: fp32 vectors on two sockets run at the rate of 1.5, and from "
    "3,800 tokens on the published runs slow down again",
)
@pytest.mark.parametrize("name", [*named("kt-02-dual", "-prefill"), *named("kt-021", "-prefill")])
def test_ktransformers_prefill_on_two_sockets_within_15_percent(error_of, name):
    assert abs(error_of(name)) < 0.15
