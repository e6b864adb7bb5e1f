"""A pass as a question: priced whole and in micro-batches, refused where nothing is known."""

from __future__ import annotations

from typing import Any

import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import check_tracks
from planner.simulation.passes import PassQuestion, answer_pass


def question(**fields: Any) -> PassQuestion:
    data = {
        "model": "qwen3-30b-a3b", "cluster": "dgx-h100-x4", "layout": {"dp": 16},
        "phase": "prefill", "batch": 2, "new_tokens": 4096,
    }  # fmt: skip
    return PassQuestion.parse(data | fields)


def test_micro_batches_hide_an_exchange_between_nodes() -> None:
    answer, slices = answer_pass(question())
    assert 0.05 < answer.gain_ratio < 1
    assert answer.micro_layer.dispatch_s < answer.layer.dispatch_s
    for estimate in (answer.whole_s, answer.micro_batched_s):
        assert estimate.low <= estimate.typical <= estimate.high
    # Two nodes of 400 Gbit/s a device: the exchange bounds what overlap can do.
    assert 0.5 < answer.device_busy_ratio < answer.link_busy_ratio <= 1
    check_tracks(slices)


def test_one_micro_batch_is_the_whole_pass() -> None:
    answer, _ = answer_pass(question(micro_batches=1))
    assert answer.gain_ratio == 0
    assert answer.micro_layer == answer.layer


def test_shared_links_and_held_cores_cost_some_of_the_gain() -> None:
    free = answer_pass(question())[0].gain_ratio
    assert answer_pass(question(ranks_per_link=2))[0].gain_ratio < free
    assert answer_pass(question(exchange_cores_ratio=0.24))[0].gain_ratio < free


def test_parted_cores_are_priced_where_rules_price_the_device() -> None:
    fields = {"model": "deepseek-v2-lite", "cluster": "cloudmatrix384", "layout": {"dp": 16},
              "phase": "decode", "batch": 32, "new_tokens": 1, "past_tokens": 2000}  # fmt: skip
    answer, slices = answer_pass(question(**fields, attention_cores_ratio=0.6))
    assert answer.micro_layer.experts_s > 0
    assert "experts 000" in slices["track"].to_list()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_cores_ratio": 0.5}, "measured tables of whole devices"),
        ({"model": "llama-3.1-8b", "layout": {}}, "no experts"),
        ({"layout": {"dp": 64}}, "needs 64 devices"),
        ({"layout": {"tp": 3}}, "does not divide"),
        ({"batch": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_played_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        answer_pass(question(**fields))
