"""Priced passes of lines written as their answers: quantities, memory, what is taken for granted.

An answer is plain data with the fields of `Estimated`, in their order: ten thousand lines have a
million numbers, all just computed, and checking each again would cost more than pricing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from planner.line_columns import DECODE, PREFILL, Lines
from planner.point import Point
from planner.point_offload import offload_notes, offload_summary
from planner.point_rows import callers_of, layout_notes
from planner.pricing import Priced, Question
from planner.quantities import Source
from planner.timing.serving import SIDES
from planner.timing.step import share_rows, stages_of, weakest_sources
from planner.work.memory import MEMORY
from planner.work.rows import Array

Row = dict[str, Any]
Sides = dict[str, Array]
"""A quantity's low, typical and high value of each line."""
WEIGHTS = MEMORY[:6]
OPPOSITE = {"low": "high", "typical": "typical", "high": "low"}


@dataclass(frozen=True)
class Served:
    """What lines do: columns `SERVING` of both passes, one row a line in the lines' order."""

    lines: Lines
    points: Sequence[Point]
    priced: Priced
    prefill: pl.DataFrame
    decode: pl.DataFrame
    waiting: Array
    """Requests that wait for a seat."""

    @property
    def pooled(self) -> bool:
        """Whether prefill and decode have workers of their own."""
        return self.points[0].mode == "disagg"

    def sides(self, which: int, name: str) -> Sides:
        """The three columns of a quantity."""
        frame = self.prefill if which == PREFILL else self.decode
        return {side: frame[f"{name}_{side}"].to_numpy() for side in SIDES}

    def requests_per_s(self) -> Sides:
        """The slower pool's rate, and no more than the callers' closed loop gives."""
        rates = self.sides(DECODE, "request_rate")
        if not self.pooled:
            return rates
        get, other = self.lines.numbers, self.sides(PREFILL, "request_rate")
        ttft, tpot = self.sides(PREFILL, "ttft_s"), self.sides(DECODE, "tpot_s")
        first, second = (part.workers for part in self.lines.parts)
        for side in SIDES:
            turn = ttft[OPPOSITE[side]] + (get["osl"] - 1) * tpot[OPPOSITE[side]]
            rate = np.minimum(first * other[side], second * rates[side])
            rates[side] = np.fmin(rate, get["concurrency"] / turn)
        return rates

    def devices(self) -> Array:
        """Devices of all workers."""
        if not self.pooled:
            return self.decode["devices"].to_numpy()
        first, second = (part.workers for part in self.lines.parts)
        prefill, decode = (frame["devices"].to_numpy() for frame in (self.prefill, self.decode))
        return np.asarray(first * prefill + second * decode)


def written(of: Served) -> list[Row]:
    """One answer a line."""
    source, shares = _explained(of)
    columns: dict[str, list[Any]] = {
        name: _estimates(sides, source) for name, sides in _quantities(of).items()
    }
    power = [q.cluster.device.power_w for q in of.lines.questions]
    if any(power):
        output = columns["output_tokens_per_s_per_device"]
        watts = [power[question] for question in of.lines.of.tolist()]
        columns["energy_j_per_token"] = [
            None if w is None else _energy(w.value, told)
            for w, told in zip(watts, output, strict=True)
        ]
    columns["memory"] = _memory(of)
    columns["fits"] = [m["total_bytes"] <= m["capacity_bytes"] for m in columns["memory"]]
    columns["offload"] = _offload(of, shares)
    columns["breakdown"] = shares
    columns["assumptions"] = _assumptions(of, columns["memory"], columns["offload"])
    columns["offload"] = [
        told and told.model_dump(exclude_none=True) for told in columns["offload"]
    ]
    names = ("id", *columns)
    rows = zip((point.id for point in of.points), *columns.values(), strict=True)
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in rows
    ]


def _quantities(of: Served) -> dict[str, Sides]:
    """TTFT, TPOT and rates in the order of `Estimated`."""
    get, rates, devices = of.lines.numbers, of.requests_per_s(), of.devices()
    ttft, tpot = of.sides(PREFILL, "ttft_s"), of.sides(DECODE, "tpot_s")
    ratio = of.prefill["ttft_median_ratio"].to_numpy()
    median = {side: values * ratio for side, values in ttft.items()}
    found = {
        "ttft_s": _queued(ttft, of.waiting, rates), "ttft_median_s": _queued(
            median, of.waiting, rates), "tpot_s": tpot, "itl_s": tpot,
    }  # fmt: skip
    tokens = {"output": get["osl"], "total": get["osl"] + get["isl"]}
    for name, count in tokens.items():
        found[f"{name}_tokens_per_s_per_device"] = {
            side: rate * count / devices for side, rate in rates.items()
        }
    return found | (_pool_rates(of) if of.pooled else {})


