"""From a simulation question to its answer: price once, run over seeds, sum up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from planner.candidates import Layout
from planner.formats.lengths import read_vidur_lengths
from planner.formats.request import Request
from planner.formats.traces import read_trace
from planner.pricing import Question
from planner.simulation.arrivals import (
    ClosedLoop,
    Lengths,
    fixed_lengths,
    gamma_arrivals,
    lognormal_lengths,
    ramp_arrivals,
    sampled_lengths,
)
from planner.simulation.changes_asked import ScaledPool, ScalePlanner, StepsOf
from planner.simulation.planned_steps import GridAxes, PlannedSteps, Side
from planner.simulation.question import (
    ClosedLoad,
    Figure,
    LengthsDrawn,
    OpenLoad,
    PoolLayout,
    PoolName,
    RampLoad,
    SimulationAnswer,
    SimulationQuestion,
    TraceLoad,
)
from planner.simulation.rank import EngineLimits
from planner.simulation.record import RequestLog
from planner.simulation.serving import Options, Pool, Serving, Split
from planner.simulation.step_seconds import StepSeconds
from planner.simulation.summary import Slo, banded, measures

Progress = Callable[[int, int, float], None]
"""Called with run number, requests answered in it, simulated seconds."""
_LENGTH_REACH = 8.0
"""Drawn contexts beyond so many means lie on the last line of the grid."""
_PROGRESS_EVERY = 256


PLANNING_AHEAD = ("vllm", "sglang", "trtllm")
"""Engines that plan an iteration while the one before it runs, unless told otherwise: vLLM
(SchedulerConfig.async_scheduling), SGLang (--disable-overlap-schedule), TensorRT-LLM
(disable_overlap_scheduler), each by its documentation of 2025-12."""


@dataclass(frozen=True)
class Prepared:
    """A question with its passes priced."""

    question: SimulationQuestion
    limits: EngineLimits
    steps: PlannedSteps
    decode_limits: EngineLimits | None
    decode_steps: PlannedSteps | None
    scaling: tuple[ScalePlanner, ...] = ()
    """One for each pool whose ranks may change."""


def simulate(
    question: SimulationQuestion,
    *,
    requests_path: Path | None = None,
    on_progress: Progress | None = None,
) -> tuple[SimulationAnswer, Serving, pl.DataFrame]:
    """Answer a question.

    Args:
        question: what to simulate.
        requests_path: where the typical run of seed 0 writes its requests while it goes on.
        on_progress: told how far each run is.

    Returns:
        The answer, the typical run of seed 0 and its requests.

    Raises:
        MoesaicError: `infeasible` when memory or a request does not fit, `invalid` from a trace.
    """
    ready = prepare(question)
    slo = Slo(**question.slo.model_dump())
    first: tuple[Serving, pl.DataFrame] | None = None
    found: dict[Side, list[dict[str, float]]] = {"typical": [], "low": [], "high": []}
    plan: list[tuple[Side, int]] = [("typical", seed) for seed in range(_seeds(question))]
    plan += [("low", 0), ("high", 0)]
    for number, (side, seed) in enumerate(plan):
        log = RequestLog(requests_path if number == 0 else None)
        run = run_once(ready, side, seed, log, _listener(number, on_progress))
        table = log.close()
        found[side].append(measures(run, table, slo))
        first = first or (run, table)
    assert first is not None  # noqa: S101 - there is at least one seed
    return _answer(ready, found), *first


def prepare(question: SimulationQuestion) -> Prepared:
    """Read defaults from the engine, price every pass, and see what memory leaves for KV."""
    shared = question.shared()
    longest = _longest_tokens(question)
    pools: dict[PoolName, PoolLayout] = {"layout": question.layout}
    if question.decode is not None:
        pools["decode"] = question.decode
    ready, scaling, first = [], [], 0
    for name, pool in pools.items():
        limits, steps = _priced(question, pool, shared, longest)
        if question.scale_rates is not None:
            block_bytes = limits.block_tokens * steps.kv_token_bytes()
            steps_of = _steps_of(question, pool, shared, longest)
            planner = ScalePlanner(question, ScaledPool(name, pool, first, steps_of, block_bytes))
            limits = planner.limits(limits)
            scaling.append(planner)
        first += pool.replicas * pool.pp
        ready.append((limits, steps))
    limits, steps = ready[0]
    decode_limits, decode_steps = ready[1] if len(ready) > 1 else (None, None)
    return Prepared(question, limits, steps, decode_limits, decode_steps, tuple(scaling))


def _planned_ahead(question: SimulationQuestion) -> bool:
    asked = question.engine.async_scheduling
    return question.backend in PLANNING_AHEAD if asked is None else asked


def _steps_of(
    question: SimulationQuestion, pool: PoolLayout, shared: Question, longest: int
) -> StepsOf:
    """Price a pool with another number of ranks; its experts spread over all of them."""

    def price(dp: int) -> PlannedSteps:
        changed = pool.model_copy(update={"dp": dp, "moe_ep": None})
        return _priced(question, changed, shared, longest)[1]

    return price


def _priced(
    question: SimulationQuestion, pool: PoolLayout, shared: Question, longest_tokens: int
) -> tuple[EngineLimits, PlannedSteps]:
    asked, scheduler = question.engine, shared.engine.scheduler
    block_tokens = asked.block_tokens or int(shared.engine.kv_block_tokens.value)
    unfilled = EngineLimits(
        max_num_seqs=-(-(asked.max_num_seqs or int(scheduler.sequences.value)) // pool.pp),
        max_num_batched_tokens=asked.max_num_batched_tokens or int(scheduler.chunk_tokens.value),
        block_tokens=block_tokens,
        prefix_cache=asked.prefix_cache,
        mtp_tokens=asked.mtp_tokens,
        mtp_acceptance_ratio=asked.mtp_acceptance,
        async_scheduling=_planned_ahead(question),
        prefill_first=scheduler.policy == "prefill_first",
    )
    ranks = pool.tp * pool.dp
    moe_ep = pool.moe_ep or (ranks // pool.moe_tp if pool.moe_tp else ranks if pool.dp > 1 else 1)
    layout = Layout(pool.tp, pool.dp, pool.pp, pool.moe_tp or max(ranks // moe_ep, 1), moe_ep)
    axes = GridAxes.reaching(unfilled, longest_tokens)
    steps = PlannedSteps(shared, layout, unfilled, axes, pool.redundant_experts)
    capacity = question.cluster.device.capacity_bytes * asked.memory_share
    kv_blocks = asked.kv_blocks or steps.kv_blocks(capacity, block_tokens)
    # Batches in flight share a rank's cache evenly.
    return replace(unfilled, kv_blocks=max(kv_blocks // pool.pp, 1)), steps


def run_once(
    ready: Prepared,
    side: Side,
    seed: int,
    log: RequestLog,
    on_progress: Callable[[int, float], None] | None = None,
) -> Serving:
    """Run one seed with one side of the estimates."""
    question = ready.question

    def drawn(steps: PlannedSteps) -> StepSeconds:
        if question.expert_load == "drawn":
            return steps.drawn(side, seed)
        return steps.seconds(side)

    pool = _pool(question.layout, ready.limits, ready.steps, drawn)
    split = None
    if question.decode is not None:
        assert ready.decode_limits is not None  # noqa: S101 - prepared with the decode pool
        assert ready.decode_steps is not None  # noqa: S101
        decode = _pool(question.decode, ready.decode_limits, ready.decode_steps, drawn)
        tier = question.cluster.tier_for(question.cluster.device_count)
        split = Split(
            decode,
            # The ranks of one tensor-parallel group send their parts side by side.
            ready.steps.kv_token_bytes(),
            tier.bandwidth_bytes_per_s.value,
            tier.latency_s.value,
        )
    options = Options(seed=seed, max_requests=question.requests, on_progress=on_progress, log=log)
    for planner in ready.scaling:
        options.changes += planner.events(side)
        found = planner.autoscale(side)
        if found is not None:
            options.autoscale, options.autoscaled = found, tuple(planner.groups(0))
    return Serving(pool, source_of(question, seed), split, options).run()


def _pool(
    layout: PoolLayout, limits: EngineLimits, steps: PlannedSteps,
    seconds: Callable[[PlannedSteps], StepSeconds],
) -> Pool:  # fmt: skip
    return Pool(limits, seconds(steps), layout.replicas, layout.dp, layout.router, layout.pp)


def source_of(question: SimulationQuestion, seed: int) -> Iterator[Request] | ClosedLoop:
    """Requests of a question's load, drawn with the seed."""
    load, random = question.load, np.random.default_rng([seed, 1])
    if isinstance(load, TraceLoad):
        trace = read_trace(load.file, load.format)
        if load.speed_ratio == 1:
            return trace
        return (r._replace(arrival_s=r.arrival_s / load.speed_ratio) for r in trace)
    lengths = _lengths(load.lengths)
    if isinstance(load, ClosedLoad):
        return ClosedLoop(load.concurrency, lengths, load.think_s, load.stagger_s)
    if isinstance(load, OpenLoad):
        burstiness = load.burstiness if load.kind == "gamma" else 1.0
        return gamma_arrivals(load.request_rate, burstiness, lengths, random)
    assert isinstance(load, RampLoad)  # noqa: S101 - the last of the union
    points = list(zip(load.times_s, load.request_rates, strict=True))
    return ramp_arrivals(points, lengths, random)


