"""Lines that are priced at once: seats found, passes priced, steady state, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from hwprofiles.errors import MoesaicError
from planner.line_answers import Served, written
from planner.line_columns import DECODE, PREFILL, Lines, line_columns
from planner.point import Point
from planner.point_rows import expert_copies
from planner.pricing import Priced, Question, is_plain, price, price_all, size_all
from planner.timing.engine_layer import QUESTION
from planner.timing.serving import KEY, SIDES, beside, pool_ttft, serving_table
from planner.work.rows import Array, Codes

SETTLING = 4
"""How often lines whose callers can't all run are sized again with those that can."""
ROUNDS = 40
"""Halvings that find the concurrency of a given request rate."""
AHEAD = 3
"""Halvings that are priced in one go: all their midpoints, before it is known which count."""
MOST_CALLERS = 65_536.0


@dataclass(frozen=True)
class Piece:
    """Passes of some lines, priced with as many requests as ran at that turn."""

    lines: Codes
    priced: Priced


def joined(pieces: Sequence[Piece], of: Codes) -> Priced:
    """Passes of all lines: prefill as first priced, decode as last priced.

    Args:
        pieces: the first of all lines with both passes, the others of lines that moved.
        of: which question each line asks.
    """
    last = np.zeros(len(of), dtype=np.intp)
    for number, piece in enumerate(pieces):
        last[piece.lines] = number
    passes, timed, offset = [], [], 0
    for number, piece in enumerate(pieces):
        frame = piece.priced.passes
        line = piece.lines[frame["line"].to_numpy()]
        kept = (last[line] == number) | (frame["phase"] == "prefill").to_numpy()
        stays = np.zeros(frame.height, dtype=bool)
        stays[frame["point"].to_numpy()] = kept
        renumbered = (pl.col("point") + offset).cast(pl.UInt32)
        named = frame.with_columns(
            renumbered, pl.Series("line", line), pl.Series(QUESTION, of[line])
        )
        passes.append(named.filter(kept))
        rows = piece.priced.timed
        timed.append(rows.filter(stays[rows["point"].to_numpy()]).with_columns(renumbered))
        offset += frame.height
    return Priced(pl.concat(passes), pl.concat(timed), pieces[0].priced.layers)


