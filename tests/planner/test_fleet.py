"""A fleet from its document to its answer: complete, within every limit, reproducible."""

import re
from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from planner.fleet_plan import FleetPlan
from planner.pipeline import answer, parse_question, read_question
from reports.pages import render_answer
from reports.text import fleet_text

FIRST = Path(__file__).parents[1] / "scenarios" / "shared-fleet.yaml"
SMALL = {
    "machines": [{"cluster": "dgx-h100", "device_hour_usd": 2.0},
                 {"cluster": "xeon-6980p-x2", "backend": "llama-cpp", "device_hour_usd": 1.0}],
    "classes": [{"name": "a", "model": "mixtral-8x7b",
                 "workload": {"isl": 500, "osl": 100, "request_rate": 4000},
                 "limits": {"tpot_s": "50 ms"}},
                {"name": "b", "model": "olmoe-1b-7b",
                 "workload": {"isl": 500, "osl": 100, "request_rate": 5}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return answer(read_question(FIRST))


def test_every_class_keeps_its_limits_and_every_machine_its_devices(plan):
    assert plan.worst_served_ratio == pytest.approx(1)
    for asked, one in zip(plan.fleet.classes, plan.classes, strict=True):
        assert one.ttft_s.high <= asked.limits.ttft_s
        assert one.tpot_s.high <= asked.limits.tpot_s
        assert one.request_rate.typical >= one.served_request_rate * (1 - 1e-6)
        for pool in one.pools:
            assert pool.total_bytes <= pool.capacity_bytes * asked.limits.memory_share
    for use in plan.machines:
        assert use.used_devices <= use.devices
        assert sum(use.used_by.values()) == use.used_devices
    pools = [pool for one in plan.classes for pool in one.pools]
    assert sum(p.workers * p.devices_per_worker for p in pools) == plan.devices


def test_more_kinds_of_machines_work_than_one(plan):
    assert len({pool.machine for one in plan.classes for pool in one.pools}) > 1


def test_same_fleet_same_bytes(plan):
    assert answer(read_question(FIRST)).model_dump_json() == plan.model_dump_json()


def test_a_fleet_plan_reads_back(plan):
    assert FleetPlan.model_validate_json(plan.model_dump_json()) == plan


def test_what_binds_is_named_with_what_more_of_it_gives():
    plan = answer(parse_question(SMALL))
    assert plan.worst_served_ratio < 1
    limits = {item.limit: item for item in plan.binding}
    assert {"machine dgx-h100", "a tpot_s"} <= set(limits)
    for item in limits.values():
        gained = (item.without_objective, item.one_percent_more_objective)
        assert all(value is None or value >= plan.objective_value for value in gained)
        assert any(value and value > plan.objective_value for value in gained)
    eased = {"classes": [SMALL["classes"][0] | {"limits": {}}, SMALL["classes"][1]]}
    freed = answer(parse_question(SMALL | eased))
    assert limits["a tpot_s"].without_objective == pytest.approx(freed.worst_served_ratio, rel=1e-3)
    assert "its best substitute" in plan.runner_up
    assert plan.runner_up in fleet_text(plan)
    assert plan.runner_up in render_answer(plan)


def test_limits_bind_on_what_is_spent_where_all_is_served(plan):
    assert (plan.aim, plan.objective_value) == ("cost", pytest.approx(plan.usd_per_hour))
    assert plan.binding
    for item in plan.binding:
        gained = (item.without_objective, item.one_percent_more_objective)
        assert any(value and value < plan.objective_value for value in gained)


def test_the_whole_demand_or_a_sentence_with_the_most():
    with pytest.raises(MoesaicError, match=r"[0-9.]+% of each is the most") as caught:
        answer(parse_question(SMALL | {"objective": "cost"}))
    assert caught.value.kind == "infeasible"


CHEAP = SMALL | {"objective": "cost", "limits": {"usd_per_hour": 4.0}, "classes": [
    SMALL["classes"][0] | {"workload": {"isl": 500, "osl": 100, "request_rate": 20}},
    SMALL["classes"][1],
]}  # fmt: skip


def test_limits_in_conflict_and_the_cheapest_way_out_are_named():
    """Two H100 and a processor serve both classes for 5 USD an hour; 4 are allowed."""
    with pytest.raises(
        MoesaicError, match="in conflict: usd_per_hour and a request_rate"
    ) as caught:
        answer(parse_question(CHEAP))
    assert caught.value.kind == "infeasible"
    way_out = re.search(r"; ([^;]*) would do$", caught.value.message)[1]
    name, value = re.match(r"(.*) ([0-9.]+) in place of", way_out).groups()
    assert name == "usd_per_hour"
    assert answer(parse_question(CHEAP | {"limits": {name: float(value)}})).usd_per_hour == 5.0
    with pytest.raises(MoesaicError):
        answer(parse_question(CHEAP | {"limits": {name: float(value) * 0.99}}))


def test_fewer_configurations_never_serve_more():
    shares = [
        answer(parse_question(SMALL | {"limits": {"configurations": most}})).worst_served_ratio
        for most in (2, 3, 6)
    ]
    assert shares == sorted(shares)


def test_a_machine_that_a_model_cannot_use_is_named():
    data = SMALL | {"classes": [
        SMALL["classes"][1],
        SMALL["classes"][0] | {"model": "deepseek-v3", "choices": {"precision": "fp8_block"},
                               "workload": {"isl": 100, "osl": 10, "request_rate": 1}},
    ]}  # fmt: skip
    data["machines"] = [*SMALL["machines"], {"cluster": "dgx-h200"}]
    plan = answer(parse_question(data))
    assert any("cannot use xeon-6980p-x2" in text for text in plan.assumptions)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"classes": []}, "/classes", "at least 1"),
        ({"machines": []}, "/machines", "at least 1"),
        ({"zzz": 1}, "/zzz", "not permitted"),
        ({"machines": [{"cluster": "dgx-h100"}, {"cluster": "dgx-h100"}]}, "/", "two of a name"),
        ({"classes": [{"name": "a", "model": "mixtral-8x7b", "workload": {"isl": 1, "osl": 1}}]},
         "/classes/0", "request_rate is the demand"),
        ({"classes": [{"name": "a", "model": "mixtral", "workload": {"isl": 1, "osl": 1}}]},
         "/model", "no model"),
        ({"classes": [SMALL["classes"][0] | {"limits": {"power_w": 5}}]}, "/classes/0",
         "limit of the fleet"),
        ({"classes": [SMALL["classes"][0] | {"limits": {"tpot_s": "1 us"}}]}, "/classes/0/limits",
         "class a: TPOT"),
        ({"classes": [SMALL["classes"][0] | {"workload": {"isl": 9, "osl": 9,
                                                          "request_rate": float("nan")}}]},
         "/classes/0/workload/request_rate", "finite"),
        ({"limits": {"configurations": 0}}, "/limits/configurations", "greater than"),
    ],
)  # fmt: skip
def test_bad_fleets_name_their_field(change, path, words):
    with pytest.raises(MoesaicError) as caught:
        answer(parse_question(SMALL | change))
    assert path in caught.value.path
    assert words in caught.value.message
