"""Scores are what their names say; the page is made from what is shipped."""

from pathlib import Path

import polars as pl
import pytest

from planner.validation.accuracy import assess, inputs_digest, page, shipped
from planner.validation.compare import COMPARED, choices, missed, missed_by, score
from planner.validation.picks import keep_limits

PAGE = Path(__file__).parents[3] / "docs" / "accuracy.md"


def table(measured, typical, **fields):
    count = len(measured)
    columns = {
        **dict.fromkeys(COMPARED, [None] * count), "target": ["tpot_s"] * count,
        "measured": measured, "typical": typical, "low": [t and t * 0.9 for t in typical],
        "high": [t and t * 1.1 for t in typical], **fields,
    }  # fmt: skip
    return pl.DataFrame(columns, schema=COMPARED)


def test_score():
    found = score(table([1.0, 1.0, 2.0, 4.0], [1.05, 0.8, 2.0, None]))
    assert (found.count, found.answered_ratio) == (4, 0.75)
    assert found.median_ratio == pytest.approx(0.05)
    assert found.mean_ratio == pytest.approx(0.25 / 3)
    assert found.covered_ratio == pytest.approx(2 / 3)


def test_nothing_answered():
    assert score(table([1.0], [None])).median_ratio is None


def test_choice_and_regret():
    rows = table(
        [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 4.0], choice=["a", "a", "b", "b"],
        layout=["x", "y", "x", "y"],
    )  # fmt: skip
    found = choices(rows)
    assert (found.groups_count, found.right_ratio) == (2, 0.5)
    assert found.regret_ratio == pytest.approx((0 + 1 / 3) / 2)


def test_gates_tell_what_was_asked():
    gates = [{"target": "tpot_s", "measure": "median_ratio", "at_most": 0.1}]
    assert missed_by(table([1.0], [1.05]), gates) == []
    assert "at most 0.1" in missed_by(table([1.0], [2.0]), gates)[0]


def test_a_gate_of_a_single_number():
    gates = [{"value": "limits broken", "at_most": 0.05}]
    assert missed({"limits broken": None}, gates) == []
    assert missed({"limits broken": 0.04}, gates) == []
    assert "limits broken is 0.200" in missed({"limits broken": 0.2}, gates)[0]


def limited(tpot, ttft, high):
    """Two layouts of one question; the second makes twice the tokens."""
    rows = []
    for target, values in (("tpot_s", tpot), ("ttft_s", ttft)):
        rows.append(table(
            values, [0.02, 0.01] if target == "tpot_s" else [0.5, 0.5],
            high=high if target == "tpot_s" else [1.0, 1.0], target=[target] * 2,
            asked=["x", "y"], question=["q"] * 2, callers=[8.0] * 2, devices=[8.0] * 2,
        ))  # fmt: skip
    return pl.concat(rows)


def test_a_pick_breaks_a_limit_as_measured():
    broken = keep_limits(limited([0.02, 0.05], [0.5, 0.5], [0.025, 0.02]))
    assert (broken.picks_count, broken.broken_ratio) == (1, 1.0)


def test_the_far_side_of_the_interval_keeps_a_pick_away():
    kept = keep_limits(limited([0.02, 0.05], [0.5, 0.5], [0.025, 0.031]))
    assert (kept.picks_count, kept.broken_ratio) == (1, 0.0)
    none = keep_limits(limited([0.02, 0.05], [0.5, 0.5], [0.031, 0.031]))
    assert (none.groups_count, none.picks_count, none.broken_ratio) == (1, 0, None)


def test_no_figures_is_an_empty_report(tmp_path):
    path = tmp_path / "serving.csv"
    path.write_text(",".join(shipped()[0].read_text().splitlines()[:1]) + "\n")
    report = assess([path])
    assert report["rows"]["parsed"] == 0
    assert "# How far off" in page(report)


def test_the_page_is_made_from_what_is_shipped():
    assert inputs_digest() in PAGE.read_text(), "run: moesaic validate --page docs/accuracy.md"


@pytest.mark.slow
def test_the_page_is_what_validate_writes():
    assert PAGE.read_text() == page(assess(shipped()))
