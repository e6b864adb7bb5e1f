"""Given configurations as columns: one number a line for everything that pricing asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from planner.candidates import number, tokens_per_step
from planner.point import Point, PoolPoint
from planner.pricing import Question
from planner.timing.engine_layer import QUESTION
from planner.work.rows import Array, Codes

DEGREES = ("tp", "dp", "pp", "moe_tp", "moe_ep")
PREFILL, DECODE = 0, 1
"""The two passes of a line."""


@dataclass(frozen=True)
class Worker:
    """Where one pass of each line runs."""

    degrees: dict[str, Array]
    batch: Array
    """Sequences of a rank at once; NaN: what the callers make of it."""
    workers: Array

    @property
    def ranks(self) -> Array:
        """Data-parallel ranks and stages over which sequences of a line spread."""
        return self.degrees["dp"] * self.degrees["pp"] * self.workers


@dataclass(frozen=True)
class Lines:
    """Lines priced together: their numbers, and the questions that they belong to."""

    numbers: dict[str, Array]
    """`isl`, `osl`, `concurrency` and `request_rate` (NaN: not given), `cached`, moments of the
    lengths, drafts, expert copies and devices of a worker for both passes."""
    parts: tuple[Worker, Worker]
    questions: tuple[Question, ...]
    of: Codes
    """Which of the questions each line asks."""

    @property
    def count(self) -> int:
        """How many lines there are."""
        return len(self.of)

    def asked(self, number: Any) -> Array:  # noqa: ANN401 - a number of a question
        """A number of each line's question."""
        return np.array([float(number(q)) for q in self.questions])[self.of]

    def taken(self, rows: Codes) -> Lines:
        """Some of the lines, or the same ones several times."""
        parts = tuple(
            Worker({name: values[rows] for name, values in part.degrees.items()},
                   part.batch[rows], part.workers[rows])
            for part in self.parts
        )  # fmt: skip
        numbers = {name: values[rows] for name, values in self.numbers.items()}
        used, of = np.unique(self.of[rows], return_inverse=True)
        questions = tuple(self.questions[number] for number in used.tolist())
        return Lines(numbers, (parts[0], parts[1]), questions, of.reshape(-1))

    def passes(self, held: Array, phases: Sequence[int] = (PREFILL, DECODE)) -> pl.DataFrame:
        """The prefill pass of every line, then every decode pass, with `held` requests in flight.

        Args:
            held: requests in flight of each line.
            phases: `PREFILL`, `DECODE` or both.

        Returns:
            Columns `POINT`, `line`, `prompt_tokens`, `open_loop`, `QUESTION`.
        """
        both = [self._pass(held, which) for which in phases]
        columns = {name: np.concatenate([one[name] for one in both]) for name in both[0]}
        phase = pl.Series(["prefill", "decode"]).gather(np.repeat(phases, self.count))
        frame = pl.DataFrame(columns).with_columns(
            phase.alias("phase"), pl.col("line", QUESTION).cast(pl.Int64),
            pl.col("prompt_tokens").fill_nan(None),
        )  # fmt: skip
        return number(frame)

    def _pass(self, held: Array, which: int) -> dict[str, Array]:
        get, part = self.numbers, self.parts[which]
        shared = {
            "line": np.arange(self.count), QUESTION: self.of, "osl": get["osl"],
            "step_tokens": get["step_tokens"], **part.degrees,
            "open_loop": (~np.isnan(get["request_rate"])).astype(float),
            "node_devices": self.asked(lambda q: q.cluster.devices_per_node),
            "redundant_experts": get[f"copies_{which}"], "devices": get[f"devices_{which}"],
        }  # fmt: skip
        fresh = get["isl"] - get["cached"]
        if which == PREFILL:
            own = {
                "batch": self._prompts(held), "new_tokens": fresh, "past_tokens": get["cached"],
                "context_tokens": get["isl"],
                "prompt_tokens": fresh * get["long_isl"] / get["mean_isl"],
            }  # fmt: skip
        else:
            own = {
                "batch": self._sequences(held), "new_tokens": 1.0 + get["mtp_tokens"],
                "past_tokens": get["past"],
                "context_tokens": get["grown"], "prompt_tokens": np.full(self.count, np.nan),
            }  # fmt: skip
        return shared | own

    def _sequences(self, held: Array) -> Array:
        """Sequences that a data-parallel rank decodes at once."""
        part = self.parts[DECODE]
        stated = np.isnan(self.numbers["concurrency"]) & ~np.isnan(part.batch)
        return np.where(stated, part.batch, np.maximum(held / part.ranks, 1.0))

    def _prompts(self, held: Array) -> Array:
        """Prompts of one pass: those of a prefill pool, or as many as a decode step brings.

        Where each step of a worker that does both brings more than one, they share a pass up to a
        chunk of the engine's.
        """
        get, first = self.numbers, self.parts[PREFILL].batch
        alone = np.isnan(self.parts[DECODE].batch)
        brought = np.round(self._sequences(held) / get["osl"])
        chunk = self.asked(lambda q: q.engine.scheduler.chunk_tokens.value)
        most = chunk // np.maximum(get["isl"] - get["cached"], 1.0)
        return np.where(alone, np.maximum(np.minimum(brought, most), 1.0), first)


def line_columns(points: Sequence[Point]) -> tuple[dict[str, Array], tuple[Worker, Worker]]:
    """Numbers of lines that no question decides."""
    moments = [point.moments for point in points]
    numbers = {
        "isl": _column(point.isl for point in points),
        "osl": _column(point.osl for point in points),
        "concurrency": _column(point.concurrency for point in points),
        "request_rate": _column(point.request_rate for point in points),
        "cached": _column(point.cached_tokens for point in points),
        "mtp_tokens": _column(point.mtp_tokens for point in points),
        "step_tokens": _column(
            tokens_per_step(point.mtp_tokens, point.mtp_acceptance) for point in points
        ),
        "mean_isl": _column(of.isl for of in moments),
        "long_isl": _column(of.long_isl for of in moments),
        "past": _column(of.past for of in moments),
        "grown": _column(of.grown for of in moments),
    }
    first = _worker([point.prefill or point for point in points], 1.0)
    return numbers, (first, _worker([point.decode or point for point in points], np.nan))


def _column(values: Any) -> Array:  # noqa: ANN401 - numbers, none where nothing is said
    return np.array(list(values), dtype=np.float64)


def _worker(parts: Sequence[Point | PoolPoint], batch: float) -> Worker:
    """One pool of each line, or the worker that does both; experts follow attention by default."""
    tp, dp, pp, moe_tp, moe_ep = (
        np.array([getattr(part, name) or 0 for part in parts], dtype=np.float64) for name in DEGREES
    )
    ranks = tp * dp
    cut = ranks // np.maximum(moe_tp, 1.0)
    spread = np.where(moe_tp > 0, cut, np.where(dp > 1, ranks, 1.0))
    moe_ep = np.where(moe_ep > 0, moe_ep, spread)
    kept = np.maximum(ranks // np.maximum(moe_ep, 1.0), 1.0)
    moe_tp = np.where(moe_tp > 0, moe_tp, kept)
    degrees = dict(zip(DEGREES, (tp, dp, pp, moe_tp, moe_ep), strict=True))
    pooled = [part if isinstance(part, PoolPoint) else None for part in parts]
    return Worker(
        degrees, _column(batch if pool is None else pool.batch for pool in pooled),
        _column(1 if pool is None else pool.workers for pool in pooled),
    )  # fmt: skip
