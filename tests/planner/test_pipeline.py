"""From a scenario to a plan: complete, bounded, reproducible, and honest when nothing fits."""

import re
from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from planner.pipeline import make_plan, parse_scenario, read_scenario
from planner.plan import Plan

SCENARIOS = sorted(
    path for path in (Path(__file__).parents[1] / "scenarios").glob("*.yaml")
    if "fleet" not in path.stem and "design" not in path.stem
)  # fmt: skip
FIRST = Path(__file__).parents[1] / "scenarios" / "deepseek-v3-h200.yaml"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_is_answered_within_its_limits(path):
    plan = make_plan(read_scenario(path))
    limits = plan.scenario.limits
    assert plan.ttft_s.high <= limits.ttft_s
    assert plan.tpot_s.high <= limits.tpot_s
    assert plan.devices <= plan.scenario.device_count
    for pool in plan.pools:
        room = pool.memory.capacity_bytes * limits.memory_share
        assert pool.memory.total_bytes <= room
        assert sum(v for k, v in pool.memory if k not in ("total_bytes", "capacity_bytes")) == (
            pytest.approx(pool.memory.total_bytes)
        )
        for stages in pool.breakdown.values():
            assert sum(stage.share_ratio for stage in stages) == pytest.approx(1)
    assert plan.proof.status == "optimal"
    assert plan.options[0].devices == plan.devices
    assert len({option.model_dump_json(exclude={"rank"}) for option in plan.options}) == len(
        plan.options
    )


def test_same_scenario_same_bytes():
    once, again = (make_plan(read_scenario(FIRST)).model_dump_json() for _ in range(2))
    assert once == again


def test_a_plan_reads_back():
    plan = make_plan(read_scenario(FIRST))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_measured_load_is_felt():
    """Busier ranks cost time, fewer active experts save some: the plan must not be the same."""
    flat = make_plan(read_scenario(FIRST, ("routing={kind: uniform}",)))
    real = make_plan(read_scenario(FIRST))
    one, other = (p.output_tokens_per_s_per_device.typical for p in (flat, real))
    assert one != pytest.approx(other, rel=1e-6)


def test_a_limit_that_cannot_be_met_is_named_with_the_distance():
    with pytest.raises(
        MoesaicError, match=r"TPOT: the best .* above the limit of 1\.0 ms"
    ) as caught:
        make_plan(read_scenario(FIRST, ("limits.tpot_s=1 ms",)))
    assert caught.value.kind == "infeasible"


def test_too_little_memory_is_named_in_gib():
    with pytest.raises(MoesaicError, match=r"memory: the smallest .* GiB a device more"):
        make_plan(read_scenario(FIRST, ("cluster.nodes=1", "limits.devices=2")))


def test_more_load_than_fits_says_what_fits():
    with pytest.raises(MoesaicError, match=r"the most is .* requests/s with .* in flight"):
        make_plan(read_scenario(FIRST, ("workload.concurrency=1000000",)))


def test_a_binding_limit_would_give_more():
    plan = make_plan(read_scenario(FIRST))
    assert {item.limit for item in plan.binding} >= {"tpot_s", "devices"}
    for item in plan.binding:
        now = plan.output_tokens_per_s_per_device.typical
        more = item.one_percent_more_output_tokens_per_s_per_device
        assert now * (1 - 1e-9) <= more
        assert item.one_percent_more_objective >= plan.objective_value * (1 - 1e-9)
        if item.limit != "devices":  # they cannot be dropped
            assert item.without_output_tokens_per_s_per_device > now
            assert more <= item.without_output_tokens_per_s_per_device * (1 + 1e-9)


def test_power_and_budget_bind_and_say_what_more_gives():
    tight = make_plan(read_scenario(FIRST, ("limits.power_w=12000",)))
    assert "power_w" in {item.limit for item in tight.binding}
    asked = ("device_hour_usd=3", "limits.usd_per_hour=49")
    budget = next(item for item in make_plan(read_scenario(FIRST, asked)).binding
                  if item.limit == "usd_per_hour")  # fmt: skip
    assert budget.one_percent_more_objective >= 0
    free = make_plan(read_scenario(FIRST)).output_tokens_per_s.typical
    assert budget.without_output_tokens_per_s_per_device > free / 32


def test_the_second_lost_for_a_reason_with_numbers():
    plan = make_plan(read_scenario(FIRST))
    first, second = (option.output_tokens_per_s.typical for option in plan.options[:2])
    assert f"{1 - second / first:.1%} less than" in plan.runner_up
    assert re.search(r"its slower pool|a sequence holds its place", plan.runner_up)


def test_as_many_options_as_asked():
    plan = make_plan(read_scenario(FIRST, ("options=3",)))
    assert len(plan.options) == 3


