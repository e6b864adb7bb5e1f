"""Expert load drawn for every batch: centred on the average, calmer for larger batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner.model_library import resolve_model
from planner.routing import expert_shares
from planner.routing.load import ZipfRouting
from planner.simulation.drawn_load import busy_factors
from planner.simulation.question import SimulationQuestion
from planner.simulation.record import RequestLog
from planner.simulation.simulate import prepare, run_once, simulate


def test_factors_spread_less_in_larger_batches_and_over_more_layers() -> None:
    model = resolve_model("qwen3-30b-a3b")
    moe = model.moe
    assert moe is not None
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=0.5), moe, 48)
    factors = busy_factors(shares, moe, 8, seed=1)
    assert factors == busy_factors(shares, moe, 8, seed=1)
    assert factors != busy_factors(shares, moe, 8, seed=2)
    spread = {tokens: np.std(values) for tokens, values in factors.items()}
    assert all(np.mean(values) == pytest.approx(1) for values in factors.values())
    assert spread[8] > 2 * spread[512] > 4 * spread[16384]
    few = busy_factors(shares[:4], moe, 8, seed=1)
    assert np.std(few[64]) > 2 * spread[64]


def question(**fields: Any) -> SimulationQuestion:
    return SimulationQuestion.parse({
        "model": "qwen3-30b-a3b", "cluster": "dgx-h100", "layout": {"dp": 4},
        "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 1024},
        "load": {"kind": "closed", "concurrency": 16, "lengths": {"isl": 200, "osl": 60}},
        "requests": 60, "seeds": 2, "expert_load": "drawn",
    } | fields)  # fmt: skip


def test_a_drawn_run_jitters_around_the_expected_one() -> None:
    drawn = simulate(question())[0].summary
    expected = simulate(question(expert_load="expected"))[0].summary
    assert drawn["tpot_mean_s"].typical != expected["tpot_mean_s"].typical
    assert drawn["tpot_mean_s"].typical == pytest.approx(expected["tpot_mean_s"].typical, rel=0.05)


def test_a_seed_repeats_its_draws() -> None:
    ready = prepare(question())
    tables = [run_once(ready, "typical", seed, RequestLog()).log.table() for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_one_expert_rank_draws_nothing() -> None:
    alone = {"layout": {"tp": 2, "moe_tp": 2, "moe_ep": 1}}
    drawn, expected = (
        simulate(question(**alone, expert_load=load))[0].summary for load in ("drawn", "expected")
    )
    assert drawn == expected
