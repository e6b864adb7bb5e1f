"""Block orders and group counts of one model, and what no model can have."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.model_variants import variants_of
from planner.parameters import count_parameters

MODEL = load_model("mixtral-8x7b")


def test_nothing_asked_is_the_model_itself():
    assert variants_of(MODEL, None, None) == [(MODEL, "")]
    assert variants_of(MODEL, ["cdac"], [1]) == [(MODEL, "")]


def test_every_combination_in_order():
    found = [text for _, text in variants_of(MODEL, ["cdac", 0.25], [1, 2])]
    assert found == ["", "2 groups of 4 experts", "DCCA order at ratio 0.25",
                     "DCCA order at ratio 0.25, 2 groups of 4 experts"]  # fmt: skip


def test_groups_change_the_router_and_no_parameter():
    (changed, _), *_ = variants_of(MODEL, None, [2])
    assert (changed.moe.router, changed.moe.groups) == ("grouped", 2)
    assert count_parameters(changed) == count_parameters(MODEL)


def test_a_grouped_model_can_lose_its_groups():
    pangu = load_model("pangu-pro-moe")
    (same, text), (free, said) = variants_of(pangu, None, [8, 1])
    assert (same, text) == (pangu, "")
    assert (free.moe.router, said) == ("top_k", "no groups")


@pytest.mark.parametrize(
    ("name", "orders", "groups", "words"),
    [
        ("mixtral-8x7b", None, [3], "groups 3 must divide 8 experts and top_k 2"),
        ("llama-2-7b", None, [2], "no routed experts"),
        ("llama-2-7b", [0.5], None, "no routed experts"),
        ("mixtral-8x7b", [0.3], None, "must be whole"),
        ("nemotron-3-super", ["cdac"], None, "it is DCCA"),
    ],
)
def test_what_no_model_can_have(name, orders, groups, words):
    with pytest.raises(MoesaicError, match=words):
        variants_of(load_model(name), orders, groups)
