"""How placement grows with devices, experts and layers; the curves of docs/search-growth.md."""

import numpy as np
import pytest

from planner.search.placement import PlacementQuestion, place

pytestmark = pytest.mark.benchmark
SIZES = [
    *((devices, 2 * devices, 1) for devices in (8, 64, 512, 4096)),
    *((8, experts, 1) for experts in (8, 64, 256, 1024)),
    *((32, 256, layers) for layers in (1, 8, 32, 128)),
]


@pytest.mark.parametrize(("devices", "experts", "layers"), SIZES)
def test_placement_grows(benchmark, devices, experts, layers):
    drawn = np.random.default_rng(1).dirichlet(np.full(experts, 2.0), layers)
    redundant = 0 if experts % devices == 0 and devices > 256 else -experts % devices + devices
    question = PlacementQuestion(
        loads=(tuple(map(tuple, drawn.tolist())),), devices=devices, redundant=redundant
    )
    answer = benchmark.pedantic(place, args=(question,), rounds=1)
    benchmark.extra_info["gap_max"] = max(layer.gap_ratio for layer in answer.layers)
    benchmark.extra_info["solve_s"] = answer.solve_s
