"""SmallThinker's memory-limited decode (technical report, tables 4 to 7) from cache and storage.

Per device one number is fitted, storage bandwidth over the 4B model's miss ratio; over all devices
one, the miss ratio of the 21B model over that of the 4B model, from the i9 alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.simulation.offload import OffloadCosts, build_cache, cache_misses, token_seconds

MATRICES = {"21B": 3 * 6 * 52, "4B": 3 * 4 * 32}  # a token's expert matrices: 3 x top-k x layers
MATRIX_BYTES = {"21B": 2560 * 768 * 0.5625, "4B": 1536 * 768 * 0.5625}  # Q4_0
RATES = {  # tokens a second: in memory, limited
    "i9-14900K": {"21B": (30.19, 20.30), "4B": (108.17, 29.99)},
    "OnePlus 13": {"21B": (23.03, 15.50), "4B": (78.99, 20.91)},
    "RK3588": {"21B": (10.84, 8.56), "4B": (39.76, 15.04)},
}


def limited_rate(device: str, model: str, miss: float, bandwidth: float) -> float:
    """Tokens a second with a miss ratio, nothing hidden (the published runs look serial)."""
    memory_s = 1 / RATES[device][model][0]
    misses = np.array([[miss * MATRICES[model]]])
    costs = OffloadCosts(0.0, 0.0, memory_s, MATRIX_BYTES[model], bandwidth, prefetch=False)
    return float(1 / token_seconds(misses, costs)[0])


def stall_s(device: str, model: str) -> float:
    memory, limited = RATES[device][model]
    return 1 / limited - 1 / memory


def token_bytes(model: str) -> float:
    return MATRICES[model] * MATRIX_BYTES[model]


def bandwidth_over_miss(device: str) -> float:
    return token_bytes("4B") / stall_s(device, "4B")


@pytest.mark.parametrize("device", ["OnePlus 13", "RK3588"])
def test_limited_throughput_of_the_21b_model(device: str) -> None:
    at_i9 = bandwidth_over_miss("i9-14900K")
    ratio = stall_s("i9-14900K", "21B") * at_i9 / token_bytes("21B")
    rate = limited_rate(device, "21B", ratio, bandwidth_over_miss(device))
    assert rate == pytest.approx(RATES[device]["21B"][1], rel=0.05)


def test_slow_cards_collapse() -> None:
    """SD and eMMC class storage (0.1 to 0.4 GB/s) makes the 1 GiB mode unusable."""
    fast = limited_rate("RK3588", "4B", 0.5, 3.1e9)
    assert fast == pytest.approx(15.04, rel=0.05)
    assert limited_rate("RK3588", "4B", 0.5, 0.4e9) < 3
    assert limited_rate("RK3588", "4B", 0.5, 0.1e9) < 1


def test_a_real_trace_misses_as_often_as_assumed(shared: Path) -> None:
    """A cache of a quarter of all experts misses about half of DeepSeek-V2-Lite's choices."""
    folder = shared / "data/traces/routing_tokens_deepseek_v2_lite"
    for task in ("translation", "summary", "intent"):
        choices = np.load(folder / f"{task}.npz")["expert_ids"][:, :3000]
        experts = choices.shape[0] * 64
        quarter, most = (
            cache_misses(choices, build_cache("lru", round(experts * share))).sum() / choices.size
            for share in (768 / 3072, 6144 / 9984)
        )
        assert 0.35 < quarter < 0.6
        assert 0.1 < most / quarter < 0.4  # SmallThinker's tables imply 0.15 to 0.17
