"""How fast the serving simulation is, beside a bare SimPy loop of the same run."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import simpy

from planner.simulation.arrivals import gamma_arrivals, lognormal_lengths
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Options, Pool, Serving
from planner.simulation.step_seconds import LinearSteps, SlowestRank

pytestmark = pytest.mark.benchmark

STEPS = SlowestRank(LinearSteps(8e-3, 2e-5, 3e-5, 2e-8))
REQUESTS, TOKENS, SLOTS = 10_000, 250, 64


def full_model(requests: int) -> Serving:
    random = np.random.default_rng(1)
    source = gamma_arrivals(40.0, 1.0, lognormal_lengths(512, TOKENS, 0.5), random)
    pool = Pool(EngineLimits(max_num_seqs=SLOTS), STEPS)
    run = Serving(pool, source, None, Options(max_requests=requests)).run()
    run.log.close()
    return run


def bare_loop() -> int:
    """Arrivals and iterations as SimPy processes that keep no more than counts."""
    environment = simpy.Environment()
    random = np.random.default_rng(1)
    gaps = random.exponential(1 / 40.0, REQUESTS)
    waiting: list[int] = []
    running: list[int] = []
    done = 0

    def arrive():
        for gap in gaps:
            yield environment.timeout(gap)
            waiting.append(TOKENS)

    def step():
        nonlocal done
        while done < REQUESTS:
            while waiting and len(running) < SLOTS:
                running.append(waiting.pop())
            yield environment.timeout(0.01)
            for place in range(len(running)):
                running[place] -= 1
            done += running.count(0)
            running[:] = [left for left in running if left]

    environment.process(arrive())
    environment.process(step())
    environment.run()
    return done


def test_bare_loop_of_ten_thousand(benchmark) -> None:
    assert benchmark(bare_loop) == REQUESTS


def test_full_model_of_ten_thousand(benchmark) -> None:
    assert benchmark(full_model, REQUESTS).log.count == REQUESTS


def test_full_model_of_a_hundred_thousand(benchmark) -> None:
    run = benchmark.pedantic(full_model, args=(100_000,), rounds=1)
    assert run.log.count == 100_000
    benchmark.extra_info["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