def _queued(ttft: Sides, waiting: Array, rates: Sides) -> Sides:
    """TTFT of those who wait for a seat besides: Little's law on the queue."""
    return {side: values + waiting / rates[OPPOSITE[side]] for side, values in ttft.items()}


def _pool_rates(of: Served) -> dict[str, Sides]:
    """Tokens a second and device that each pool gives when it never waits for the other."""
    get, found = of.lines.numbers, {}
    for which, role, count, frame in (
        (PREFILL, "prefill", get["isl"] - get["cached"], of.prefill),
        (DECODE, "decode", get["osl"], of.decode),
    ):
        rates, devices = of.sides(which, "request_rate"), frame["devices"].to_numpy()
        found[f"{role}_tokens_per_s_per_device"] = {
            side: rate * count / devices for side, rate in rates.items()
        }
    return found


def _estimates(sides: Sides, source: Sequence[Source]) -> list[Row]:
    columns = (sides[side].tolist() for side in ("typical", "low", "high"))
    return [
        {"typical": typical, "low": low, "high": high, "source": told}
        for typical, low, high, told in zip(*columns, source, strict=True)
    ]


def _energy(watts: float, output: Row) -> Row:
    """Watts of the device over its tokens per second."""
    sides = {side: watts / output[OPPOSITE[side]] for side in ("typical", "low", "high")}
    return sides | {"source": output["source"]}


def _passes(of: Served) -> pl.DataFrame:
    """The decode pass of each line."""
    return of.priced.passes.filter(phase="decode").sort("line")


def _explained(of: Served) -> tuple[list[Source], list[list[Row]]]:
    """How certain each line is, and where its decode pass spends its time."""
    points = of.priced.passes["point"].to_numpy()
    line_of = np.empty(int(points.max()) + 1, dtype=np.intp)
    line_of[points] = of.priced.passes["line"].to_numpy()
    rows = line_of[of.priced.timed["point"].to_numpy()]
    decode = _passes(of)
    stages = stages_of(of.priced.timed, decode["point"].to_numpy().astype(np.intp))
    return weakest_sources(of.priced.timed, rows, of.lines.count), share_rows(stages, decode)


def _memory(of: Served) -> list[Row]:
    use, total = _passes(of), of.decode["total_bytes"].to_numpy()
    weights = np.zeros(of.lines.count)
    for name in WEIGHTS:
        weights = weights + use[name].to_numpy()
    columns = {
        "total_bytes": total,
        "weights_bytes": weights,
        "kv_bytes": use["kv_bytes"].to_numpy(),
        "activation_bytes": use["activation_bytes"].to_numpy() + total
        - use["total_bytes"].to_numpy(),
        "buffer_bytes": use["buffer_bytes"].to_numpy(),
        "capacity_bytes": of.lines.asked(lambda question: question.capacity_bytes),
    }  # fmt: skip
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _offload(of: Served, shares: Sequence[Sequence[Row]]) -> list[Any]:
    question = of.lines.questions[0]
    if question.offload is None:
        return [None] * of.lines.count
    passes = _passes(of).iter_rows(named=True)
    return [
        offload_summary(row, parts, question) for row, parts in zip(passes, shares, strict=True)
    ]


def _assumptions(of: Served, memory: Sequence[Row], offload: Sequence[Any]) -> list[list[str]]:
    known = [_of_question(question) for question in of.lines.questions]
    notes: dict[tuple[int, int], list[str]] = {}
    spread = of.lines.parts[DECODE].degrees["moe_ep"].astype(int).tolist()
    found = []
    for i, (number, waits) in enumerate(
        zip(of.lines.of.tolist(), of.waiting.tolist(), strict=True)
    ):
        question, point, key = of.lines.questions[number], of.points[i], (number, spread[i])
        if key not in notes:
            notes[key] = layout_notes(spread[i], question)
        texts = [*known[number]]
        if waits > 0:
            texts.append(_waiting_text(point, waits))
        if point.cluster is None:
            texts.append(f"cluster: {question.cluster.name} taken for device {point.device}")
        over = (memory[i]["total_bytes"] - memory[i]["capacity_bytes"]) / 2**30
        if over > 0:
            texts.append(f"memory: {over:.1f} GiB more than the device has; figures assume it fits")
        found.append([*texts, *offload_notes(offload[i], question), *notes[key]])
    return found


def _of_question(question: Question) -> tuple[str, ...]:
    return (*question.model.assumptions, *question.engine.assumptions)


def _waiting_text(point: Point, waiting: float) -> str:
    callers = callers_of(point)
    fed = "the prefill pool doesn't feed, or " if point.mode == "disagg" else ""
    return (
        f"concurrency: {callers - waiting:.0f} of {callers} requests run at once, more "
        f"{fed}neither memory nor the scheduler holds; the others wait, and ttft says so"
    )
