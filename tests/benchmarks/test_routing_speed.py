"""How fast load and exchange are found: 61 x 256 experts on 64 devices, 100,000 candidates."""

import numpy as np
import pytest

from hwprofiles.crossing import crossing_s, links_of
from hwprofiles.library import resolve_cluster
from planner.model_library import load_model
from planner.routing import ZipfRouting, device_load, expert_shares
from planner.routing.imbalance import max_over_mean
from planner.work.volumes import crossing_of, exchange_of

pytestmark = pytest.mark.benchmark
MOE = load_model("deepseek-v3").moe
SHARES = expert_shares(ZipfRouting(kind="zipf", alpha=0.8), MOE, 61)


def test_imbalance_of_61_layers_on_64_devices(benchmark):
    """Stated target: 5 ms."""
    benchmark(max_over_mean, SHARES, 64)


def test_busiest_rank_of_10_000_candidates(benchmark):
    draws = np.random.default_rng(0)
    ranks, tokens = draws.choice([8, 16, 32, 64], 10_000), draws.choice([128, 1024, 8192], 10_000)
    benchmark(device_load, SHARES, MOE, ranks, tokens)


@pytest.mark.parametrize("algorithm", ["flat_pairwise", "node_deduplicated"])
def test_all_to_all_seconds_of_100_000_candidates(benchmark, algorithm):
    """Stated target: 0.2 s, volumes and links included."""
    draws, cluster = np.random.default_rng(0), resolve_cluster("dgx-h100-x16")
    nodes = draws.choice([1, 2, 4, 8, 16], 100_000)
    tokens = draws.integers(1, 8192, 100_000)

    def seconds():
        of = exchange_of(MOE, SHARES, nodes * 8, nodes, tokens, np.full(100_000, 7168.0))
        return crossing_s(crossing_of(algorithm, of), links_of(cluster, nodes * 8, nodes))

    assert (benchmark(seconds) > 0).all()
