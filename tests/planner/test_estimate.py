"""Lines in, lines out: same order, errors in place, one formula with plan."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.estimate import estimate_many, estimate_one

LINE = {"id": "a", "model": "qwen3-30b-a3b", "device": "h100-sxm", "backend": "vllm", "tp": 2,
        "isl": 1000, "osl": 500, "concurrency": 16}  # fmt: skip


def test_order_and_errors_are_kept():
    lines = [LINE, {"id": "b"}, LINE | {"id": "c", "tp": 3}, LINE | {"id": "d", "concurrency": 64},
             "nonsense", LINE | {"id": "e", "zzz": 1}]  # fmt: skip
    answers = estimate_many(lines)
    assert [a.id for a in answers] == ["a", "b", "c", "d", "", "e"]
    assert [a.error is None for a in answers] == [True, False, False, True, False, False]
    assert "32 query heads" in answers[2].error.message
    assert answers[0] == estimate_one(LINE)


def test_a_batch_answers_like_single_lines():
    lines = [LINE | {"id": str(i), "concurrency": c} for i, c in enumerate((1, 8, 100))]
    assert estimate_many(lines) == [estimate_one(line) for line in lines]


def test_request_rate_finds_its_concurrency():
    rate = estimate_one({k: v for k, v in LINE.items() if k != "concurrency"} | {"request_rate": 2})
    per_second = rate.output_tokens_per_s_per_device.typical * 2 / 500
    assert per_second == pytest.approx(2, rel=1e-3)


def test_an_impossible_rate_says_what_is_possible():
    line = {k: v for k, v in LINE.items() if k != "concurrency"} | {"request_rate": 1e6}
    with pytest.raises(MoesaicError, match="above what the worker serves"):
        estimate_one(line)


def test_disaggregated_pools():
    answer = estimate_one(
        LINE | {"mode": "disagg", "prefill": {"tp": 1, "workers": 2},
                "decode": {"tp": 2, "batch": 32}, "concurrency": None}
    )  # fmt: skip
    assert answer.ttft_s.low <= answer.ttft_s.typical <= answer.ttft_s.high
    assert answer.fits


def test_what_does_not_fit_says_so():
    answer = estimate_one(LINE | {"model": "deepseek-v3", "tp": 2})
    assert answer.fits is False
    assert any("more than the device has" in text for text in answer.assumptions)


def test_too_many_devices_for_a_given_cluster():
    with pytest.raises(MoesaicError, match="needs 16 devices; dgx-h100 has 8"):
        estimate_one(LINE | {"cluster": "dgx-h100", "tp": 8, "dp": 2})
