"""Designs of a range: sizes that divide, totals that are met, a frontier nobody beats."""

import itertools
from pathlib import Path

import pytest

from hwprofiles.errors import MoesaicError
from planner.design import Design
from planner.design_answer import frontier_of, judge, plan_design
from planner.design_plan import DesignPlan
from planner.parameters import count_parameters
from planner.pipeline import answer, parse_question, read_question
from reports.pages import render_answer
from reports.text import answer_text

FIRST = Path(__file__).parents[1] / "scenarios" / "design-pangu-800i.yaml"
SMALL = ("design.hidden=[4096, 5120]", "design.experts=[64]",
         "design.total_parameters=[60000000000, 72000000000]")  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return answer(read_question(FIRST, SMALL))


def test_designs_meet_their_totals_and_differ():
    models = list(read_question(FIRST).models())
    assert len({model.name for model in models}) == len(models) == 24
    for model in models:
        total = count_parameters(model).total
        assert min(abs(total / aim - 1) for aim in (60e9, 72e9, 80e9)) < 0.03
        assert model.moe.shared_width == 4 * model.moe.width


def test_the_base_is_in_its_own_range():
    asked = read_question(FIRST, ("design.hidden=[5120]", "design.experts=[64]",
                                  "design.total_parameters=[71990000000]"))  # fmt: skip
    (model,) = asked.models()
    assert count_parameters(model) == count_parameters(asked.base)
    rate, own = (judge(asked, m).output_tokens_per_s_per_device for m in (model, asked.base))
    assert rate == own


def test_nothing_on_the_frontier_is_beaten(plan):
    for one, other in itertools.permutations(plan.frontier, 2):
        faster = (one.output_tokens_per_s_per_device.typical
                  >= other.output_tokens_per_s_per_device.typical)  # fmt: skip
        assert not (faster and one.active_parameters >= other.active_parameters)
    assert plan.base_distance_ratio == pytest.approx(
        plan.rival.output_tokens_per_s_per_device.typical
        / plan.base.output_tokens_per_s_per_device.typical - 1
    )  # fmt: skip
    assert all(point.tpot_s.typical <= 0.05 for point in plan.frontier)


def test_frontier_rival_and_base_are_those_of_brute_force():
    """Every legal size tried alone with the same batches: none is left out or beaten."""
    asked = read_question(FIRST, ("design.hidden=[4096, 5120]", "design.experts=[32, 64]",
                                  "design.kv_heads=[8, 16]",
                                  "design.total_parameters=[72000000000]",
                                  "choices.batch=[64, 128, 160, 192]"))  # fmt: skip
    plan = answer(asked)
    legal = [size for size in itertools.product((4096, 5120), (8, 16), (32, 64))
             if size[0] // 128 % size[1] == 0]  # fmt: skip
    alone = {
        size: answer(read_question(FIRST, (
            f"design.hidden=[{size[0]}]", f"design.kv_heads=[{size[1]}]",
            f"design.experts=[{size[2]}]", "design.total_parameters=[72000000000]",
            "choices.batch=[64, 128, 160, 192]"))).frontier[0]
        for size in legal
    }  # fmt: skip
    points = list(alone.values())
    rate = {p.name: p.output_tokens_per_s_per_device.typical for p in points}
    unbeaten = {
        p.name for p in points
        if not any((rate[o.name] >= rate[p.name] and o.active_parameters > p.active_parameters)
                   or (rate[o.name] > rate[p.name] and o.active_parameters >= p.active_parameters)
                   for o in points)
    }  # fmt: skip
    assert {p.name for p in plan.frontier} == unbeaten
    assert plan.designs_count == plan.feasible_count == len(points)
    like = [p for p in points if p.active_parameters >= plan.base.active_parameters * 0.98
            and p.total_parameters >= plan.base.total_parameters * 0.98]  # fmt: skip
    assert plan.rival.name == max(like, key=lambda p: rate[p.name]).name
    assert plan.base.output_tokens_per_s_per_device.typical >= 0.95 * rate[plan.rival.name]


def test_the_frontier_keeps_the_faster_of_equals(plan):
    slow = plan.base.model_copy(update={"name": "slow", "output_tokens_per_s_per_device":
                                        plan.base.output_tokens_per_s_per_device.model_copy(
                                            update={"typical": 1.0})})  # fmt: skip
    assert frontier_of([slow, plan.base]) == (plan.base,)


def test_same_question_same_bytes_and_it_reads_back(plan):
    again = answer(read_question(FIRST, SMALL))
    assert again.model_dump_json() == plan.model_dump_json()
    assert DesignPlan.model_validate_json(plan.model_dump_json()) == plan


def test_page_and_text_name_the_base(plan):
    assert "Pangu Pro MoE" in render_answer(plan)
    assert plan.frontier[0].name in answer_text(plan)


def test_progress_is_told_design_by_design():
    told = []
    plan_design(read_question(FIRST, ("design.hidden=[4096]", "design.experts=[64]")),
                lambda done, total: told.append((done, total)))  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_design_within_the_limit_is_said():
    with pytest.raises(MoesaicError, match="none of 4 designs") as caught:
        answer(read_question(FIRST, (*SMALL, "limits.tpot_s=1 ms")))
    assert caught.value.kind == "infeasible"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "deepseek-v3"}, "layers of one kind"),
        ({"base": "llama-2-7b"}, "routed experts"),
        ({"limits": {}}, "limits.tpot_s"),
        ({"design": {"hidden": []}}, "at least 1"),
        ({"design": {"hidden": list(range(1024, 9000, 8))}}, "give fewer sizes"),
        ({"design": {"total_parameters": [0]}}, "greater than"),
        ({"zzz": 1}, "not permitted"),
    ],
)
def test_bad_designs_are_refused(change, words):
    data = read_question(FIRST).model_dump(mode="json") | change
    with pytest.raises(MoesaicError, match=words):
        parse_question(data)


def test_sizes_that_do_not_divide_are_left_out():
    data = read_question(FIRST, SMALL).model_dump(mode="json")
    data["design"] |= {"heads": [40, 36], "kv_heads": [8, 10], "experts": [60, 64]}
    asked = Design.parse(data)
    assert {m.kinds["design"].ffn.experts for m in asked.models()} == {64}
    heads = {(m.kinds["design"].attention.heads, m.kinds["design"].attention.kv_heads)
             for m in asked.models()}  # fmt: skip
    assert heads == {(40, 8), (40, 10)}
