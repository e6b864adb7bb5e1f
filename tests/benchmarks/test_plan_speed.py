"""How long the README's question takes: cold process, warm function, warm REST, each candidate."""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
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


STEPS = itertools.count(1)
"""Of all tests here: what one asked, no other asks again in the same process."""


def anew():
    """The first question over and over."""
    while True:
        yield read_scenario(FIRST)


def other_limits():
    """The first question under limits never asked before."""
    first = read_scenario(FIRST)
    for step in STEPS:
        limits = {"tpot_s": first.limits.tpot_s + 1e-4 * step, "ttft_s": 2 + 1e-2 * step}
        yield first.model_copy(update={"limits": first.limits.model_copy(update=limits)})


def other_workloads():
    """The first question with prompts and answers never asked for before."""
    first = read_scenario(FIRST)
    for step in STEPS:
        lengths = {"isl": first.workload.isl + 7 * step, "osl": first.workload.osl + 11 * step}
        yield first.model_copy(update={"workload": first.workload.model_copy(update=lengths)})


WARM = pytest.mark.parametrize("questions", [anew, other_limits, other_workloads])


def asked_each(benchmark, questions, ask):
    """Time each question once; what none of them shares with the last has to be worked out."""
    stream, spent = questions(), []
    for _ in range(2):
        ask(next(stream))
    for question in itertools.islice(stream, 15):
        started = time.process_time()
        answer = ask(question)
        spent.append(time.process_time() - started)
    benchmark.pedantic(ask, setup=lambda: ((next(stream),), {}), rounds=5)
    benchmark.extra_info["cpu_ms_least"] = round(min(spent) * 1e3, 1)
    benchmark.extra_info["cpu_ms_median"] = round(statistics.median(spent) * 1e3, 1)
    return answer


@WARM
def test_warm_plan(benchmark, questions):
    plan = asked_each(benchmark, questions, make_plan)
    benchmark.extra_info["candidates"] = plan.proof.candidates_count


def test_pricing_a_candidate(benchmark):
    scenario = read_scenario(FIRST)
    points = phase_points(layout_frame(enumerate_layouts(scenario)), scenario)
    question = question_of(scenario)
    benchmark(price, points, question)
    benchmark.extra_info["passes"] = points.height
    benchmark.extra_info["us_a_pass"] = round(benchmark.stats["mean"] / points.height * 1e6, 1)


@WARM
def test_warm_rest(benchmark, questions):
    client = TestClient(create_app(), headers={"content-type": "application/json"})

    def bodies():
        for question in questions():
            yield question.model_dump_json().encode()

    answer = asked_each(benchmark, bodies, lambda body: client.post("/v1/plans", content=body))
    assert answer.status_code == 200
