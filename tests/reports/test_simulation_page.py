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
        (
            "schedule-dualpipe",
            [
                "bubble %",
                "stage 007",
                "378 pieces of work",
                "forward beside backward (F+B)",
                "200 ms",
            ],
        ),
        ("scaling-qwen3", ["Strategies", "cold_restart", "warm-up 2.5 s", "</i>p2p", "20 s"]),
        ("expert-queue-edge-moe", ["1,496", "queues: loads", "200 us", "Assumptions"]),
        ("offload-qwen3-board", ["expert MiB", "2,466"]),
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


def test_a_gantt_has_a_time_axis_in_the_unit_of_its_span() -> None:
    late = gantt([("a", "F 0", 100.0, 100.004)], "a late start")
    assert "100,002 ms" in late
    assert ">0 ms<" not in late
    assert "2 us" in gantt([("a", "F 0", 0.0, 4e-6)], "short")
