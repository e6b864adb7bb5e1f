"""A simulation's page: every figure of the text, its timeline, nothing from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from api.cli import group
from reports.charts import gantt

FOLDER = Path(__file__).parents[1] / "scenarios" / "simulate"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("schedule-dualpipe", ["Timeline", "bubble %", "stage 007", "pieces of work"]),
        ("scaling-qwen3", ["strategies", "cold_restart", "warm-up 2.5 s"]),
        ("expert-queue-edge-moe", ["expert queues: loads", "Assumptions"]),
    ],
)
def test_pages_say_what_the_text_says(tmp_path: Path, name: str, said: list[str]) -> None:
    page = tmp_path / "page.html"
    run = CliRunner().invoke(group, ["simulate", str(FOLDER / f"{name}.yaml"), "--html", str(page)])
    assert run.exit_code == 0, run.output
    text = page.read_text()
    for part in said:
        assert part in text
    assert "http" not in text
    assert "<script" not in text


def test_a_service_shows_percentiles_events_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    file = FOLDER / "qwen3-lost-rank.yaml"
    options = ["--set", "requests=60", "--set", "name=<b>bold</b>", "--html", str(page)]
    run = CliRunner().invoke(group, ["simulate", str(file), *options, "--quiet"])
    assert run.exit_code == 0, run.output
    text = page.read_text()
    assert "ttft p99 ms" in text
    assert "experts lost" in text
    assert "slot 000" in text
    assert "<b>bold</b>" not in text


def test_a_gantt_draws_every_piece_inside_its_width() -> None:
    drawn = gantt([("a", "F 0", 0.0, 1.0), ("b", "B & 1", 1.0, 3.0)], "two")
    assert drawn.count("<rect") == 2
    assert "B &amp; 1" in drawn
    assert gantt([], "none").count("<rect") == 0
