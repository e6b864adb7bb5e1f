"""Controllers on a real bursty trace: what attainment each buys with how much rank time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.simulation.autoscale import POLICIES
from planner.simulation.question import Figure, SimulationQuestion
from planner.simulation.simulate import simulate

RATES = {"boot_s": 52, "warm_up_s": 2.4, "disk_bytes_per_s": "0.67 GB/s"}


def run(shared: Path, dp: int, policy: str | None) -> dict[str, Figure]:
    """The first requests of Azure's coding trace, four times as fast as recorded."""
    file = shared / "data/traces/azure_llm/AzureLLMInferenceTrace_code.csv"
    data: dict[str, Any] = {
        "model": "qwen3-30b-a3b", "cluster": "dgx-h100", "layout": {"dp": dp, "tp": 1},
        "load": {"kind": "trace", "file": str(file), "speed_ratio": 4}, "requests": 2500,
        "slo": {"ttft_s": 5.0},
    }  # fmt: skip
    if policy is not None:
        data["scale_rates"] = RATES
        data["autoscale"] = {
            "policy": policy, "every_s": 10, "most": 4, "rank_request_rate": 4,
        }  # fmt: skip
    return simulate(SimulationQuestion.parse(data))[0].summary


@pytest.fixture(scope="module")
def found(shared: Path) -> dict[str, tuple[float, float]]:
    """SLO attainment and rank time of each policy and of fixed ranks."""
    runs = {policy: run(shared, 1, policy) for policy in POLICIES}
    runs |= {f"fixed {dp}": run(shared, dp, None) for dp in (1, 4)}
    return {name: (s["slo_attainment_ratio"].typical, s["rank_time_s"].typical)
            for name, s in runs.items()}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_controllers_lie_between_few_and_many_ranks(
    found: dict[str, tuple[float, float]], policy: str
) -> None:
    met, spent = found[policy]
    assert found["fixed 1"][0] < met <= found["fixed 4"][0] + 0.01
    assert found["fixed 1"][1] < spent < found["fixed 4"][1]


def test_looking_ahead_buys_most(found: dict[str, tuple[float, float]]) -> None:
    met = {policy: found[policy][0] for policy in POLICIES}
    assert met["forecast"] >= met["threshold"] > met["attainment"]