def _lengths(drawn: LengthsDrawn) -> Lengths:
    if drawn.file is not None:
        return sampled_lengths(_measured_lengths(drawn.file))
    if not drawn.variation_ratio:
        return fixed_lengths(drawn.isl, drawn.osl)
    return lognormal_lengths(drawn.isl, drawn.osl, drawn.variation_ratio)


def _measured_lengths(path: Path) -> list[tuple[int, int]]:
    """Pairs of lengths: Vidur's CSV, or those of a trace whose arrivals do not matter."""
    if path.suffix == ".jsonl":
        return [(r.isl_tokens, r.osl_tokens) for r in read_trace(path)]
    return read_vidur_lengths(path)


def _longest_tokens(question: SimulationQuestion) -> int:
    """Longest context worth pricing: the trace's longest, or some means of drawn lengths."""
    load = question.load
    if isinstance(load, TraceLoad):
        requests = itertools.islice(read_trace(load.file, load.format), question.requests)
        return max(r.isl_tokens + r.osl_tokens for r in requests)
    if load.lengths.file is not None:
        return max(isl + osl for isl, osl in _measured_lengths(load.lengths.file))
    spread = 1 + _LENGTH_REACH * load.lengths.variation_ratio
    return round((load.lengths.isl + load.lengths.osl) * spread)


