"""Open-loop vLLM runs of Mixtral-8x7B on two H100 (github inference-sim/training), from the sheet.

What was asked is read from each run's results/config.yaml, as the load generator understood it:
the generator of that day (github kubernetes-sigs/inference-perf) didn't know the profile's
`num_unique_system_prompts` and took its defaults, ten system prompts with ten questions each. So
100 prompts come round and round, and vLLM's prefix cache holds them whole: prompt lengths have the
same mean, 570.68 and 589.41 tokens, in stages of 3,000 to 12,000 requests. The "constant" rate
draws exponential gaps and scales them to the duration (loadgen/load_timer.py). Iterations are
planned ahead, the default of vLLM 0.15.1, on which the run's image was built (github
inference-sim/vllm, Dockerfile.fork). Nothing is fitted to these runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from planner.formats.request import Request
from planner.simulation.question import SimulationQuestion
from planner.simulation.serving import Pool, Serving
from planner.simulation.simulate import Prepared, prepare

GROUPS, PROMPTS = 10, 100
SYSTEM_TOKENS, BLOCK_TOKENS = 100, 16
PROMPT_TOKENS = {"codegen": 589, "general": 571}  # stage_*_lifecycle_metrics.json, prompt_len mean
RUNS = {
    "120914-mixtral-8x7b-v0-1-tp2-codegen-s0": 5,
    "120914-mixtral-8x7b-v0-1-tp2-codegen-s1": 10,
    "130541-mixtral-8x7b-v0-1-tp2-general-s0": 8,
    "130541-mixtral-8x7b-v0-1-tp2-general-s1": 20,
}


@cache
def engine(isl: int, osl: int) -> Prepared:
    return prepare(
        SimulationQuestion.parse({
            "model": "mixtral-8x7b", "cluster": "dgx-h100",
            "backend": "vllm", "backend_version": "0.15.1",
            "layout": {"tp": 2, "moe_tp": 2, "moe_ep": 1},
            "engine": {"max_num_seqs": 128, "max_num_batched_tokens": 2048,
                       "prefix_cache": True, "async_scheduling": True},
            "load": {"kind": "poisson", "request_rate": 1, "lengths": {"isl": isl, "osl": osl}},
            "requests": 1,
        })
    )  # fmt: skip


def blocks_of(prompt: int, isl: int) -> tuple[int, ...]:
    """Names of a prompt's whole KV blocks: those of its system prompt, then its question's."""
    shared = SYSTEM_TOKENS // BLOCK_TOKENS
    system = range(prompt % GROUPS * shared, (prompt % GROUPS + 1) * shared)
    first = GROUPS * shared + prompt * isl
    return (*system, *range(first, first + isl // BLOCK_TOKENS - shared))


def arrivals(rate: float, isl: int, osl: int, seconds: float = 600) -> Iterator[Request]:
    random = np.random.default_rng(0)
    prompts = [blocks_of(int(prompt), isl) for prompt in random.permutation(PROMPTS)]
    gaps = random.exponential(1 / rate, int(rate * seconds))
    for number, arrival_s in enumerate(np.cumsum(gaps * seconds / gaps.sum())):
        yield Request(float(arrival_s), isl, osl, prompts[number % PROMPTS], BLOCK_TOKENS)


def errors(shared: Path, name: str) -> tuple[float, float]:
    """Relative errors of mean latency and of the 90th percentile of TTFT."""
    table = pl.read_csv(shared / "data/measured/serving.csv", infer_schema_length=0)
    rows = table.filter(pl.col("id").str.contains(name, literal=True))
    real = {row["metric"]: float(row["value"]) for row in rows.iter_rows(named=True)}
    workload = name.split("-")[-2]
    isl, osl = PROMPT_TOKENS[workload], int(rows["osl"][0])
    found = re.match(r"rate (\d+)", rows["batch_or_concurrency"][0])
    assert found is not None
    assert float(found[1]) == RUNS[name]
    ready = engine(isl, osl)
    pool = Pool(replace(ready.limits), ready.steps.seconds("typical"))
    requests = Serving(pool, arrivals(RUNS[name], isl, osl)).run().log.close()
    e2e_s = float(requests["e2e_s"].mean())  # type: ignore[arg-type]
    ttft_s = float(requests["ttft_s"].quantile(0.9))  # type: ignore[arg-type]
    return e2e_s / real["mean_e2e"] - 1, ttft_s / real["p90_ttft"] - 1


@pytest.mark.parametrize("name", RUNS)
def test_latency_and_first_token(shared: Path, name: str) -> None:
    e2e, ttft = errors(shared, name)
    assert abs(e2e) < 0.12
    assert abs(ttft) < 0.30
