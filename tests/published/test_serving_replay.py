"""A real vLLM run, request by request, replayed from measured layers.

Truth: vLLM 0.19.0, Qwen3-30B-A3B, DP2 + EP2 on two RTX PRO 6000, 300 ShareGPT requests (github
casys-kaist/LLMServingSim). Layers: the same project's profile of the same machine. Exchange: NCCL
rows of two RTX PRO 6000 (github ai-dynamo/aiconfigurator). The host's part of a step is the one
unknown; it is read off the run's last full second, in which a single sequence decodes, and nothing
else is fitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from planner.formats.layer_profile import read_layer_profile
from planner.formats.request import Request
from planner.simulation.measured_steps import HostCosts, LayerCounts, MeasuredSteps
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Pool, Serving
from planner.simulation.step_seconds import Iteration

RUN = "data/traces/llmservingsim_rtxpro6000_qwen3moe"
PROFILE = (
    "data/peers/llmservingsim/profiler/perf/RTXPRO6000/Qwen/Qwen3-30B-A3B-Instruct-2507/bf16/tp1"
)
COUNTS = LayerCounts(layers=48, hidden=2048, experts=128, top_k=8)
GRAPH_TOKENS = 512  # vLLM's largest captured batch, compilation_config.max_cudagraph_capture_size


def collectives(shared: Path) -> pl.DataFrame:
    rows = pl.read_csv(shared / "data/measured/collectives.csv", infer_schema_length=0)
    return rows.filter(
        pl.col("id").str.contains("rtx_pro_6000_server-(all_gather|reduce_scatter)-2-")
    ).select(
        collective=pl.col("phase"),
        message_bytes=pl.col("batch_or_concurrency").str.extract(r"^(\d+) B").cast(pl.Float64),
        time_s=pl.col("value").cast(pl.Float64) / 1e6,
    )


def host_s(shared: Path, steps: MeasuredSteps) -> float:
    """Step time of a lone sequence in the run's last full second, less its kernels."""
    seconds = pl.read_csv(shared / RUN / "timeseries.csv")
    alone = seconds.filter(
        (pl.col("running") == 1) & (pl.col("running").shift(1) == 1) & (pl.col("waiting") == 0)
    )
    assert alone.height == 1
    step_s = 1 / float(alone["gen_throughput"][0])
    one = Iteration(decode_sequences=1, decode_context_tokens=1500)
    return step_s - steps([one, Iteration()])


@pytest.fixture(scope="module")
def replay(shared: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    truth = [
        json.loads(line) for line in (shared / RUN / "requests.jsonl").read_text().splitlines()
    ]

    def requests() -> Iterator[Request]:
        start = truth[0]["arrival_time"]
        for row in truth:
            yield Request(row["arrival_time"] - start, row["input_toks"], row["output_toks"])

    profile, exchange = read_layer_profile(shared / PROFILE), collectives(shared)
    bare = MeasuredSteps(profile, COUNTS, exchange, HostCosts(0.0, GRAPH_TOKENS))
    host = HostCosts(host_s(shared, bare), GRAPH_TOKENS)
    assert 0.002 < host.step_s < 0.005
    meta = json.loads((shared / RUN / "meta.json").read_text())["engine_kwargs"]
    limits = EngineLimits(
        max_num_seqs=meta["max_num_seqs"],
        max_num_batched_tokens=meta["max_num_batched_tokens"],
        kv_blocks=20_000,  # never short: the run's kv_cache_pct stays near zero
        async_scheduling=True,
    )
    steps = MeasuredSteps(profile, COUNTS, exchange, host)
    run = Serving(Pool(limits, steps, dp=meta["data_parallel_size"]), requests()).run()
    table = run.log.close().sort("request_index")
    first, last = table["first_token_s"].to_numpy(), table["finished_s"].to_numpy()
    taken = table["queued_s"].to_numpy()  # vLLM's clock starts when the engine takes a request
    simulated = {"ttft": first - taken, "tpot": table["tpot_s"].to_numpy(), "e2e": last - taken}
    stamp = {
        key: np.array([row[key] for row in truth])
        for key in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
    }
    decode = stamp["last_token_ts"] - stamp["first_token_ts"]
    real = {
        "ttft": stamp["first_token_ts"] - stamp["queued_ts"],
        "tpot": decode / (stamp["output_toks"] - 1),
        "e2e": stamp["last_token_ts"] - stamp["queued_ts"],
    }
    return simulated, real


def test_ttft_median(replay: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    simulated, real = replay
    assert np.median(simulated["ttft"]) == pytest.approx(np.median(real["ttft"]), rel=0.10)


def test_ttft_tail(replay: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    simulated, real = replay
    assert simulated["ttft"].mean() == pytest.approx(real["ttft"].mean(), rel=0.10)
    for share in (0.9, 0.95, 0.99):
        assert np.quantile(simulated["ttft"], share) == pytest.approx(
            np.quantile(real["ttft"], share), rel=0.15
        )


def test_tpot_and_latency(replay: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    simulated, real = replay
    assert simulated["tpot"].mean() == pytest.approx(real["tpot"].mean(), rel=0.03)
    assert simulated["e2e"].mean() == pytest.approx(real["e2e"].mean(), rel=0.03)
    worst = np.abs(simulated["e2e"] / real["e2e"] - 1)
    assert np.quantile(worst, 0.9) < 0.10
