"""How long the README's question takes: cold process, warm function, warm REST, each candidate."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from planner.candidates import enumerate_layouts, layout_frame, phase_points
from planner.pipeline import make_plan, read_scenario
from planner.pricing import price, question_of

pytestmark = pytest.mark.benchmark
FIRST = Path(__file__).parents[1] / "scenarios" / "deepseek-v3-h200.yaml"


def test_cold_process(benchmark):
    command = [sys.executable, "-m", "api", "plan", str(FIRST), "--quiet"]
    # An installed package has its byte code; a shell that forbids writing it would compile anew.
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    asked = {"capture_output": True, "env": own}
    subprocess.run(command, check=True, **asked)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    benchmark.pedantic(subprocess.run, args=(command,), kwargs=asked | {"check": True}, rounds=5)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    benchmark.extra_info["cpu_s_a_run"] = round(spent / 5, 2)
    benchmark.extra_info["peak_mib"] = used.ru_maxrss // 1024


def test_warm_plan(benchmark):
    scenario = read_scenario(FIRST)
    plan = benchmark(make_plan, scenario)
    benchmark.extra_info["candidates"] = plan.proof.candidates_count


def test_pricing_a_candidate(benchmark):
    scenario = read_scenario(FIRST)
    points = phase_points(layout_frame(enumerate_layouts(scenario)), scenario)
    question = question_of(scenario)
    benchmark(price, points, question)
    benchmark.extra_info["passes"] = points.height
    benchmark.extra_info["us_a_pass"] = round(benchmark.stats["mean"] / points.height * 1e6, 1)


def test_warm_rest(benchmark):
    client = TestClient(create_app())
    body = read_scenario(FIRST).model_dump(mode="json")
    answer = benchmark(client.post, "/v1/plans", json=body)
    assert answer.status_code == 200
