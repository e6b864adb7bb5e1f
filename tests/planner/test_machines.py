"""Candidates of all machines: what their prices follow from, and that memory changes no answer."""

from pathlib import Path

import pytest

from planner import machines
from planner.machines import priced_by
from planner.pipeline import make_plan, read_scenario
from planner.search import solver

SCENARIOS = Path(__file__).parents[1] / "scenarios"
MIXTRAL = SCENARIOS / "mixtral-h100.yaml"


@pytest.fixture
def forgotten():
    machines.RECENT.clear()
    solver.RECENT.clear()


SAME = ("limits.tpot_s=12 ms", "limits.side=typical", "objective=cost", "workload.concurrency=8",
        "workload={isl: 1024, osl: 256, request_rate: 2}", "options=2", "pareto=3", "name=other",
        "limits.memory_share=0.5")  # fmt: skip
OTHER = ("workload.isl=1234", "workload.osl=77", "workload.prefix_tokens=5", "choices.tp=[8]",
         "limits.devices=4", "device_hour_usd=3", "model.hidden=2048", "cluster.nodes=2",
         "choices.backend=sglang", "choices.kv_dtype=fp8", "choices.modes=[agg]",
         'policy={kind: top_k, capacity_factor: 1.5}', "choices.redundant_experts=8",
         "routing={kind: zipf, alpha: 0.5}",
         "also=[{cluster: dgx-a100}]")  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_limits_objective_and_load_leave_prices_as_they_are(change):
    assert priced_by(read_scenario(MIXTRAL, (change,))) == priced_by(read_scenario(MIXTRAL))


@pytest.mark.parametrize("change", OTHER)
def test_all_else_has_prices_of_its_own(change):
    assert priced_by(read_scenario(MIXTRAL, (change,))) != priced_by(read_scenario(MIXTRAL))


def test_memory_that_experts_may_fill_is_priced():
    """Experts in the host's memory fill what the limit leaves."""
    offload = "offload={experts_in: ram}"
    full, half = (
        priced_by(read_scenario(MIXTRAL, (offload, f"limits.memory_share={share}")))
        for share in (0.9, 0.5)
    )
    assert full != half


@pytest.mark.usefixtures("forgotten")
def test_an_answer_is_the_same_whatever_was_asked_before():
    asked = [read_scenario(MIXTRAL, (change,)) for change in SAME[:2]]
    first = [make_plan(question).model_dump_json() for question in asked]
    again = [make_plan(question).model_dump_json() for question in reversed(asked)][::-1]
    assert again == first
    for question, said in zip(asked, first, strict=True):
        machines.RECENT.clear()
        solver.RECENT.clear()
        assert make_plan(question).model_dump_json() == said
