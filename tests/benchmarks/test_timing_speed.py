"""How fast kernel rows are timed and a profile is opened; printed, never asserted."""

import json
import random
import time

import pytest

from hwprofiles.timing import profile
from hwprofiles.timing.bulk import answer_block

pytestmark = pytest.mark.benchmark
ROWS = 100_000


def lines():
    shapes = [(7168, 2112), (1536, 24576), (2048, 7168), (16384, 7168), (7168, 4096)]
    for i in range(ROWS):
        k, n = shapes[i % len(shapes)]
        yield json.dumps(
            {"id": i, "device": "h200-sxm", "backend": "sglang", "kernel": "gemm",
             "m": i % 8192 + 1, "n": n, "k": k, "dtype": "fp8_block"}
        )  # fmt: skip


def test_rows_of_time_batch(benchmark):
    texts = "\n".join(lines()).encode()
    assert benchmark(answer_block, texts) is not None
    benchmark.extra_info["rows_per_s"] = ROWS / benchmark.stats["mean"]


MODELS = (
    (7168, 2048, 256, 8, 128, 128, 128), (2048, 768, 128, 8, 32, 4, 128),
    (4096, 1536, 128, 8, 64, 4, 128), (4096, 14336, 8, 2, 32, 8, 128),
    (6144, 16384, 8, 2, 48, 8, 128), (2880, 2880, 128, 4, 64, 8, 64),
    (5120, 1408, 64, 6, 40, 8, 128), (3072, 1024, 256, 8, 48, 8, 128),
)  # fmt: skip
"""hidden, expert width, experts, top k, heads, key-value heads, head width"""


FEW = ("h200-sxm", "h100-sxm", "b200-sxm")
ALL = (*FEW, "a100-sxm-80g", "l40s", "gb200", "gb300", "b300-sxm", "rtx-pro-6000")


def mixed_lines(count, devices=FEW, *, generated=False):
    """Kernels of eight models under three engines, loads drawn; with `generated` widths, too.

    On all nine machines some formats have no peak (fp8 on A100): such lines say so.
    """
    draw = random.Random(1)
    for number in range(count):
        hidden, inter, experts, top_k, heads, kv_heads, width = draw.choice(MODELS)
        if generated:
            hidden, inter = 256 * draw.randint(4, 64), 128 * draw.randint(4, 160)
        tp, line = draw.choice((1, 2, 4)), {"id": number}
        line |= {"device": draw.choice(devices),
                 "backend": draw.choice(("trtllm", "sglang", "vllm"))}  # fmt: skip
        kinds = {
            "gemm": {"m": draw.randint(1, 8192), "n": draw.choice((hidden, 2 * inter)),
                     "k": hidden, "dtype": draw.choice(("bf16", "fp8"))},
            "grouped_gemm": {"tokens": draw.randint(1, 8192), "hidden": hidden, "inter": inter,
                             "experts": experts, "top_k": top_k, "moe_tp": 1,
                             "moe_ep": draw.choice((1, 2, 4, 8)), "dtype": "bf16",
                             "skew": draw.choice(("balanced", {"power_law": 1.2}))},
            "attention_prefill": {"batch": draw.randint(1, 64), "seq": draw.randint(64, 8192),
                                  "heads": heads // tp, "kv_heads": max(1, kv_heads // tp),
                                  "head_dim": width, "dtype": "bf16", "kv_dtype": "bf16"},
            "mla_decode": {"batch": draw.randint(1, 64), "seq": draw.randint(64, 8192),
                           "heads": 128 // tp, "dtype": "bf16", "kv_dtype": "bf16"},
            "all_reduce": {"devices": draw.choice((2, 4, 8)),
                           "message_bytes": draw.randint(1024, 2**27), "dtype": "bf16"},
            "moe_dispatch": {"devices": 8, "tokens": draw.randint(1, 4096), "hidden": hidden,
                             "top_k": top_k, "experts": experts, "dtype": "fp8"},
        }  # fmt: skip
        kinds["attention_decode"] = kinds["attention_prefill"]
        kinds["all_to_all"] = kinds["all_reduce"]
        kinds["moe_combine"] = kinds["moe_dispatch"]
        kernel = draw.choices(list(kinds), (33, 18, 10, 5, 6, 5, 14, 4, 5))[0]
        yield json.dumps(line | {"kernel": kernel} | kinds[kernel])


@pytest.mark.parametrize(
    ("devices", "generated"), [(FEW, False), (ALL, False), (FEW, True)],
    ids=["three machines", "nine machines", "drawn widths"],
)  # fmt: skip
def test_rows_of_a_mix(benchmark, devices, generated):
    """On one core: POLARS_MAX_THREADS=1 OMP_NUM_THREADS=1; processor time, others may be busy."""
    blob = "\n".join(mixed_lines(2 * ROWS, devices, generated=generated)).encode()
    assert answer_block(blob) is not None
    spent = []

    def answered():
        start = time.process_time()
        answer_block(blob)
        spent.append(time.process_time() - start)

    benchmark.pedantic(answered, rounds=4)
    benchmark.extra_info["rows_per_processor_s"] = round(2 * ROWS / min(spent))


def test_a_profile_is_opened(benchmark):
    def opened():
        for cached in (profile.load_profile, profile.find, profile._arrays, profile._table):
            cached.cache_clear()
        return profile.find("h200-sxm", "trtllm", "gemm", (("dtype", "bf16"),))

    assert benchmark(opened) is not None
