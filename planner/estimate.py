"""Given configurations priced: the lines of `estimate --batch`, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import polars as pl

from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for, resolve_cluster
from planner.candidates import POINT, number
from planner.engines import load_engine
from planner.line_answers import Row, Shares, written
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.point import ErrorText, Estimated, Point
from planner.point_rows import (
    callers_of,
    check_point,
    decode_ranks,
    devices_of,
    formats_of_point,
    point_rows,
)
from planner.pricing import Priced, Question, price
from planner.quantities import Source
from planner.timing.serving import KEY, beside, pool_ttft, serving_table
from planner.timing.step import stage_shares, weakest_source
from planner.training import TrainingPoint, estimate_training, is_training

Resolve = Callable[[Any], MoeModel]
SETTLING = 4
"""How often lines whose callers can't all run are priced again with those that can."""
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
    return point.model_dump_json(include=set(SHARED))


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
        engine = load_engine(first.backend, first.backend_version)
        question = Question(
            model, found, engine, first.routing,
            formats_of_point(first, model, found.device, engine.narrow_cache.needs), first.policy,
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
        running, priced = held, price(self.passes(held), self.question)
        for _ in range(SETTLING):
            before, running = running, self.running(priced, held)
            if running == before:
                break
            priced = price(self.passes(running), self.question)
        table, source = self._table(priced), weakest_source(priced.timed)
        decoding = [row["decode_point"] for row in table.values()]
        asked_for = [point for point in decoding if point is not None]
        shares = stage_shares(priced.timed, priced.passes, asked_for)
        return [
            self._answer(i, table, priced, (source, held[i] - running[i], shares))
            for i in range(len(self.points))
        ]

    def running(self, priced: Priced, held: dict[int, float]) -> dict[int, float]:
        """Sequences that run at once: the asked ones, or fewer where something holds them up.

        Cache memory and the scheduler: a running sequence has on average half of its answer cached;
        where not even the weights fit, the asked load stands and `fits` says no. A pool of
        prefills: no more decode than it feeds (Little's law).
        """
        engine, limit = self.question.engine, self.question.limit_bytes
        running, feeding = dict(held), self._feeding(priced.passes)
        for row in priced.passes.filter(phase="decode").iter_rows(named=True):
            now = row["batch"]
            grown = row["past_tokens"] / row["context_tokens"]
            each = row["kv_bytes"] * grown / now
            left = limit - (row["total_bytes"] - row["kv_bytes"])
            most = min(left // max(each, 1.0), float(engine.scheduler.sequences.value))
            most = most if left > each else inf
            point = self.points[row["line"]]
            ranks = decode_ranks(point)
            if row["line"] in feeding:
                tpot = row["typical_s"] / row["step_tokens"]
                most = min(most, feeding[row["line"]] * row["osl"] * tpot / ranks)
            asked = held[row["line"]] / ranks
            if asked > max(most, 1.0):
                running[row["line"]] = ranks * max(most, 1.0)
        return running

    def _feeding(self, passes: pl.DataFrame) -> dict[int, float]:
        """Prompts a second that the prefill pool of a disaggregated line makes."""
        rates = {}
        for row in passes.filter(phase="prefill").iter_rows(named=True):
            pool = self.points[row["line"]].prefill
            if pool is not None and self.points[row["line"]].concurrency is not None:
                ready = row["batch"] * row["dp"] * row["pp"] * pool.workers
                rates[row["line"]] = ready / row["typical_s"]
        return rates

    def passes(self, held: dict[int, float]) -> pl.DataFrame:
        """The prefill and decode pass of each line with its sequences in flight."""
        rows = [row for i, point in enumerate(self.points) if i in held
                for row in point_rows(i, point, held[i], self.question)]  # fmt: skip
        schema = {name: kind for name, kind in POINT.items() if name != "point"}
        schema |= {"line": pl.Int64, "prompt_tokens": pl.Float64, "open_loop": pl.Float64}
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
            waits = pool_ttft(self.beside(priced.passes), priced.layers)
            for row in waits.iter_rows(named=True):
                rows[row["line"], "prefill"] |= row
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
            MoesaicError: `infeasible` where what the worker holds doesn't reach it, even at the
                interval's fast side.
        """
        low, high = dict.fromkeys(asked, 0.0), dict.fromkeys(asked, 65_536.0)
        for _ in range(SETTLING):
            seats = self.running(price(self.passes(high), self.question), high)
            if seats == high:
                break
            high = seats
        table = self._table(price(self.passes(high), self.question))
        for i in asked:
            wanted, row = self.points[i].request_rate or 0, table[i, "agg"]
            if row["request_rate_high"] < wanted:
                raise MoesaicError(
                    "infeasible",
                    f"request_rate {wanted} is above what the worker serves with all that it "
                    f"holds, {row['request_rate_typical']:.3g} requests/s", "/request_rate",
                )  # fmt: skip
            if row["request_rate_typical"] < wanted:
                low[i] = high[i]
        for _ in range(ROUNDS):
            tried = {i: (low[i] + high[i]) / 2 for i in asked}
            table = self._table(price(self.passes(tried), self.question))
            for i in asked:
                reached = table[i, "agg"]["request_rate_typical"]
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
        return written(point, parts, priced, self.question, told)
