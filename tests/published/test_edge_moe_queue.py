"""Edge-MoE on ZCU102 (arXiv:2305.18691, repository headers): queues against token order."""

from __future__ import annotations

import numpy as np
import pytest

from hwprofiles.library import load_device
from planner.simulation.expert_queue import ExpertSeconds, expert_queues, token_order
from planner.simulation.queue_question import QueueQuestion, answer_queue

PATCHES, TOP_K, EXPERTS, MOE_LAYERS = 129, 2, 16, 6
WIDTH, EXPERT_WIDTH, DENSE_WIDTH, LAYERS = 192, 384, 768, 12
CLOCK_HZ, AXI_BYTES, TILE_MACS = 300e6, 32, 256
EXPERT_MACS = 2 * WIDTH * EXPERT_WIDTH
COSTS = ExpertSeconds(
    load_s=EXPERT_MACS * 2 / (AXI_BYTES * CLOCK_HZ), token_s=EXPERT_MACS / TILE_MACS / CLOCK_HZ
)
LATENCY_S, POWER_W = 34.64e-3, 14.54  # CoQMoE, arXiv:2506.08496, table 3
LINEAR_SHARE = 0.35  # section V.C: attention linears, ViT blocks and MoE blocks


def routed(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.array([random.choice(EXPERTS, TOP_K, replace=False) for _ in range(PATCHES)])


def test_loads_at_most_one_an_expert_against_one_a_choice() -> None:
    worst = np.array([[token % 8, 8 + token % 8] for token in range(PATCHES)])
    assert token_order(worst, COSTS).loads_count == PATCHES * TOP_K == 258
    assert expert_queues(worst, COSTS).loads_count == EXPERTS == 16


def test_the_design_sits_at_the_break_even_point() -> None:
    assert pytest.approx(30.7e-6, rel=0.005) == COSTS.load_s
    average = PATCHES * TOP_K / EXPERTS * COSTS.token_s
    assert average == pytest.approx(31.0e-6, rel=0.005)


def test_an_even_load_hides_every_load_but_the_first_and_half_the_patches_do_not() -> None:
    tokens = np.array([[token % 8, 8 + token % 8] for token in range(128)])
    even = expert_queues(tokens, COSTS)
    # 16 tokens an expert compute 30.7 us: as long as a load, so nothing waits after the first.
    assert even.stalled_s == pytest.approx(COSTS.load_s, rel=0.01)
    half = expert_queues(tokens[:64], COSTS)
    assert half.stalled_s > 8 * COSTS.load_s


def latency_s() -> float:
    """The whole image: linear layers by multiply-accumulates and queues, over their share."""
    moe_s = np.mean([expert_queues(routed(seed), COSTS).seconds_s for seed in range(20)])
    dense_macs = PATCHES * LAYERS * 4 * WIDTH * WIDTH
    dense_macs += PATCHES * (LAYERS - MOE_LAYERS) * 2 * WIDTH * DENSE_WIDTH
    return float(dense_macs / TILE_MACS / CLOCK_HZ + MOE_LAYERS * moe_s) / LINEAR_SHARE


def test_latency_within_thirty_percent() -> None:
    assert latency_s() == pytest.approx(LATENCY_S, rel=0.30)


def test_the_catalogue_states_the_watts() -> None:
    power = load_device("zcu102").power_w
    assert power is not None
    assert power.value == POWER_W


@pytest.mark.parametrize(
    ("ratio", "joules"), [(2.24, 1.13), (4.90, 2.47)], ids=["RTX A6000", "Xeon 6226R"]
)
def test_energy_ratios_from_watts_and_seconds(ratio: float, joules: float) -> None:
    """Joules of an image on the other devices over ours, measured and as predicted here.

    The other devices' watts and seconds are not published: their joules are the ratios times our
    measured ones, rounded. What is tested is our seconds: how far they move the ratios.
    """
    assert joules / (POWER_W * LATENCY_S) == pytest.approx(ratio, rel=0.02)
    assert joules / (POWER_W * latency_s()) == pytest.approx(ratio, rel=0.40)


def test_the_verb_says_the_same_of_loads_and_energy() -> None:
    question = QueueQuestion.parse({
        "device": "zcu102", "hidden": WIDTH, "width": EXPERT_WIDTH, "tokens": PATCHES,
        "experts": EXPERTS, "top_k": TOP_K, "layers": MOE_LAYERS,
    })  # fmt: skip
    answer = answer_queue(question)
    assert answer.load_s == pytest.approx(COSTS.load_s, rel=1e-9)
    assert answer.average_compute_s == pytest.approx(31.0e-6, rel=0.005)
    assert answer.expert_queues.loads_count == MOE_LAYERS * EXPERTS
    assert answer.expert_queues.energy_j == pytest.approx(
        POWER_W * answer.expert_queues.seconds_s, rel=1e-9
    )


def test_token_order_waits_far_longer() -> None:
    ratio = [
        token_order(routed(seed), COSTS).seconds_s / expert_queues(routed(seed), COSTS).seconds_s
        for seed in range(10)
    ]
    assert 10 < np.mean(ratio) < 18.5
