"""Simulation over REST and in the shell: the same answer, errors as problems."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from api.app import create_app
from api.cli import group
from api.commands.simulate import _progress
from planner.simulation.question import SimulationQuestion

QUESTION: dict[str, Any] = {
    "model": "qwen3-30b-a3b", "cluster": "dgx-h100", "layout": {"dp": 2},
    "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 1024},
    "load": {"kind": "poisson", "request_rate": 20, "lengths": {"isl": 400, "osl": 40}},
    "requests": 40, "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app())


def test_rest_and_shell_say_the_same(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/v1/simulations", json=QUESTION)
    assert answer.status_code == 200
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUESTION))
    paths = {name: tmp_path / f"{name}" for name in ("r.csv", "t.csv", "p.json")}
    run = CliRunner().invoke(
        group,
        ["simulate", str(file), "-o", "json", "--quiet", "--requests", str(paths["r.csv"]),
         "--timeline", str(paths["t.csv"]), "--trace", str(paths["p.json"])],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == answer.json()
    assert pl.read_csv(paths["r.csv"]).height == 40
    assert pl.read_csv(paths["t.csv"]).height > 10
    assert json.loads(paths["p.json"].read_text())["traceEvents"]


def test_the_table_shows_milliseconds(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUESTION))
    run = CliRunner().invoke(group, ["simulate", str(file), "--set", "seeds=1"])
    assert run.exit_code == 0
    assert "ttft p99 ms" in run.stdout
    assert "Assumed: engine: 16 sequences" in run.stdout


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"load": {"kind": "trace", "file": "/etc/passwd"}}, "/load/file"),
        (
            {"load": QUESTION["load"] | {"lengths": {"isl": 1, "osl": 1, "file": "/etc/passwd"}}},
            "/load/lengths/file",
        ),
        ({"requests": 1_000_000}, "/requests"),
        ({"load": {"kind": "flood"}}, "/load"),
        ({"speed": 1}, "/speed"),
        ({"layout": 5}, "/layout"),
    ],
)
def test_what_rest_refuses(client: TestClient, fields: dict[str, Any], place: str) -> None:
    answer = client.post("/v1/simulations", json=QUESTION | fields)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == place


def test_memory_that_does_not_fit_is_a_conflict(client: TestClient) -> None:
    body = QUESTION | {"engine": {"memory_share": 0.1}}
    assert client.post("/v1/simulations", json=body).status_code == 409


QUEUE = {"kind": "expert_queue", "device": "zcu102", "hidden": 192, "width": 384, "tokens": 129,
         "experts": 16}  # fmt: skip


def test_other_kinds_go_through_the_same_doors(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/v1/simulations", json=QUEUE)
    assert answer.status_code == 200
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUEUE))
    run = CliRunner().invoke(group, ["simulate", str(file), "-o", "json"])
    assert json.loads(run.stdout) == answer.json()
    table = CliRunner().invoke(group, ["simulate", str(file)]).stdout
    assert "expert queues: loads" in table
    assert "Assumed: every token chooses evenly" in table


def test_scaling_strategies_are_a_table() -> None:
    file = Path(__file__).parents[1] / "scenarios" / "simulate" / "scaling-qwen3.yaml"
    table = CliRunner().invoke(group, ["simulate", str(file)]).stdout
    assert "p2p 0.0449 s" in table or "p2p 0." in table
    assert table.index("elastic") < table.index("cold_restart")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--requests", "r.csv"], "has no requests"),
        (["--timeline", "t.csv"], "has no requests"),
        (["--set", "kind=luck"], "no simulation kind"),
        (["--set", "hidden=0"], "greater than or equal"),
    ],
)
def test_what_a_kind_cannot_give_is_said(tmp_path: Path, options: list[str], said: str) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUEUE))
    run = CliRunner().invoke(group, ["simulate", str(file), *options])
    assert run.exit_code != 0
    assert said in str(run.exception)


def test_offload_has_no_timeline(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "scenarios" / "simulate" / "offload-qwen3-board.yaml"
    asked = ["simulate", str(file), "--set", "tokens=20", "--trace", str(tmp_path / "p.json")]
    run = CliRunner().invoke(group, asked)
    assert run.exit_code != 0
    assert "has no timeline" in str(run.exception)


def test_a_pass_writes_its_timeline(tmp_path: Path) -> None:
    question = {"kind": "schedule", "stages": 2, "micro_batches": 4,
                "seconds": {"forward_s": 1, "backward_s": 2}}  # fmt: skip
    file, path = tmp_path / "q.json", tmp_path / "p.json"
    file.write_text(json.dumps(question))
    assert CliRunner().invoke(group, ["simulate", str(file), "--trace", str(path)]).exit_code == 0
    assert json.loads(path.read_text())["traceEvents"]
    table = tmp_path / "p.csv"
    assert CliRunner().invoke(group, ["simulate", str(file), "--trace", str(table)]).exit_code == 0
    slices = pl.read_csv(table)
    assert slices.columns == ["process", "track", "name", "start_s", "end_s"]
    assert slices.height == 16


def test_a_terminal_sees_simulated_and_real_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    question = SimulationQuestion.parse(QUESTION)
    with _progress(question, quiet=False) as tell:
        assert tell is not None
        tell(0, 20, 12.5)
        tell(1, 40, 17.5)
    shown = capsys.readouterr().err
    assert "40 requests" in shown
    assert "17.5 s simulated" in shown
    assert "run 2" in shown
    assert re.search(r"0:00:0\d", shown)
    with _progress(question, quiet=True) as silent:
        assert silent is None


def test_rest_takes_no_files_of_choices(client: TestClient) -> None:
    question = {"kind": "offload", "model": "deepseek-v2-lite", "device": "rk3588",
                "cached_experts": 10, "choices": "/etc/passwd"}  # fmt: skip
    answer = client.post("/v1/simulations", json=question)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/choices"
