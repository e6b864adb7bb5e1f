"""Write docs/plan-growth.md: how `plan` grows with devices, experts and layers, and its speed.

`python -m tests.benchmarks.plan_page` measures all anew, each size in a process of its own.
"""

from __future__ import annotations

import datetime
import multiprocessing
import time
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "plan-growth.md"
GROWTH = {
    "Devices": [(devices, 256, 61) for devices in (8, 64, 512, 4096)],
    "Experts": [(32, experts, 61) for experts in (8, 64, 256, 1024)],
    "Layers": [(32, 256, layers) for layers in (1, 8, 32, 128)],
}
HEAD = """# How plans grow

Written by `python -m tests.benchmarks.plan_page` on two shared cores, {today}, other work running
beside. DeepSeek-V3's shape with other counts of experts and layers on nodes of eight H200,
aggregated and disaggregated, whole legal space, six ranked options with reasons. CPU seconds inside
a process that has its modules loaded:

- *first*: nothing known, the loads of experts drawn anew;
- *another limit*: the same with a limit of its own, the lesser of two: prices are kept, programmes
  are solved;
- *another workload*: other lengths of prompts and answers, the lesser of two: all passes are priced
  anew, what was drawn for the loads is kept.

Time follows the candidates, far below in proportion to devices: worker sizes are divisors of a node
or of the nodes. The first question on many experts costs more because their loads are drawn."""
TABLE = """
## {name}

| devices | experts | layers | candidates | first | another limit | another workload | gap |
|---|---|---|---|---|---|---|---|"""
ROUNDS = 2


def main() -> None:
    """Measure and write the page."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    parts = [HEAD.format(today=today)]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        for name, sizes in GROWTH.items():
            parts += [TABLE.format(name=name), *pool.map(row, sizes, chunksize=1)]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")


def row(size: tuple[int, int, int]) -> str:
    """One line of the table, in a process that has answered nothing before."""
    from planner.pipeline import make_plan
    from planner.scenario import Scenario
    from tests.benchmarks.test_search_growth import sized_question

    def spent(questions: list[Scenario]) -> float:
        used = []
        for question in questions:
            started = time.process_time()
            make_plan(question)
            used.append(time.process_time() - started)
        return min(used)

    question: Scenario = sized_question(*size)
    first = spent([question])
    proof = make_plan(question).proof
    limits, work = question.limits, question.workload
    limited = [
        question.model_copy(update={"limits": limits.model_copy(update={"tpot_s": 0.1 + n / 1e3})})
        for n in range(1, ROUNDS + 1)
    ]
    other = [
        question.model_copy(update={"workload": work.model_copy(
            update={"isl": work.isl + 7 * n, "osl": work.osl + 11 * n})})
        for n in range(1, ROUNDS + 1)
    ]  # fmt: skip
    devices, experts, layers = size
    return (
        f"| {devices} | {experts} | {layers} | {proof.candidates_count:,} | {first:.2f} | "
        f"{spent(limited):.3f} | {spent(other):.3f} | {proof.gap_ratio:.2%} |"
    )


if __name__ == "__main__":
    main()