def test_a_trade_by_cuts_is_a_trade():
    plan = make_plan(read_scenario(FIRST, ("pareto=40",)))
    assert plan.pareto_complete
    assert plan.pareto[0].objective_value == plan.objective_value
    values = [(item.objective_value, item.tpot_s.typical) for item in plan.pareto]
    assert values == sorted(values, reverse=True)
    assert len({value for value, _ in values}) == len(values)
    short = make_plan(read_scenario(FIRST, ("pareto=2",)))
    assert short.pareto == plan.pareto[:2]
    assert not short.pareto_complete


def test_the_quickest_answer_that_a_budget_buys():
    asked = ("objective=latency", "device_hour_usd=3", "limits.tpot_s=null", "limits.ttft_s=null")
    poor, rich = (
        make_plan(read_scenario(FIRST, (*asked, f"limits.usd_per_hour={usd}"))) for usd in (30, 96)
    )
    assert poor.devices * 3 <= 30
    assert rich.objective_value <= poor.objective_value
    osl = poor.scenario.workload.osl
    whole = poor.ttft_s.typical + (osl - 1) * poor.tpot_s.typical
    assert poor.objective_value == pytest.approx(whole)


def test_lists_of_copies_groups_and_orders_are_one_question():
    asked = ("choices.redundant_experts=[0, 32]", "choices.modes=[agg]",
             "choices.block_order=[cdac, 0.25]", "choices.pp=[1]")  # fmt: skip
    plan = make_plan(read_scenario(FIRST, asked))
    alone = []
    for order in ("cdac", "0.25"):
        for copies in (0, 32):
            one = (f"choices.block_order=[{order}]", f"choices.redundant_experts={copies}")
            alone.append(make_plan(read_scenario(FIRST, (*asked, *one))))
    best = max(alone, key=lambda found: found.objective_value)
    assert plan.objective_value == pytest.approx(best.objective_value, rel=1e-9)
    assert plan.proof.candidates_count == sum(one.proof.candidates_count for one in alone)
    if plan.pools[0].variant.startswith("DCCA"):
        assert any("must be trained so" in text for text in plan.assumptions)


def test_experts_apart_are_one_more_choice():
    asked = ("limits.tpot_s=60 ms", "choices.modes=[disagg]", "choices.batch=[16, 32, 48]")
    both, apart, beside = (
        make_plan(read_scenario(FIRST, (*asked, f"choices.experts_apart={which}")))
        for which in ("[false, true]", "[true]", "[false]")
    )
    assert both.objective_value == max(apart.objective_value, beside.objective_value)
    assert apart.pools[-1].variant == "experts apart"
    layout = apart.pools[-1].layout
    attention, experts = layout.tp * layout.dp, layout.moe_tp * layout.moe_ep
    assert apart.pools[-1].devices_per_worker == attention + experts
    assert apart.devices <= 32


def test_looser_limits_never_serve_less():
    rates = [
        make_plan(read_scenario(FIRST, (f"limits.tpot_s={ms} ms",))).request_rate.typical
        for ms in (25, 30, 50, 100)
    ]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"zzz": 1}, "/zzz", "not permitted"),
        ({"workload": {"isl": "3.35 TB/s", "osl": 1}}, "/workload/isl", "integer"),
        ({"workload": {"isl": 10, "osl": 0}}, "/workload/osl", "greater than"),
        ({"limits": {"ttft_s": "80 GiB"}}, "/limits/ttft_s", "is in bytes"),
        ({"limits": {"ttft_s": float("nan")}}, "/limits/ttft_s", "finite"),
        ({"model": "deepseek"}, "/model", "did you mean deepseek-v3"),
        ({"cluster": "dgx-h20"}, "/cluster", "did you mean"),
        ({"cluster": {"base": "dgx-h200", "nodes": -1}}, "/nodes", "greater than"),
        ({"workload": {"isl": 1, "osl": 1, "concurrency": 1, "request_rate": 1}}, "/workload",
         "not both"),
        ({"routing": {"kind": "measured", "counts": [[1, 2]]}}, "/routing/counts", "2 experts"),
        ({"routing": {"kind": "measured", "counts": [[-1.0] * 256]}}, "/routing", "greater than"),
        ({"choices": {"precision": "fp7"}}, "/choices", "no dtype 'fp7'"),
        ({"choices": {"groups": [7]}}, "/choices/groups", "groups 7 must divide 256 experts"),
        ({"choices": {"block_order": ["dcca"]}}, "/choices/block_order", "cdac"),
        ({"choices": {"block_order": [1.5]}}, "/choices/block_order", "less than 1"),
        ({"choices": {"redundant_experts": []}}, "/choices/redundant_experts", "at least 1"),
        ({"limits": {"usd_per_hour": 10}}, "/limits/usd_per_hour", "device_hour_usd"),
        ({"options": 0}, "/options", "greater than"),
    ],
)  # fmt: skip
def test_bad_questions_name_their_field(change, path, words):
    base = {"model": "deepseek-v3", "cluster": "dgx-h200-x4", "workload": {"isl": 100, "osl": 10}}
    with pytest.raises(MoesaicError) as caught:
        make_plan(parse_scenario(base | change))
    assert caught.value.path.startswith(path) or path in caught.value.path
    assert words in caught.value.message
