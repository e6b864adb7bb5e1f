"""CPU seconds of ten thousand lines of `estimate --batch`, files read and answers written.

Two batches: one model on one machine over a user's sweep; and the shipped published runs (many
models, machines, engines and layouts) drawn anew, their lengths and callers moved by up to a
quarter so that no two lines are one.
"""

import json
import os
import random
import resource
import subprocess
import sys

import pytest

from planner.validation.accuracy import shipped
from planner.validation.evidence import read_evidence

pytestmark = pytest.mark.benchmark
LINES = 10_000
LAYOUTS = ((1, 1, 1), (2, 1, 2), (2, 1, 1), (4, 1, 4), (4, 1, 1), (8, 1, 8), (1, 4, 4), (1, 8, 8))


def sweep():
    """One model on one machine."""
    draw = random.Random(5)
    for i in range(LINES):
        tp, dp, ep = LAYOUTS[i % len(LAYOUTS)]
        yield {"id": i, "model": "qwen3-235b-a22b", "device": "h200-sxm", "backend": "vllm",
               "precision": "fp8", "tp": tp, "dp": dp, "moe_ep": ep, "moe_tp": tp * dp // ep,
               "isl": draw.randint(200, 8000), "osl": draw.randint(50, 2000),
               "concurrency": draw.randint(1, 256)}  # fmt: skip


def published():
    """Published runs, each moved a little."""
    draw = random.Random(7)
    points = [figure.point for figure in read_evidence(shipped()).figures]
    for i in range(LINES):
        point = draw.choice(points) | {"id": i}
        moved = [name for name in ("isl", "osl", "concurrency") if name in point]
        yield point | {name: max(1, round(point[name] * draw.uniform(0.8, 1.25))) for name in moved}


@pytest.mark.parametrize("lines", [sweep, published], ids=lambda made: made.__name__)
def test_ten_thousand_lines(benchmark, tmp_path, lines):
    asked, answers = tmp_path / "lines.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("".join(f"{json.dumps(line)}\n" for line in lines()), encoding="utf-8")
    command = [sys.executable, "-m", "api", "estimate", "--batch", str(asked),
               "--out", str(answers), "--quiet"]  # fmt: skip
    # An installed package has its byte code; a shell that forbids writing it would compile anew.
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    own |= {"POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    spent = []

    def run():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env=own)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)

    benchmark.pedantic(run, rounds=3)
    found = answers.read_text(encoding="utf-8").splitlines()
    assert len(found) == LINES
    benchmark.extra_info["cpu_s"] = round(min(spent), 2)
    benchmark.extra_info["answered"] = sum('"error":{' not in line for line in found)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    benchmark.extra_info["peak_mib"] = peak