@dataclass(frozen=True)
class Batch:
    """Lines of one mode, all of plain questions or all of one question."""

    points: Sequence[Point]
    lines: Lines

    @classmethod
    def of(cls, points: Sequence[Point], questions: Sequence[Question]) -> Batch:
        """Lay lines out as columns; each has its question."""
        known: dict[int, int] = {}
        of = [known.setdefault(id(question), len(known)) for question in questions]
        first = {id(question): question for question in questions}
        asked, places = tuple(first[key] for key in known), np.array(of, dtype=np.intp)
        numbers, parts = line_columns(points)
        for which, part in enumerate(parts):
            get, copies, devices = part.degrees, np.zeros(len(places)), np.zeros(len(places))
            for number, question in enumerate(asked):
                rows = places == number
                copies[rows] = expert_copies(get["moe_ep"][rows], question)
                if question.formats.layout.apart:
                    devices[rows] = (get["moe_tp"] * get["moe_ep"] * get["pp"])[rows]
            numbers[f"copies_{which}"] = copies
            numbers[f"devices_{which}"] = get["tp"] * get["dp"] * get["pp"] + devices
        return cls(points, Lines(numbers, parts, asked, places))

    @property
    def pooled(self) -> bool:
        """Whether prefill and decode have workers of their own."""
        return self.points[0].mode == "disagg"

    def answers(self) -> list[dict[str, Any] | MoesaicError]:
        """One answer a line, or why it has none.

        Raises:
            MoesaicError: where one line or question keeps all from being answered.
        """
        concurrency = self.lines.numbers["concurrency"]
        held = np.where(np.isnan(concurrency), 1.0, concurrency)
        rated = np.flatnonzero(~np.isnan(self.lines.numbers["request_rate"]))
        if not len(rated):
            return list(self.answered(held))
        held[rated], refused = self.taken(rated).concurrency_of_rate()
        failed = {int(rated[at]): error for at, error in refused.items()}
        kept = np.array([i for i in range(self.lines.count) if i not in failed], dtype=np.intp)
        answers: dict[int, Any] = dict(failed)
        if len(kept):
            answers |= dict(zip(kept.tolist(), self.taken(kept).answered(held[kept]), strict=True))
        return [answers[i] for i in range(self.lines.count)]

    def taken(self, rows: Codes) -> Batch:
        """Some of the lines, or the same ones several times."""
        return Batch([self.points[row] for row in rows.tolist()], self.lines.taken(rows))

    def answered(self, held: Array) -> list[dict[str, Any]]:
        """One answer a line, given its requests in flight."""
        running, priced = self.settled(held)
        priced = self.priced(running) if priced is None else priced
        prefill, decode = self.served(priced)
        return written(Served(self.lines, self.points, priced, prefill, decode, held - running))

    def priced(self, held: Array) -> Priced:
        """Both passes of every line with its requests in flight."""
        return _priced(self.lines.passes(held), self.lines.questions)

    def settled(self, held: Array) -> tuple[Array, Priced | None]:
        """Requests that run at once: the asked ones, or fewer where something holds them up.

        Returns:
            Requests, and the priced passes where finding the requests has priced them.
        """
        plain = all(is_plain(question) for question in self.lines.questions)
        first = self.priced(held) if self.pooled or not plain else None
        pieces = [] if first is None else [Piece(np.arange(self.lines.count), first)]
        prefill = _of_phase(first.passes, "prefill") if first and self.pooled else None
        running, left = held.copy(), np.arange(self.lines.count)
        for turn in range(SETTLING):
            part = self.taken(left)
            if first is None:
                frame = part.lines.passes(running[left], (DECODE,))
                passes = size_all(frame, part.lines.questions)
            elif turn == 0:
                passes = first.passes
            else:
                phases = (DECODE,) if plain else (PREFILL, DECODE)
                pieces.append(part.moved_on(left, running[left], phases))
                passes = pieces[-1].priced.passes
            fed_by = None if prefill is None else prefill[left]
            now = part.running(_of_phase(passes, "decode"), held[left], fed_by)
            moved = now != running[left]
            running[left] = now
            left = left[moved]
            if not len(left):
                break
        if not plain or first is None:
            return running, first if len(pieces) == 1 and not len(left) else None
        if len(left):
            pieces.append(self.taken(left).moved_on(left, running[left]))
        return running, joined(pieces, self.lines.of)

    def moved_on(self, lines: Codes, held: Array, phases: tuple[int, ...] = (DECODE,)) -> Piece:
        """Passes of these lines with other requests in flight; `lines`: where they come from."""
        return Piece(lines, _priced(self.lines.passes(held, phases), self.lines.questions))

    def running(self, decode: pl.DataFrame, held: Array, prefill: pl.DataFrame | None) -> Array:
        """Sequences that run at once.

        Cache memory and the scheduler: a running sequence has on average half of its answer cached;
        where not even the weights fit, the asked load stands and `fits` says no. A pool of
        prefills: no more decode than it feeds (Little's law).

        Args:
            decode: sized decode passes in the lines' order; beside a prefill pool, priced ones.
            held: requests in flight that were asked for.
            prefill: priced passes of the pool that feeds them; none: prompts share the worker.
        """
        now, past, grown, cache, total = (
            decode[name].to_numpy()
            for name in ("batch", "past_tokens", "context_tokens", "kv_bytes", "total_bytes")
        )
        each = cache * (past / grown) / now
        left = self.lines.asked(lambda q: q.limit_bytes) - (total - cache)
        seats = self.lines.asked(lambda q: q.engine.scheduler.sequences.value)
        most = np.minimum(left // np.maximum(each, 1.0), seats)
        most = np.where(left > each, most, np.inf)
        ranks = self.lines.parts[DECODE].ranks
        if prefill is not None:
            most = np.fmin(most, self._fed(prefill, decode) / ranks)
        most = np.maximum(most, 1.0)
        return np.where(held / ranks > most, ranks * most, held)

    def _fed(self, prefill: pl.DataFrame, decode: pl.DataFrame) -> Array:
        """Requests that the prefill pool keeps decoding; NaN where no callers are stated."""
        get = self.lines.numbers
        ready = prefill["batch"].to_numpy() * self.lines.parts[PREFILL].ranks
        rate = ready / prefill["typical_s"].to_numpy()
        step_s, tokens = (decode[name].to_numpy() for name in ("typical_s", "step_tokens"))
        fed: Array = rate * get["osl"] * (step_s / tokens)
        return np.where(np.isnan(get["concurrency"]), np.nan, fed)

    def served(self, priced: Priced) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Serving rows of the prefill and of the decode side, in the lines' order."""
        mode = "disagg" if self.pooled else "agg"
        table = serving_table(priced.passes, (mode,), (*KEY, "line"), priced.layers)
        if not self.pooled:
            table = table.sort("line")
            return table, table
        prefill, decode = (table.filter(role=role).sort("line") for role in ("prefill", "decode"))
        waits = pool_ttft(self.beside(priced.passes), priced.layers)
        return prefill.update(waits, on="line", maintain_order="left"), decode

    def beside(self, passes: pl.DataFrame) -> pl.DataFrame:
        """Decode passes of disaggregated lines beside the prefill pass that feeds them."""
        part, stated = self.lines.parts[DECODE], self.lines.numbers["concurrency"]
        pools = pl.DataFrame({
            "line": np.arange(self.lines.count),
            "callers": np.where(np.isnan(stated), part.batch * part.ranks, stated),
            "prefill_workers": self.lines.parts[PREFILL].workers,
        })  # fmt: skip
        prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
        return beside(prefill, decode, pools)

    def concurrency_of_rate(self) -> tuple[Array, dict[int, MoesaicError]]:
        """Little's law solved by bisection: the fewest users in flight that reach the rate.

        Returns:
            Users of each line, and why a line has no answer (`infeasible`): what the worker holds
            doesn't reach the rate, even at the interval's fast side.
        """
        wanted = self.lines.numbers["request_rate"]
        low = np.zeros(self.lines.count)
        high, _ = self.settled(np.full(self.lines.count, MOST_CALLERS))
        _, table = self.served(self.priced(high))
        most = {side: table[f"request_rate_{side}"].to_numpy() for side in SIDES}
        refused = {
            int(i): MoesaicError(
                "infeasible",
                f"request_rate {wanted[i]} is above what the worker serves with all that it "
                f"holds, {most['typical'][i]:.3g} requests/s", "/request_rate",
            )
            for i in np.flatnonzero(most["high"] < wanted)
        }  # fmt: skip
        low = np.where(most["typical"] < wanted, high, low)
        for done in range(0, ROUNDS, AHEAD):
            low, high = self._halved(low, high, min(AHEAD, ROUNDS - done))
        return high, refused

    def _halved(self, low: Array, high: Array, times: int) -> tuple[Array, Array]:
        """Halve each line's interval several times: price the midpoints of all that may follow."""
        ends, middles = [(low, high)], []
        for node in range(2**times - 1):
            left, right = ends[node]
            middles.append((left + right) / 2)
            ends += [(left, middles[node]), (middles[node], right)]
        count = self.lines.count
        several = self.taken(np.tile(np.arange(count), len(middles)))
        _, table = several.served(several.priced(np.concatenate(middles)))
        reached = table["request_rate_typical"].to_numpy().reshape(len(middles), count)
        enough = reached >= self.lines.numbers["request_rate"]
        at, every = np.zeros(count, dtype=np.intp), np.arange(count)
        for _ in range(times):
            at = 2 * at + np.where(enough[at, every], 1, 2)
        both = np.array(ends)
        return both[at, 0, every], both[at, 1, every]


def _priced(frame: pl.DataFrame, questions: Sequence[Question]) -> Priced:
    """Plain questions at once, or the one that is not plain."""
    return price_all(frame, questions) if len(questions) > 1 else price(frame, questions[0])


def _of_phase(passes: pl.DataFrame, phase: str) -> pl.DataFrame:
    """Passes of a phase in the lines' order."""
    return passes.filter(phase=phase).sort("line")
