"""How many places a token goes to: exact where it can be, drawn elsewhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.moe_model import MoeFfn
from planner.routing import ZipfRouting, expert_shares, parts_reached
from planner.routing.reach import experts_touched

PLAIN = MoeFfn(experts=256, top_k=8, width=2048)
EQUAL = np.full((58, 256), 1 / 256)


def test_equal_shares_are_hypergeometric():
    found = parts_reached(EQUAL, PLAIN, np.array([1, 2, 256, 2]))
    assert found == pytest.approx([1, 2 * (1 - 0.0034958), 8, 2 * (1 - 0.0034958)], rel=1e-4)


def test_drawn_tokens_agree_with_the_exact_value():
    nearly = EQUAL + 1e-9 * np.arange(256)
    parts = np.array([4, 8, 32, 64])
    exact = parts_reached(EQUAL, PLAIN, parts)
    assert parts_reached(nearly, PLAIN, parts) == pytest.approx(exact, rel=0.01)


def test_node_limited_routing_reaches_at_most_its_groups():
    """DeepSeek-V3 keeps a token to 4 of 8 groups, so to 4 nodes of 8 (section 2.1.2)."""
    moe = load_model("deepseek-v3").moe
    limited = parts_reached(EQUAL, moe, np.array([8, 4, 64]))
    free = parts_reached(EQUAL, PLAIN, np.array([8, 4, 64]))
    assert limited[0] <= moe.top_groups == 4
    assert (limited < free).all()


def test_grouped_routing_reaches_every_group():
    moe = MoeFfn(experts=64, top_k=8, width=1344, router="grouped", groups=8)
    assert parts_reached(np.full((4, 64), 1 / 64), moe, np.array([8]))[0] == 8


@settings(max_examples=20, deadline=None)
@given(alpha=st.floats(0, 2), parts=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_reach_lies_within_parts_and_top_k(alpha, parts):
    moe = MoeFfn(experts=64, top_k=6, width=1408)
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=alpha), moe, 2)
    assert 1 - 1e-9 <= parts_reached(shares, moe, np.array([parts]))[0] <= min(parts, 6) + 1e-9


def test_parts_that_do_not_divide_are_refused():
    with pytest.raises(MoesaicError, match="7 ranks or nodes do not divide 256 experts"):
        parts_reached(EQUAL, PLAIN, np.array([7]))


def test_a_batch_touches_more_experts_the_larger_it_is():
    touched = experts_touched(EQUAL, PLAIN, np.array([1, 10, 1000]))
    assert touched == pytest.approx([8, 256 * (1 - (1 - 8 / 256) ** 10), 256], rel=1e-6)


def test_more_ranks_than_experts_reach_one_a_chosen_expert():
    found = parts_reached(EQUAL, PLAIN, np.array([320]), uneven=True)
    assert found[0] == pytest.approx(PLAIN.top_k)
