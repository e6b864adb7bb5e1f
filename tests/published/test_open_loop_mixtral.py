"""Open-loop vLLM runs of Mixtral-8x7B on two H100 (github inference-sim/training), from the sheet.

The load generator's "constant" rate draws exponential gaps and scales them to the duration (github
kubernetes-sigs/inference-perf, loadgen/load_timer.py). Prompts are a shared system prompt (11 of
them, 100 tokens) and a question, so the prefix cache holds the system prompts; iterations are
planned ahead, vLLM's default at the time. Nothing is fitted to these runs.
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

SYSTEM_PROMPTS, SYSTEM_TOKENS = 11, 96  # of 100 tokens, six whole KV blocks are shared
RUNS = {
    "120914-mixtral-8x7b-v0-1-tp2-codegen-s0": 5,
    "120914-mixtral-8x7b-v0-1-tp2-codegen-s1": 10,
    "130541-mixtral-8x7b-v0-1-tp2-general-s0": 8,
    "130541-mixtral-8x7b-v0-1-tp2-general-s1": 20,
}
NEAR_SATURATION = "130541-mixtral-8x7b-v0-1-tp2-general-s1"


@cache
def engine(isl: int, osl: int) -> Prepared:
    return prepare(
        SimulationQuestion.parse({
            "model": "mixtral-8x7b", "cluster": "dgx-h100", "backend": "vllm",
            "layout": {"tp": 2, "moe_tp": 2, "moe_ep": 1},
            "engine": {"max_num_seqs": 128, "max_num_batched_tokens": 2048,
                       "prefix_cache": True, "async_scheduling": True},
            "load": {"kind": "poisson", "request_rate": 1, "lengths": {"isl": isl, "osl": osl}},
            "requests": 1,
        })
    )  # fmt: skip


def arrivals(rate: float, isl: int, osl: int, seconds: float = 600) -> Iterator[Request]:
    random = np.random.default_rng(0)
    gaps = random.exponential(1 / rate, int(rate * seconds))
    for number, arrival_s in enumerate(np.cumsum(gaps * seconds / gaps.sum())):
        prompt = (number % SYSTEM_PROMPTS,)
        yield Request(float(arrival_s), isl, osl, prompt, SYSTEM_TOKENS)


def errors(shared: Path, name: str) -> tuple[float, float]:
    """Relative errors of mean latency and of the 90th percentile of TTFT."""
    table = pl.read_csv(shared / "data/measured/serving.csv", infer_schema_length=0)
    rows = table.filter(pl.col("id").str.contains(name, literal=True))
    real = {row["metric"]: float(row["value"]) for row in rows.iter_rows(named=True)}
    isl, osl = int(rows["isl"][0]), int(rows["osl"][0])
    found = re.match(r"rate (\d+)", rows["batch_or_concurrency"][0])
    assert found is not None
    assert float(found[1]) == RUNS[name]
    ready = engine(isl, osl)
    pool = Pool(replace(ready.limits), ready.steps.seconds("typical"))
    requests = Serving(pool, arrivals(RUNS[name], isl, osl)).run().log.close()
    e2e_s = float(requests["e2e_s"].mean())  # type: ignore[arg-type]
    ttft_s = float(requests["ttft_s"].quantile(0.9))  # type: ignore[arg-type]
    return e2e_s / real["mean_e2e"] - 1, ttft_s / real["p90_ttft"] - 1


SLOW = pytest.mark.xfail(
    strict=True,
    reason="reached +74 %: at 20 requests/s the engine holds 115 of its 128 sequences, and 16-bit "
    "experts, of which the fitted layer saw few runs, come out slow enough for a queue to grow",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW) if n == NEAR_SATURATION else n for n in RUNS]
)
def test_latency_and_first_token(shared: Path, name: str) -> None:
    e2e, ttft = errors(shared, name)
    assert abs(e2e) < 0.12
    # At 20 requests/s the engine holds 115 of its 128 sequences: steps that are 10 % slow fill it
    # now and then, and the first token then waits for a slot. The mean holds, that tail does not.
    if name != NEAR_SATURATION:
        assert abs(ttft) < 0.30
