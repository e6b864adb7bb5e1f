"""Given configurations priced: the lines of `estimate --batch`, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump
from hwprofiles.library import cluster_for, resolve_cluster
from planner.candidates import POINT, number
from planner.engines import load_engine
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.point import ErrorText, Estimated, MemorySummary, Point
from planner.point_offload import offload_notes, offload_summary
from planner.point_rates import energy_of, pool_rates, requests_per_s, side_by_side
from planner.point_rows import (
    callers_of,
    check_point,
    devices_of,
    formats_of_point,
    layout_notes,
    point_rows,
)
from planner.pricing import Priced, Question, price
from planner.quantities import Estimate, Source, StageShare
from planner.timing.serving import KEY, SIDES, beside, pool_ttft, serving_table
from planner.timing.step import stage_shares, weakest_source
from planner.training import TrainingPoint, estimate_training, is_training
from planner.work.memory import MEMORY

Row = dict[str, Any]
Shares = dict[int, tuple[StageShare, ...]]
Resolve = Callable[[Any], MoeModel]
WEIGHTS = MEMORY[:6]
ROUNDS = 40
"""Iterations that find the concurrency of a given request rate; each halves what is left of it."""


def estimate_one(data: object, model_of: Resolve = resolve_model) -> Estimated:
    """Estimate one configuration.

    Args:
        data: plain data of a `Point`.
        model_of: finds the model of a line; `load_model` also reads the user's files.

    Raises:
        MoesaicError: what `estimate_many` would put into the line's `error`.
    """
    if is_training(data):
        return estimate_training(parse_as(TrainingPoint, data, what="point"), model_of)
    point = parse_as(Point, data, what="point")
    return Group.of([point], model_of).answers()[0]


def estimate_many(lines: Sequence[object], model_of: Resolve = resolve_model) -> list[Estimated]:
    """Estimate many configurations, in order; a line that cannot be answered carries its error.

    Args:
        lines: plain data of a `Point` each, or the error that reading the line raised.
        model_of: as in `estimate_one`.
    """
    answers: dict[int, Estimated] = {}
    groups: dict[str, list[tuple[int, Point]]] = defaultdict(list)
    for i, line in enumerate(lines):
        try:
            if isinstance(line, MoesaicError):
                raise line
            if is_training(line):
                answers[i] = estimate_one(line, model_of)
                continue
            point = parse_as(Point, line, what="point")
            groups[_shared_key(point)].append((i, point))
        except MoesaicError as error:
            answers[i] = _failed(line, error)
    for members in groups.values():
        found = _safely([point for _, point in members], model_of)
        answers |= {i: answer for (i, _), answer in zip(members, found, strict=True)}
    return [answers[i] for i in range(len(lines))]


def _safely(points: list[Point], model_of: Resolve) -> list[Estimated]:
    """Answer a group at once; where that fails, line by line, so that only bad lines fail."""
    try:
        return Group.of(points, model_of).answers()
    except MoesaicError as error:
        if len(points) == 1:
            return [_failed(points[0].model_dump(mode="json"), error)]
    return [answer for point in points for answer in _safely([point], model_of)]


def _failed(line: object, error: MoesaicError) -> Estimated:
    key = line.get("id", "") if isinstance(line, dict) else ""
    named = key if isinstance(key, str | int) else ""
    return Estimated(id=named, error=ErrorText(kind=error.kind, message=str(error)))


SHARED = ("model", "device", "cluster", "backend", "backend_version", "precision", "kv_dtype",
          "mode", "routing", "policy", "offload", "prefix_bytes_per_s", "experts")  # fmt: skip
"""Fields that lines priced together have in common."""


def _shared_key(point: Point) -> str:
    return dump(point.model_dump(mode="json", include=set(SHARED)), "jsonl")


@dataclass(frozen=True)
class Group:
    """Lines that share model, machine, engine and formats."""

    points: list[Point]
    question: Question

    @classmethod
    def of(cls, points: list[Point], model_of: Resolve) -> Group:
        """Resolve what the lines share, and check the layout of each."""
        first = points[0]
        model = model_of(first.model)
        named, most = first.cluster, max(devices_of(point) for point in points)
        found = cluster_for(str(first.device), most) if named is None else resolve_cluster(named)
        question = Question(
            model, found, load_engine(first.backend, first.backend_version), first.routing,
            formats_of_point(first, model, found.device), first.policy,
            first.offload, first.prefix_bytes_per_s,
        )  # fmt: skip
        for point in points:
            check_point(point, question)
        return cls(points, question)

    def answers(self) -> list[Estimated]:
        """One answer a line."""
        held = {i: float(p.concurrency or 1) for i, p in enumerate(self.points)}
        asked = [i for i, p in enumerate(self.points) if p.request_rate is not None]
        if asked:
            held |= self._concurrency_of_rate(asked)
        priced = price(self.passes(held), self.question)
        running = self._running(priced, held)
        if running != held:
            priced = price(self.passes(running), self.question)
        table, source = self._table(priced), weakest_source(priced.timed)
        decoding = [row["decode_point"] for row in table.values()]
        asked_for = [point for point in decoding if point is not None]
        shares = stage_shares(priced.timed, priced.passes, asked_for)
        return [
            self._answer(i, table, priced, (source, held[i] - running[i], shares))
            for i in range(len(self.points))
        ]

    def _running(self, priced: Priced, held: dict[int, float]) -> dict[int, float]:
        """Sequences that run at once: the asked ones, or what cache memory and scheduler hold.

        A running sequence has on average half of its answer cached. Where not even the weights fit,
        the asked load stands and `fits` says no.
        """
        engine, limit = self.question.engine, self.question.limit_bytes
        running = dict(held)
        for row in priced.passes.filter(phase="decode").iter_rows(named=True):
            grown = row["past_tokens"] / row["context_tokens"]
            each = row["kv_bytes"] * grown / row["batch"]
            left = limit - (row["total_bytes"] - row["kv_bytes"])
            if left <= each or row["batch"] <= 1:
                continue
            most = min(left // max(each, 1.0), float(engine.scheduler.sequences.value))
            if most < row["batch"]:
                running[row["line"]] = held[row["line"]] * max(most, 1.0) / row["batch"]
        return running

    def passes(self, held: dict[int, float]) -> pl.DataFrame:
        """The prefill and decode pass of each line with its sequences in flight."""
        rows = [row for i, point in enumerate(self.points) if i in held
                for row in point_rows(i, point, held[i], self.question)]  # fmt: skip
        schema = {name: kind for name, kind in POINT.items() if name != "point"}
        schema |= {"line": pl.Int64, "prompt_tokens": pl.Float64}
        return number(pl.DataFrame(rows, schema=schema))

    def _table(self, priced: Priced) -> dict[tuple[int, str], Row]:
        """Serving rows by line and role."""
        table = serving_table(priced.passes, (self.points[0].mode,), (*KEY, "line"), priced.layer)
        if self.points[0].mode == "disagg":
            lines = priced.passes.select("point", "line")
            keyed = table.drop("line", strict=False).with_columns(
                pl.coalesce("decode_point", "prefill_point").alias("point")
            )
            table = keyed.join(lines, on="point", maintain_order="left")
        rows = {(row["line"], row["role"]): row for row in table.iter_rows(named=True)}
        if self.points[0].mode == "disagg" and priced.layer is not None:
            for line, waits in pool_ttft(self.beside(priced.passes), priced.layer).items():
                rows[line, "prefill"] |= waits
        return rows

    def beside(self, passes: pl.DataFrame) -> pl.DataFrame:
        """Decode passes of disaggregated lines beside the prefill pass that feeds them."""
        pools = pl.DataFrame(
            [(i, float(callers_of(p)), float(p.prefill.workers))
             for i, p in enumerate(self.points) if p.prefill],
            schema={"line": pl.Int64, "callers": pl.Float64, "prefill_workers": pl.Float64},
            orient="row",
        )  # fmt: skip
        prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
        return beside(prefill, decode, pools)

    def _concurrency_of_rate(self, asked: list[int]) -> dict[int, float]:
        """Little's law solved by bisection: the fewest users in flight that reach the rate.

        Raises:
            MoesaicError: `infeasible` when no concurrency reaches it.
        """
        low = dict.fromkeys(asked, 0.0)
        high = dict.fromkeys(asked, 65_536.0)
        for step in range(ROUNDS):
            tried = high if step == 0 else {i: (low[i] + high[i]) / 2 for i in asked}
            table = self._table(price(self.passes(tried), self.question))
            for i in asked:
                reached = table[i, "agg"]["request_rate_typical"]
                if step == 0 and reached < (self.points[i].request_rate or 0):
                    raise MoesaicError(
                        "infeasible",
                        f"request_rate {self.points[i].request_rate} is above what the worker "
                        f"serves at any concurrency, {reached:.3g} requests/s", "/request_rate",
                    )  # fmt: skip
                (high if reached >= (self.points[i].request_rate or 0) else low)[i] = tried[i]
        return high

    def _answer(
        self,
        i: int,
        table: dict[tuple[int, str], Row],
        priced: Priced,
        told: tuple[Source, float, Shares],
    ) -> Estimated:
        point = self.points[i]
        if point.mode == "agg":
            row = table[i, "agg"]
            parts = [(1, row)]
        else:
            assert point.prefill is not None  # noqa: S101 - the document says so
            assert point.decode is not None  # noqa: S101
            parts = [(point.prefill.workers, table[i, "prefill"]),
                     (point.decode.workers, table[i, "decode"])]  # fmt: skip
        return _estimated(point, parts, priced, self.question, told)


def _estimated(
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
        return Estimate(**{s: rate[s] * tokens / devices for s in SIDES}, source=source)

    output = per_device(point.osl)
    memory, parts_of = _memory(priced, decode, question), shares[decode["decode_point"]]
    away = offload_summary(priced, decode["decode_point"], parts_of, question)
    ttft = side_by_side(prefill, "ttft_s", source)
    if waiting > 0:
        turns = {"low": rate["high"], "typical": rate["typical"], "high": rate["low"]}
        ttft = Estimate(**{s: getattr(ttft, s) + waiting / turns[s] for s in SIDES}, source=source)
    return Estimated(
        id=point.id,
        ttft_s=ttft,
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


def _memory(priced: Priced, row: Row, question: Question) -> MemorySummary:
    use = priced.passes.row(row["decode_point"], named=True)
    return MemorySummary(
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
        texts.append(
            f"concurrency: {callers_of(point) - waiting:.0f} of {callers_of(point)} requests run "
            "at once, more neither memory nor the scheduler holds; the others wait, and ttft says "
            "so"
        )
    if point.cluster is None:
        texts.append(f"cluster: {question.cluster.name} taken for device {point.device}")
    if memory.total_bytes > memory.capacity_bytes:
        over = (memory.total_bytes - memory.capacity_bytes) / 2**30
        texts.append(f"memory: {over:.1f} GiB more than the device has; figures assume it fits")
    return tuple(texts)
