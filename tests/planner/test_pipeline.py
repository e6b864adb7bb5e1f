"""From a scenario to a plan: complete, bounded, reproducible, and honest when nothing fits."""

from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from planner.pipeline import make_plan, parse_scenario, read_scenario
from planner.plan import Plan

SCENARIOS = sorted(
    path for path in (Path(__file__).parents[1] / "scenarios").glob("*.yaml")
    if "fleet" not in path.stem
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
    assert plan.binding
    for item in plan.binding:
        now = plan.output_tokens_per_s_per_device.typical
        assert item.without_output_tokens_per_s_per_device > now
        more = item.one_percent_more_output_tokens_per_s_per_device
        assert now * (1 - 1e-9) <= more
        assert more <= item.without_output_tokens_per_s_per_device * (1 + 1e-9)


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
    ],
)  # fmt: skip
def test_bad_questions_name_their_field(change, path, words):
    base = {"model": "deepseek-v3", "cluster": "dgx-h200-x4", "workload": {"isl": 100, "osl": 10}}
    with pytest.raises(MoesaicError) as caught:
        make_plan(parse_scenario(base | change))
    assert caught.value.path.startswith(path) or path in caught.value.path
    assert words in caught.value.message
