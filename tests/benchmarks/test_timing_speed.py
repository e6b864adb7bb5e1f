"""How fast kernel rows are timed and a profile is opened; printed, never asserted."""

import json

import pytest

from hwprofiles.timing import profile
from hwprofiles.timing.bulk import answer_block

pytestmark = pytest.mark.benchmark
ROWS = 50_000


def lines():
    shapes = [(7168, 2112), (1536, 24576), (2048, 7168), (16384, 7168), (7168, 4096)]
    for i in range(ROWS):
        k, n = shapes[i % len(shapes)]
        yield json.dumps(
            {"id": i, "device": "h200-sxm", "backend": "sglang", "kernel": "gemm",
             "m": i % 8192 + 1, "n": n, "k": k, "dtype": "fp8_block"}
        )  # fmt: skip


def test_rows_of_time_batch(benchmark):
    texts = list(lines())
    assert benchmark(answer_block, texts) is not None
    benchmark.extra_info["rows_per_s"] = ROWS / benchmark.stats["mean"]


def test_a_profile_is_opened(benchmark):
    def opened():
        for cached in (profile.load_profile, profile.find, profile._arrays, profile._table):
            cached.cache_clear()
        return profile.find("h200-sxm", "trtllm", "gemm", (("dtype", "bf16"),))

    assert benchmark(opened) is not None
