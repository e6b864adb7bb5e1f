"""Pages are whole in one file, say what the plan says, and survive hostile names."""

import re
from pathlib import Path

import pytest

from planner.pipeline import make_plan, read_scenario
from planner.plan import Plan
from reports import views
from reports.batch import report_folder
from reports.charts import stacked_bar, ticks
from reports.pages import render_plan
from reports.text import plan_text

FIRST = Path(__file__).parents[1] / "scenarios" / "mixtral-h100.yaml"


@pytest.fixture(scope="module")
def plan():
    return make_plan(read_scenario(FIRST))


def test_the_page_fetches_nothing(plan):
    page = render_plan(plan)
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert page.startswith("<!doctype html>")


def test_the_page_says_what_the_plan_says(plan):
    page = render_plan(plan)
    assert views.headline(plan) in page
    assert plan.scenario_digest in page
    assert views.number(plan.tpot_s.typical * 1e3) in page
    for pool in plan.pools:
        assert pool.layout.label() in page


def test_a_hostile_name_stays_text(plan):
    model = plan.scenario.model.model_copy(update={"name": "<script>alert(1)</script>"})
    evil = plan.model_copy(update={"scenario": plan.scenario.model_copy(update={"model": model})})
    assert "<script>" not in render_plan(evil)


def test_text_has_the_ranking_and_the_proof(plan):
    text = plan_text(plan)
    assert "tokens/s/device" in text
    assert views.proof_sentence(plan) in text


def test_a_folder_keeps_going_past_a_bad_file(tmp_path, plan):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "good.yaml").write_text(FIRST.read_text())
    (source / "plan.json").write_text(plan.model_dump_json())
    (source / "bad.yaml").write_text("model: [")
    (source / "worse.json").write_text('{"model": "nothing-like-it", "model": 1}')
    assert report_folder(source, out, show_progress=False) == 2
    index = (out / "index.html").read_text()
    assert "good.html" in index
    assert "plan.html" in index
    assert "bad.html" not in index
    assert "stands twice" in index


def test_finished_plan_renders_the_same(plan):
    again = Plan.model_validate_json(plan.model_dump_json())
    assert render_plan(again) == render_plan(plan)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,230"), (0.012345, "0.0123"), (999.9, "1,000"), (1.0, "1")],
)
def test_numbers(value, text):
    assert views.number(value) == text


def test_bars_never_leave_their_box():
    bar = stacked_bar([("a", 0.7, "7"), ("b", 0.8, "8")], "too full")
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height', bar)]
    assert sum(widths[1:]) <= 720.1


def test_ticks_of_nothing():
    assert ticks(0) == [0]


def test_files_that_scenarios_name_are_found_from_their_folder(tmp_path):
    assert report_folder(FIRST.parent, tmp_path / "pages", show_progress=False) == 0
