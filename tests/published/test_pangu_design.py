"""Pangu Pro MoE's design search (arXiv:2505.21411, figure 3): the published model is near the best.

Range: hidden 4,096 to 8,192, 32 to 64 experts, 60 to 80 B, at the published depth and KV heads.
"""

from pathlib import Path

import pytest

from planner.pipeline import answer, read_question

FIRST = Path(__file__).parents[1] / "scenarios" / "design-pangu-800i.yaml"
ON = {
    "atlas-800i-a2": (),
    "atlas-300i-duo": ("cluster=atlas-300i-duo", "limits.tpot_s=100 ms"),
}
"""Machine and its TPOT limit: 50 ms and 100 ms."""


@pytest.mark.parametrize("machine", ON)
def test_the_published_model_lies_within_five_percent_of_the_best(machine):
    plan = answer(read_question(FIRST, ON[machine]))
    assert plan.question.cluster.name == machine
    assert plan.base is not None
    assert len(plan.frontier) >= 3
    assert plan.base_distance_ratio <= 0.05


def test_a_shallower_model_of_the_same_size_is_faster_and_another_model():
    """Why depth is held: 40 layers in place of 48 gain about a quarter, quality not counted."""
    asked = ("design.layers=[40]", "design.hidden=[4096]", "design.heads=[64]",
             "design.experts=[64]", "design.total_parameters=[72000000000]")  # fmt: skip
    plan = answer(read_question(FIRST, asked))
    fastest = plan.frontier[0].output_tokens_per_s_per_device.typical
    assert plan.rival is None
    assert 1.15 < fastest / plan.base.output_tokens_per_s_per_device.typical < 1.4
