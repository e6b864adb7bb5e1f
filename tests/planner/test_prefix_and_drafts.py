"""Cached prompts and multi-token prediction in `estimate`: they do what their numbers say."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.estimate import estimate_one
from planner.pipeline import make_plan, parse_scenario

POINT = {"model": "deepseek-v3", "cluster": "dgx-h200", "backend": "sglang", "tp": 8, "isl": 4000,
         "osl": 500, "concurrency": 32}  # fmt: skip


def ttft(**changed):
    return estimate_one(POINT | changed).ttft_s.typical


def test_cached_prompts_answer_sooner():
    waits = [ttft(prefix_tokens=tokens) for tokens in (0, 1000, 3000)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < 0.6 * waits[0]


def test_half_the_hits_are_half_the_cached_tokens():
    half = estimate_one(POINT | {"prefix_tokens": 2000, "prefix_hit_ratio": 0.5})
    same = estimate_one(POINT | {"prefix_tokens": 1000})
    assert half.model_dump() == same.model_dump()
    assert ttft(prefix_tokens=2000, prefix_hit_ratio=0.0) == ttft()


def test_a_pool_elsewhere_takes_time():
    local = ttft(prefix_tokens=3000)
    far = [ttft(prefix_tokens=3000, prefix_bytes_per_s=rate) for rate in ("50 GB/s", "0.1 GB/s")]
    assert local < far[0] < far[1]
    assert ttft(prefix_bytes_per_s="0.1 GB/s") == ttft()
    with pytest.raises(MoesaicError, match="above zero"):
        ttft(prefix_tokens=3000, prefix_bytes_per_s=0)


def test_drafts_gain_with_acceptance():
    def rate(**changed):
        return estimate_one(POINT | changed).output_tokens_per_s_per_device.typical

    rates = [rate(mtp_tokens=1, mtp_acceptance=share) for share in (0.0, 0.4, 0.7, 1.0)]
    assert rates == sorted(rates)
    assert rates[0] < rate() < rates[-1]  # drafts that are never right only cost


def test_a_plan_knows_of_both():
    asked = {"model": "qwen3-30b-a3b", "cluster": "dgx-h100", "choices": {"modes": ["agg"]}}
    load = {"isl": 4000, "osl": 500}
    plain = make_plan(parse_scenario(asked | {"workload": load}))
    cached = make_plan(parse_scenario(
        asked | {"workload": load | {"prefix_tokens": 3000, "prefix_hit_ratio": 0.8}}
    ))  # fmt: skip
    assert cached.output_tokens_per_s.typical > plain.output_tokens_per_s.typical
