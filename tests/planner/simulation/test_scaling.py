"""Layout changes under load: scale up, scale down, restart, failure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.simulation.arrivals import gamma_arrivals, lognormal_lengths, ramp_arrivals
from planner.simulation.autoscale import POLICIES, Autoscale, Bounds, Window, policy
from planner.simulation.rank import EngineLimits
from planner.simulation.scaling import LayoutChange
from planner.simulation.serving import Options, Pool, Serving
from planner.simulation.step_seconds import LinearSteps, SlowestRank

STEPS = SlowestRank(LinearSteps(8e-3, 2e-5, 3e-5, 2e-8))


def run(*changes: LayoutChange, skip: bool = True, rate: float = 35.0, dp: int = 3):
    random = np.random.default_rng(1)
    source = gamma_arrivals(rate, 1.0, lognormal_lengths(500, 250, 0.3), random)
    pool = Pool(EngineLimits(max_num_seqs=32), STEPS, dp=dp)
    serving = Serving(
        pool, source, None, Options(max_requests=1500, changes=changes, skip_quiet=skip)
    ).run()
    return serving, serving.log.close().sort("request_index")


ELASTIC = LayoutChange(10.0, 2.43, 4, STEPS)
COLD = LayoutChange(10.0, 12.0, 4, STEPS, down=True)
FAILURE = LayoutChange(10.0, 5.0, 2, STEPS, down=True, lost_ranks=(1,))
SHRINK = LayoutChange(10.0, 2.0, 2, STEPS)
LOSE_ONE = LayoutChange(10.0, 1.0, 2, STEPS, lost_ranks=(0,))
RELAYOUT = LayoutChange(10.0, 3.0, 2, STEPS, down=True, caches_lost=False, lost_ranks=(1,))


@pytest.mark.parametrize("change", [ELASTIC, COLD, FAILURE, SHRINK, LOSE_ONE, RELAYOUT])
def test_everything_is_answered_and_skipping_changes_nothing(change: LayoutChange) -> None:
    serving, table = run(change)
    assert table.height == 1500
    assert len(serving.groups[0].ranks) == change.dp
    assert all(rank.kv.used == 0 for rank in serving.groups[0].ranks)
    slow, slow_table = run(change, skip=False)
    assert table.equals(slow_table)
    assert serving.timeline.table().equals(slow.timeline.table())


def test_engines_that_start_again_size_their_caches_anew() -> None:
    for change, sizes in (
        (replace(COLD, kv_blocks=50_000), {50_000}),
        (COLD, {EngineLimits().kv_blocks}),
        (replace(ELASTIC, kv_blocks=50_000), {50_000, EngineLimits().kv_blocks}),
    ):
        serving, _ = run(change)
        assert {rank.kv.blocks for rank in serving.groups[0].ranks} == sizes


def test_intake_pauses_while_running_requests_go_on() -> None:
    _, table = run(ELASTIC)
    start, end = 10.0, 12.43
    during = table.filter(pl.col("scheduled_s").is_between(start + 0.05, end - 0.05))
    assert during.height == 0
    assert table.filter(pl.col("finished_s").is_between(start, end)).height > 0
    assert table["preemptions_count"].sum() == 0


def test_what_keeps_its_caches_goes_on_without_arrivals() -> None:
    pool = Pool(EngineLimits(), STEPS, dp=3)
    requests = iter([Request(0.0, 100, 400), Request(0.0, 100, 400), Request(0.0, 100, 400)])
    change = LayoutChange(1.0, 5.0, 2, STEPS, down=True, caches_lost=False, lost_ranks=(2,))
    run = Serving(pool, requests, None, Options(changes=(change,))).run()
    table = run.log.close()
    assert table["preemptions_count"].sort().to_list() == [0, 0, 1]
    assert table["e2e_s"].min() > 5.0 + 400 * 8e-3


def test_a_restart_serves_nothing_and_loses_caches() -> None:
    _, table = run(COLD)
    assert table.filter(pl.col("finished_s").is_between(10.05, 21.95)).height == 0
    assert table["preemptions_count"].sum() > 0


def throughput(table: pl.DataFrame, start: float, end: float) -> float:
    return table.filter(pl.col("finished_s").is_between(start, end)).height / (end - start)


def test_throughput_before_during_after_and_slo_order() -> None:
    _, elastic = run(ELASTIC, rate=100.0)
    _, cold = run(COLD, rate=100.0)
    # More is asked than served, as in the paper's offline run: the layout sets the rate.
    before = throughput(elastic, 5, 10)
    assert throughput(cold, 5, 10) == before
    assert throughput(elastic, 15, 25) > 1.15 * before
    assert throughput(cold, 27, 37) > 1.15 * before
    assert before > throughput(elastic, 9, 15) > throughput(cold, 9, 15)
    _, plain = run(rate=38.0)
    limit = {
        name: (table["e2e_s"] < 8.0).mean()
        for name, table in (
            ("elastic", run(ELASTIC, rate=38.0)[1]),
            ("cold", run(COLD, rate=38.0)[1]),
            ("none", plain),
        )
    }
    assert limit["elastic"] > limit["none"] > limit["cold"]


@pytest.mark.parametrize(
    "changes",
    [
        (LayoutChange(10.0, 5.0, 4, STEPS), LayoutChange(12.0, 1.0, 3, STEPS)),
        (LayoutChange(1.0, 1.0, 0, STEPS),),
        (LayoutChange(1.0, 1.0, 2, STEPS, group=3),),
    ],
)
def test_impossible_changes_are_refused(changes: tuple[LayoutChange, ...]) -> None:
    with pytest.raises(MoesaicError, match="layout change"):
        run(*changes)


BOUNDS = Bounds(1, 8, rank_requests_per_s=10.0)


def test_controllers_look_at_different_things() -> None:
    growing = Window((10.0, 20.0, 30.0, 40.0), waiting=0, slo_attainment_ratio=1.0, ranks=5)
    assert policy("forecast")(growing, BOUNDS) == 7  # 50 requests/s at 8 a rank
    assert policy("threshold")(growing, BOUNDS) == 5
    assert policy("attainment")(growing, BOUNDS) == 5
    late = Window((40.0,), waiting=30, slo_attainment_ratio=0.5, ranks=5)
    assert policy("threshold")(late, BOUNDS) == policy("attainment")(late, BOUNDS) == 6
    idle = Window((1.0,), waiting=0, slo_attainment_ratio=1.0, ranks=5)
    assert {name: rule(idle, BOUNDS) for name, rule in POLICIES.items()} == {
        "threshold": 4, "attainment": 4, "forecast": 1,
    }  # fmt: skip
    with pytest.raises(MoesaicError, match="no autoscaling policy"):
        policy("luck")


def autoscaled(rule: str, skip: bool = True):
    """A burst of three times the rate from 20 to 50 s; a rank serves about ten a second."""

    def change(before: int, after: int, now: float) -> list[LayoutChange]:
        return [LayoutChange(now, 2.43, after, STEPS, hold=after > before)]

    random = np.random.default_rng(3)
    points = [(0.0, 12.0), (20.0, 12.0), (22.0, 40.0), (50.0, 40.0), (52.0, 12.0)]
    source = ramp_arrivals(points, lognormal_lengths(500, 250, 0.3), random)
    settings = Autoscale(
        rule, Bounds(1, 6, rank_requests_per_s=9.0), 2.0, change,
        lambda request, end: end - request.arrival_s < 6.0,
    )  # fmt: skip
    options = Options(max_requests=2000, autoscale=settings, skip_quiet=skip)
    pool = Pool(EngineLimits(max_num_seqs=32), STEPS, dp=2)
    run = Serving(pool, source, None, options).run()
    return run, run.log.close().sort("request_index")


@pytest.mark.parametrize("rule", POLICIES)
def test_controllers_follow_a_burst_and_come_back(rule: str) -> None:
    run, table = autoscaled(rule)
    assert table.height == 2000
    assert len(run.changes.spans) >= 3
    assert len(run.groups[0].ranks) < 5
    random = np.random.default_rng(3)
    points = [(0.0, 12.0), (20.0, 12.0), (22.0, 40.0), (50.0, 40.0), (52.0, 12.0)]
    source = ramp_arrivals(points, lognormal_lengths(500, 250, 0.3), random)
    pool = Pool(EngineLimits(max_num_seqs=32), STEPS, dp=2)
    fixed = Serving(pool, source, None, Options(max_requests=2000)).run().log.close()
    assert (table["e2e_s"] < 6.0).mean() > (fixed["e2e_s"] < 6.0).mean()
    slow, slow_table = autoscaled(rule, skip=False)
    assert table.equals(slow_table)
    assert run.changes.spans == slow.changes.spans


def test_looking_ahead_beats_looking_back_in_a_burst() -> None:
    attained = {rule: (autoscaled(rule)[1]["e2e_s"] < 6.0).mean() for rule in POLICIES}
    assert attained["forecast"] > attained["attainment"]
