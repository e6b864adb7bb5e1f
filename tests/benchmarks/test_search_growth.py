"""How placement, plans and fleets grow: the curves of docs/search-growth.md."""

import numpy as np
import polars as pl
import pytest

from planner.fleet import FleetLimits
from planner.model_library import load_model
from planner.moe_model import MoeFfn
from planner.pipeline import make_plan, parse_scenario
from planner.search.fleet_programme import Case
from planner.search.fleets import choose_fleet
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


PLAN_SIZES = [
    *((devices, 256, 61) for devices in (8, 64, 512, 4096)),
    *((32, experts, 61) for experts in (8, 64, 1024)),
    *((32, 256, layers) for layers in (1, 8, 32, 128)),
]


def sized_question(devices, experts, layers):
    """DeepSeek-V3's shape with other counts of experts and layers, on H200 nodes of eight."""
    model = load_model("deepseek-v3")
    kinds = {
        name: kind.model_copy(update={"ffn": kind.ffn.model_copy(update={"experts": experts})})
        if isinstance(kind.ffn, MoeFfn)
        else kind
        for name, kind in model.kinds.items()
    }
    dense = 3 if layers > 3 else 0
    counts = [layers - dense if isinstance(kinds[run.kind].ffn, MoeFfn) else dense
              for run in model.layers]  # fmt: skip
    runs = tuple(
        run.model_copy(update={"count": count})
        for run, count in zip(model.layers, counts, strict=True)
        if count
    )
    sized = model.model_copy(update={"kinds": kinds, "layers": runs})
    return parse_scenario({
        "model": sized, "cluster": {"base": "dgx-h200", "nodes": devices // 8},
        "workload": {"isl": 4000, "osl": 1000}, "limits": {"tpot_s": "100 ms"},
    })  # fmt: skip


@pytest.mark.parametrize(("devices", "experts", "layers"), PLAN_SIZES)
def test_plan_grows(benchmark, devices, experts, layers):
    question = sized_question(devices, experts, layers)
    plan = benchmark.pedantic(make_plan, args=(question,), rounds=1)
    benchmark.extra_info["candidates"] = plan.proof.candidates_count
    benchmark.extra_info["gap_ratio"] = plan.proof.gap_ratio


FLEET_SIZES = [(1_000, 6), (5_000, 6), (20_000, 6), (20_000, 40)]


def drawn_fleet(columns, classes):
    """Columns of four machines of 512 devices, rates a little more than in proportion to size."""
    draw = np.random.default_rng(0)
    sizes = draw.choice([1, 2, 4, 8, 16], columns).astype(float)
    table = pl.DataFrame({
        "row": np.arange(columns), "class": draw.integers(0, classes, columns),
        "role": draw.choice(["agg", "prefill", "decode"], columns),
        "machine": draw.integers(0, 4, columns), "devices": sizes,
        "request_rate_typical": sizes**1.1 * draw.uniform(0.5, 3, columns),
        "device_w": 700.0, "device_hour_usd": draw.uniform(1, 3, columns),
    })  # fmt: skip
    demands = tuple(float(d) for d in draw.uniform(10, 60, classes) * 240 / classes)
    return table, Case(demands, (0,) * classes, (512,) * 4, FleetLimits(), "served")


@pytest.mark.parametrize(("columns", "classes"), FLEET_SIZES)
def test_fleet_grows(benchmark, columns, classes):
    table, case = drawn_fleet(columns, classes)
    choice = benchmark.pedantic(choose_fleet, args=(table, case), rounds=1)
    benchmark.extra_info["gap_ratio"] = choice.solution.gap_ratio
    benchmark.extra_info["solved_columns"] = choice.solved_columns_count