def _seeds(question: SimulationQuestion) -> int:
    draws = question.engine.mtp_tokens > 0 or question.expert_load == "drawn"
    return question.seeds if draws or question.load.kind != "trace" else 1


def _listener(number: int, on_progress: Progress | None) -> Callable[[int, float], None] | None:
    if on_progress is None:
        return None

    def tell(count: int, now_s: float) -> None:
        if count % _PROGRESS_EVERY == 0:
            on_progress(number, count, now_s)

    return tell


def _answer(ready: Prepared, found: dict[Side, list[dict[str, float]]]) -> SimulationAnswer:
    question = ready.question
    summary = {}
    for name, band in banded(found["typical"]).items():
        sides = [found[side][0].get(name, band["typical"]) for side in ("low", "high")]
        summary[name] = Figure(
            typical=band["typical"],
            low=min(band["low"], *sides),
            high=max(band["high"], *sides),
            mean_low=band["mean_low"],
            mean_high=band["mean_high"],
            source=ready.steps.source,
        )
    return SimulationAnswer(
        name=question.name,
        summary=summary,
        seeds=len(found["typical"]),
        kv_blocks=ready.limits.kv_blocks,
        events=tuple(cost for planner in ready.scaling for cost in planner.costs()),
        assumptions=_assumptions(ready),
    )


def _assumptions(ready: Prepared) -> tuple[str, ...]:
    limits = ready.limits
    shared = "prompts pause decoding" if limits.prefill_first else "prompts share iterations"
    if limits.async_scheduling:
        shared += ", iterations planned ahead"
    said = [
        f"engine: {limits.max_num_seqs} sequences and {limits.max_num_batched_tokens} tokens an "
        f"iteration, KV blocks of {limits.block_tokens} tokens; {shared}",
        "an iteration with prompts and decoding sequences costs the prefill pass of all its tokens "
        "and the decoding sequences' cache reads",
        "ranks that step together are priced as full as the slowest",
    ]
    said += [
        f"{pool.pp} pipeline stages: as many batches in flight, each with an even part of "
        "sequences and KV blocks; stages take equally long"
        for pool in (ready.question.layout, ready.question.decode)
        if pool is not None and pool.pp > 1
    ]
    if ready.question.decode is not None:
        tier = ready.question.cluster.tier_for(ready.question.cluster.device_count)
        said.append(f"KV caches travel over {tier.name}, one at a time for each prefill rank")
    return tuple(said)
