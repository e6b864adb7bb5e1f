"""The serving simulation against theory, against itself, and with the worst inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.simulation.arrivals import (
    ClosedLoop,
    fixed_lengths,
    gamma_arrivals,
    lognormal_lengths,
    ramp_arrivals,
)
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Options, Pool, Serving, Split
from planner.simulation.step_seconds import Iteration, LinearSteps, SlowestRank
from planner.simulation.summary import Slo, banded, measures, student_t

STEPS = SlowestRank(LinearSteps(8e-3, 2e-5, 3e-5, 2e-8, 1e-9))
LIMITS = EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048, kv_blocks=4096)


def serve(pool: Pool, source: object, split: Split | None = None, **options: object):
    run = Serving(pool, source, split, Options(**options)).run()  # type: ignore[arg-type]
    return run, run.log.close().sort("request_index")


def poisson(rate: float, seed: int = 1, isl: int = 512, osl: int = 100) -> Iterator[Request]:
    random = np.random.default_rng(seed)
    return gamma_arrivals(rate, 1.0, lognormal_lengths(isl, osl, 0.6), random)


def test_one_request_alone_takes_the_closed_form() -> None:
    isl, osl, budget = 5000, 37, 2048
    _, table = serve(Pool(LIMITS, STEPS), iter([Request(1.5, isl, osl)]))
    expected, past = 0.0, 0
    while past < isl:
        chunk = min(budget, isl - past)
        pairs = chunk * past + chunk * (chunk + 1) // 2
        expected += 8e-3 + chunk * 2e-5 + pairs * 1e-9
        past += chunk
    ttft = expected
    for step in range(osl - 1):
        expected += 8e-3 + 3e-5 + (isl + step + 1) * 2e-8
    row = table.row(0, named=True)
    assert row["ttft_s"] == pytest.approx(ttft, rel=1e-9)
    assert row["e2e_s"] == pytest.approx(expected, rel=1e-9)
    assert row["tpot_s"] == pytest.approx((expected - ttft) / (osl - 1), rel=1e-9)


def mean_wait(make: object, seeds: int = 12) -> tuple[float, float]:
    """Mean queueing time over seeds and the half width of its 99 % band."""
    means = []
    for seed in range(seeds):
        pool, source, count = make(seed)  # type: ignore[operator]
        _, table = serve(pool, source, seed=seed, max_requests=count)
        means.append(table["queue_s"].mean())
    spread = float(np.std(means, ddof=1)) / math.sqrt(seeds)
    return float(np.mean(means)), student_t(0.995, seeds - 1) * spread


def test_one_server_with_fixed_service_is_the_m_d_1_queue() -> None:
    service, load = 0.1, 0.7
    limits = replace(LIMITS, max_num_seqs=1)

    def make(seed: int):
        source = gamma_arrivals(
            load / service, 1.0, fixed_lengths(1, 1), np.random.default_rng(1000 + seed)
        )
        return Pool(limits, SlowestRank(LinearSteps(service))), source, 8000

    mean, band = mean_wait(make)
    theory = load * service / (2 * (1 - load))
    assert abs(mean - theory) < band
    assert band < 0.1 * theory


def test_servers_before_one_queue_are_the_m_m_c_queue() -> None:
    servers, load, token_s = 3, 0.8, 1e-5
    limits = EngineLimits(max_num_seqs=1, max_num_batched_tokens=10**7, kv_blocks=10**6)

    def make(seed: int):
        def lengths(random: np.random.Generator) -> tuple[int, int]:
            return max(1, round(random.exponential(10_000))), 1

        source = gamma_arrivals(
            load * servers / 0.1, 1.0, lengths, np.random.default_rng(2000 + seed)
        )
        steps = SlowestRank(LinearSteps(0.0, token_s))
        return Pool(limits, steps, replicas=servers, router="shared_queue"), source, 8000

    mean, band = mean_wait(make)
    offered = servers * load
    tail = offered**servers / math.factorial(servers) / (1 - load)
    busy = tail / (sum(offered**n / math.factorial(n) for n in range(servers)) + tail)
    theory = busy * 0.1 / (servers * (1 - load))
    assert abs(mean - theory) < band
    assert band < 0.15 * theory


CASES = {
    "plain": (Pool(LIMITS, STEPS), 30.0),
    "preempting": (Pool(replace(LIMITS, kv_blocks=900), STEPS), 60.0),
    "lockstep": (Pool(replace(LIMITS, kv_blocks=900), STEPS, replicas=2, dp=2), 90.0),
    "speculating": (Pool(replace(LIMITS, mtp_tokens=2, mtp_acceptance_ratio=0.7), STEPS), 30.0),
    "prompts first": (Pool(replace(LIMITS, prefill_first=True, kv_blocks=900), STEPS), 60.0),
    "planned ahead": (Pool(replace(LIMITS, async_scheduling=True), STEPS), 40.0),
    "one queue": (Pool(LIMITS, STEPS, replicas=3, router="shared_queue"), 80.0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("closed", [False, True])
def test_skipping_quiet_stretches_changes_nothing(name: str, closed: bool) -> None:
    pool, rate = CASES[name]
    found = []
    for skip in (True, False):
        loop = ClosedLoop(100, lognormal_lengths(512, 100, 0.6), think_s=0.02, stagger_s=1.0)
        source = loop if closed else poisson(rate)
        found.append(serve(pool, source, skip_quiet=skip, max_requests=700))
    (fast, fast_table), (slow, slow_table) = found
    assert fast_table.equals(slow_table)
    assert fast.timeline.table().equals(slow.timeline.table())
    assert [group.busy_s for group in fast.groups] == [group.busy_s for group in slow.groups]
    assert fast.groups[0].itl_counts == slow.groups[0].itl_counts
    assert all(r.kv.used == 0 for g in fast.groups for r in g.ranks)


def test_skipping_saves_events_when_little_arrives() -> None:
    events = []
    for skip in (True, False):
        run = Serving(Pool(LIMITS, STEPS), iter([Request(0.0, 10, 200)]), None,
                      Options(skip_quiet=skip))  # fmt: skip
        calls: list[float] = []
        book = run.clock.call_at
        run.clock.call_at = lambda *a, book=book, calls=calls: (calls.append(a[0]), book(*a))[1]  # type: ignore[method-assign]
        run.run()
        events.append(len(calls))
    assert events[0] < 10
    assert events[1] >= 200


def test_preemption_recomputes_and_everything_is_answered() -> None:
    pool = CASES["preempting"][0]
    run, table = serve(pool, poisson(60.0), max_requests=400)
    assert table.height == 400
    assert table["preemptions_count"].sum() == sum(r.preemptions for r in run.groups[0].ranks) > 0
    plenty, easy = serve(Pool(LIMITS, STEPS), poisson(60.0), max_requests=400)
    assert plenty.groups[0].ranks[0].preemptions == 0
    assert table["e2e_s"].mean() > easy["e2e_s"].mean()


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    def text(seed: int) -> str:
        random = np.random.default_rng(seed)
        source = gamma_arrivals(20, 0.5, lognormal_lengths(300, 50, 1.0), random)
        pool = Pool(replace(LIMITS, mtp_tokens=1, mtp_acceptance_ratio=0.8), STEPS)
        return serve(pool, source, seed=seed, max_requests=200)[1].write_csv()

    assert text(3) == text(3)
    assert text(3) != text(4)


def test_slowest_rank_sets_the_pace() -> None:
    def heavy(work: Iteration) -> float:
        return 1e-3 * work.prefill_tokens + 1e-2

    requests = [Request(0.0, 100, 2), Request(0.0, 1000, 2)]
    _, table = serve(Pool(LIMITS, SlowestRank(heavy), dp=2), iter(requests))
    first, second = table["first_token_s"].to_list()
    # The first starts alone: arrivals of one instant are taken one by one.
    assert table["rank_index"].to_list() == [0, 1]
    assert first == pytest.approx(0.11)
    assert second == pytest.approx(0.11 + 1.01)
    # Both wait for the second's prefill before the first's next token.
    assert table["finished_s"][0] == pytest.approx(0.11 + 1.01)


def test_prefix_cache_spares_computed_tokens() -> None:
    def same() -> Iterator[Request]:
        for number in range(20):
            yield Request(float(number), 2000, 10, (1, 2, 3, 100 + number), 512)

    on = Pool(replace(LIMITS, prefix_cache=True), STEPS)
    run, table = serve(on, same())
    assert table["cached_tokens"].to_list() == [0] + [1536] * 19
    _, without = serve(Pool(LIMITS, STEPS), same())
    assert without["cached_tokens"].sum() == 0
    assert table["ttft_s"][5] < without["ttft_s"][5]
    kv = run.groups[0].ranks[0].kv
    assert kv.used == 0
    assert kv.available == kv.blocks


def test_prefixes_are_evicted_when_blocks_are_needed() -> None:
    def different() -> Iterator[Request]:
        for number in range(30):
            ids = tuple(range(number * 10, number * 10 + 4))
            yield Request(float(number), 2048, 10, ids, 512)
        yield Request(40.0, 2048, 10, (0, 1, 2, 3), 512)
        yield Request(41.0, 2048, 10, (290, 291, 292, 293), 512)

    limits = replace(LIMITS, prefix_cache=True, kv_blocks=600)
    _, table = serve(Pool(limits, STEPS), different())
    assert table["cached_tokens"][30] == 0
    assert table["cached_tokens"][31] > 1000


def test_prefix_blocks_must_divide() -> None:
    limits = replace(LIMITS, prefix_cache=True, block_tokens=24)
    with pytest.raises(MoesaicError, match="do not divide"):
        serve(Pool(limits, STEPS), iter([Request(0.0, 600, 2, (1, 2), 512)]))


def test_prefill_and_decode_apart_pay_for_the_link() -> None:
    isl, osl, kv_bytes, rate, latency = 1000, 11, 100_000.0, 1e9, 1e-3
    split = Split(Pool(LIMITS, STEPS), kv_bytes, rate, latency)
    run, table = serve(Pool(LIMITS, STEPS), iter([Request(0.0, isl, osl)]), split)
    prefill = STEPS([Iteration(isl, 1, isl * (isl + 1) // 2)])
    decode = sum(STEPS([Iteration(0, 0, 0, 1, isl + i + 1)]) for i in range(osl - 1))
    row = table.row(0, named=True)
    assert row["ttft_s"] == pytest.approx(prefill, rel=1e-9)
    assert row["e2e_s"] == pytest.approx(
        prefill + isl * kv_bytes / rate + latency + decode, rel=1e-9
    )
    assert run.links is not None
    assert run.links.moved_bytes == isl * kv_bytes
    assert all(r.kv.used == 0 for g in run.groups for r in g.ranks)


def test_transfers_queue_on_a_shared_link() -> None:
    split = Split(Pool(LIMITS, STEPS), 1e6, 1e9)
    requests = [Request(0.0, 1000, 3), Request(0.0, 1000, 3), Request(0.0, 40, 3)]
    run, table = serve(Pool(LIMITS, STEPS), iter(requests), split)
    assert run.links is not None
    assert run.links.waited_s > 0
    assert run.links.busy_s == pytest.approx(2.04)
    assert table["finished_s"].max() > 2.04


def test_speculation_yields_its_expected_tokens() -> None:
    acceptance, osl = 0.7, 400
    limits = replace(LIMITS, mtp_tokens=2, mtp_acceptance_ratio=acceptance)
    run, _ = serve(Pool(limits, STEPS), iter([Request(i * 100.0, 10, osl) for i in range(60)]))
    tokens = 60 * (osl - 1) / (run.groups[0].iterations - 60)
    assert tokens == pytest.approx(1 + acceptance + acceptance**2, rel=0.02)


def test_a_request_that_cannot_be_held_is_named() -> None:
    with pytest.raises(MoesaicError, match=r"request 0 \(trace line 7\) needs 70201 tokens"):
        serve(Pool(LIMITS, STEPS), iter([Request(0.0, 70_000, 200, line=7)]))


@pytest.mark.parametrize("pool", [Pool(LIMITS, STEPS, replicas=0), Pool(LIMITS, STEPS, dp=0)])
def test_pools_need_engines(pool: Pool) -> None:
    with pytest.raises(MoesaicError, match="1 or more"):
        serve(pool, iter([]))


def test_unknown_router_lists_the_known() -> None:
    with pytest.raises(MoesaicError, match="least_loaded"):
        serve(Pool(LIMITS, STEPS, router="lightest"), iter([]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(1, 900), st.integers(1, 60)), min_size=1, max_size=25
    ),
    st.integers(62, 200),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 2),
    st.booleans(),
)
def test_tokens_and_time_are_conserved(
    lengths: list[tuple[float, int, int]],
    blocks: int,
    slots: int,
    ahead: bool,
    mtp: int,
    first: bool,
) -> None:
    limits = EngineLimits(
        max_num_seqs=slots, max_num_batched_tokens=256, kv_blocks=blocks,
        async_scheduling=ahead, prefill_first=first, mtp_tokens=mtp, mtp_acceptance_ratio=0.5,
    )  # fmt: skip
    requests = [Request(t, isl, osl) for t, isl, osl in sorted(lengths)]
    tables = []
    for skip in (True, False):
        run, table = serve(Pool(limits, STEPS), iter(requests), skip_quiet=skip)
        rank = run.groups[0].ranks[0]
        assert rank.kv.used == 0
        assert rank.running == rank.queued == 0
        tables.append(table)
    table = tables[0]
    assert table.equals(tables[1])
    times = ["arrival_s", "queued_s", "scheduled_s", "first_token_s", "finished_s"]
    for early, late in itertools.pairwise(times):
        assert (table[early] <= table[late]).all()
    fewest = (table["osl_tokens"] - 1) // (1 + mtp)
    assert (table["e2e_s"] >= (fewest + 1) * 8e-3 - 1e-9).all()


def test_ramp_follows_its_rates() -> None:
    random = np.random.default_rng(5)
    source = ramp_arrivals([(0.0, 5.0), (100.0, 50.0)], fixed_lengths(1, 1), random)
    times = np.array([r.arrival_s for r in itertools.islice(source, 3000)])
    early, late = ((times < 50).sum(), ((times >= 50) & (times < 100)).sum())
    # Integrals of the rate: 50 x (5 + 27.5) / 2 and 50 x (27.5 + 50) / 2; five deviations.
    assert abs(early - 812.5) < 5 * math.sqrt(812.5)
    assert abs(late - 1937.5) < 5 * math.sqrt(1937.5)


def test_a_steep_ramp_down_is_drawn_at_once() -> None:
    random = np.random.default_rng(5)
    source = ramp_arrivals([(0.0, 1e4), (0.01, 1e-3)], fixed_lengths(1, 1), random)
    times = [r.arrival_s for r in itertools.islice(source, 200)]
    assert times == sorted(times)
    assert times[-1] > 1e4


@pytest.mark.parametrize(
    "points", [[], [(1.0, 2.0)], [(0.0, 1.0), (0.0, 2.0)], [(0.0, -1.0)], [(0.0, 1.0), (5.0, 0.0)]]
)
def test_bad_ramps_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(MoesaicError):
        next(ramp_arrivals(points, fixed_lengths(1, 1), np.random.default_rng(0)))


def test_goodput_counts_requests_within_every_limit() -> None:
    run, table = serve(Pool(LIMITS, STEPS), poisson(45.0), max_requests=500)
    median = float(table["ttft_s"].median())  # type: ignore[arg-type]
    figures = measures(run, table, Slo(ttft_s=median))
    assert figures["slo_attainment_ratio"] == pytest.approx(0.5, abs=0.01)
    assert figures["goodput_requests_per_s"] == pytest.approx(
        figures["requests_per_s"] * figures["slo_attainment_ratio"]
    )
    assert measures(run, table, Slo())["slo_attainment_ratio"] == 1
    assert figures["ttft_p50_s"] <= figures["ttft_p90_s"] <= figures["ttft_p99_s"]
    assert figures["itl_p50_s"] < figures["itl_p99_s"]


def test_inter_token_latency_of_one_request_is_its_tpot() -> None:
    run, table = serve(Pool(LIMITS, STEPS), iter([Request(0.0, 100, 500)]))
    figures = measures(run, table, Slo())
    assert figures["itl_p50_s"] == pytest.approx(table["tpot_s"][0], rel=0.01)


def test_bands_hold_their_share() -> None:
    random = np.random.default_rng(9)
    held = 0
    for _ in range(400):
        runs = [{"ttft_mean_s": float(x)} for x in random.normal(10, 1, size=5)]
        band = banded(runs)["ttft_mean_s"]
        held += band["low"] <= random.normal(10, 1) <= band["high"]
    assert 0.74 < held / 400 < 0.86


def test_table_columns_are_typed() -> None:
    _, table = serve(Pool(LIMITS, STEPS), iter([Request(0.0, 5, 1)]))
    assert table["tpot_s"].to_list() == [None]
    assert table.schema["request_index"] == pl.Int64
