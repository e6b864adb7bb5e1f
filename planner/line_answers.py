"""Priced passes of a line written as its answer: quantities, memory, what is taken for granted."""

from __future__ import annotations

from typing import Any

from planner.point import Estimated, MemorySummary, Point
from planner.point_offload import offload_notes, offload_summary
from planner.point_rates import energy_of, pool_rates, requests_per_s, side_by_side
from planner.point_rows import callers_of, layout_notes
from planner.pricing import Priced, Question
from planner.quantities import Estimate, Source, StageShare
from planner.timing.serving import SIDES
from planner.work.memory import MEMORY

Row = dict[str, Any]
Shares = dict[int, tuple[StageShare, ...]]
WEIGHTS = MEMORY[:6]


def written(
    point: Point, parts: list[tuple[int, Row]], priced: Priced, question: Question,
    told: tuple[Source, float, Shares],
) -> Estimated:  # fmt: skip
    """Write one line's answer; `told`: certainty, requests that wait for a seat, stages by pass."""
    source, waiting, shares = told
    rows = {row["role"]: row for _, row in parts}
    decode, prefill = (rows.get("agg") or rows[role] for role in ("decode", "prefill"))
    devices = sum(workers * row["devices"] for workers, row in parts)
    rate = requests_per_s(point, parts)

    def per_device(tokens: float) -> Estimate:
        sides = {s: rate[s] * tokens / devices for s in SIDES}
        return Estimate.model_construct(**sides, source=source)

    output = per_device(point.osl)
    memory, parts_of = _memory(priced, decode, question), shares[decode["decode_point"]]
    away = offload_summary(priced, decode["decode_point"], parts_of, question)
    ttft = side_by_side(prefill, "ttft_s", source)
    median = ttft.times(prefill["ttft_median_ratio"])
    if waiting > 0:
        ttft, median = (_queued(found, waiting, rate) for found in (ttft, median))
    return Estimated(
        id=point.id,
        ttft_s=ttft,
        ttft_median_s=median,
        tpot_s=side_by_side(decode, "tpot_s", source),
        itl_s=side_by_side(decode, "tpot_s", source),
        output_tokens_per_s_per_device=output,
        total_tokens_per_s_per_device=per_device(point.osl + point.isl),
        **pool_rates(point, rows, source),
        energy_j_per_token=energy_of(question, output),
        memory=memory,
        fits=memory.total_bytes <= memory.capacity_bytes,
        offload=away,
        breakdown=parts_of,
        assumptions=(*_assumptions(point, question, memory, waiting),
                     *offload_notes(away, question), *layout_notes(point, question)),
    )  # fmt: skip


def _queued(ttft: Estimate, waiting: float, rate: dict[str, float]) -> Estimate:
    """TTFT of those who wait for a seat besides: Little's law on the queue."""
    turns = {"low": rate["high"], "typical": rate["typical"], "high": rate["low"]}
    sides = {s: getattr(ttft, s) + waiting / turns[s] for s in SIDES}
    return Estimate.model_construct(**sides, source=ttft.source)


def _memory(priced: Priced, row: Row, question: Question) -> MemorySummary:
    use = priced.passes.row(row["decode_point"], named=True)
    return MemorySummary.model_construct(
        total_bytes=row["total_bytes"],
        weights_bytes=sum(use[name] for name in WEIGHTS),
        kv_bytes=use["kv_bytes"],
        activation_bytes=use["activation_bytes"] + row["total_bytes"] - use["total_bytes"],
        buffer_bytes=use["buffer_bytes"],
        capacity_bytes=question.capacity_bytes,
    )


def _assumptions(
    point: Point, question: Question, memory: MemorySummary, waiting: float
) -> tuple[str, ...]:
    texts = [*question.model.assumptions, *question.engine.assumptions]
    if waiting > 0:
        callers = callers_of(point)
        fed = "the prefill pool doesn't feed, or " if point.mode == "disagg" else ""
        texts.append(
            f"concurrency: {callers - waiting:.0f} of {callers} requests run at once, more "
            f"{fed}neither memory nor the scheduler holds; the others wait, and ttft says so"
        )
    if point.cluster is None:
        texts.append(f"cluster: {question.cluster.name} taken for device {point.device}")
    if memory.total_bytes > memory.capacity_bytes:
        over = (memory.total_bytes - memory.capacity_bytes) / 2**30
        texts.append(f"memory: {over:.1f} GiB more than the device has; figures assume it fits")
    return tuple(texts)
