"""Ranks that step in lockstep (data-parallel attention, shared experts), as one SimPy actor.

One event an engine iteration; a stretch in which only decoding goes on is one event, and is cut at
the next iteration boundary when somebody arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from math import log

from planner.simulation.clock import Clock
from planner.simulation.rank import Rank
from planner.simulation.sequence import Sequence
from planner.simulation.stages import Stages
from planner.simulation.step_seconds import Iteration, StepSeconds

_LONGEST_STRETCH = 256
_ITL_BINS_PER_E = 200
"""Bins of the inter-token histogram for a factor e in time: 0.5 % wide."""
_WAITING_WEIGHT = 4
"""vLLM's data-parallel load balancer scores a rank by 4 x waiting + running."""


class Group:
    """Ranks that share every iteration.

    Args:
        clock: the simulation's clock.
        index: place among the groups; also the order of events at equal times.
        ranks: the ranks, at least one.
        seconds: what an iteration takes.
        next_arrival_s: when the next open-loop arrival is due (inf: none known); stretches are not
            planned past it.
        skip_quiet: whether uneventful iterations share one event.
    """

    def __init__(
        self,
        clock: Clock,
        index: int,
        ranks: list[Rank],
        seconds: StepSeconds,
        next_arrival_s: Callable[[], float],
        *,
        skip_quiet: bool = True,
    ) -> None:
        self.index = index
        self.ranks = ranks
        self._clock = clock
        self._seconds = seconds
        self._next_arrival_s = next_arrival_s
        self._most = _LONGEST_STRETCH if skip_quiet else 1
        self._stages: Stages | None = None
        self._ends: list[float] = []
        self._starts_s = 0.0
        self._shapes: list[Iteration] = []
        self._booking = 0
        self._advancing = False
        self.paused = False
        self.holding = False
        self._rank_time_s = 0.0
        self._ranks_since_s = 0.0
        self._held: list[Sequence] = []
        self.after_plan: Callable[[Group, float], None] | None = None
        self.after_step: Callable[[Group, float], None] | None = None
        self.busy_s = 0.0
        self.iterations = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.itl_counts: dict[int, int] = {}

    def share(self, stages: Stages) -> None:
        """Send batches through pipeline stages that other groups use, too.

        When a stage is free depends on the others: no stretch can be planned ahead any more.
        """
        self._stages, self._most = stages, 1

    @property
    def load(self) -> int:
        """Sequences waiting or running."""
        inside = sum(rank.queued + rank.running for rank in self.ranks)
        return inside + len(self._held)

    @property
    def waiting(self) -> int:
        """Sequences that no rank runs yet, held ones included."""
        waiting = len(self._held)
        for rank in self.ranks:
            waiting += rank.queued
        return waiting

    def lightest(self) -> Rank:
        """Rank with the lowest score of vLLM's load balancer, the first among equals."""
        return min(self.ranks, key=lambda rank: _WAITING_WEIGHT * rank.queued + rank.running)

    def submit(self, sequence: Sequence) -> None:
        """Give a sequence to the lightest rank and see that somebody starts on it."""
        if self.holding:
            self._held.append(sequence)
            return
        rank = self.lightest()
        sequence.replica, sequence.rank = self.index, self.ranks.index(rank)
        rank.submit(sequence)
        self.wake()

    def hold(self) -> None:
        """Let arrivals wait outside; what is inside goes on."""
        self.holding = True

    def pause(self) -> None:
        """Stop after the iteration in progress."""
        self.wake()
        self.paused = True

    def resume(self, ranks: list[Rank], seconds: StepSeconds, moved: list[Sequence]) -> None:
        """Go on with these ranks and seconds; `moved` sequences and held arrivals come in.

        Must be called between iterations: from `after_step`, or when nothing runs.
        """
        now_s = self._clock.now
        self._rank_time_s += len(self.ranks) * (now_s - self._ranks_since_s)
        self._ranks_since_s = now_s
        self.ranks, self._seconds = ranks, seconds
        self.paused = self.holding = False
        held, self._held = self._held, []
        for sequence in (*moved, *held):
            self.submit(sequence)
        # What kept its caches goes on even when nobody comes in.
        self.wake()

    def rank_time_s(self, end_s: float) -> float:
        """Ranks times seconds up to a time after the last change."""
        return self._rank_time_s + len(self.ranks) * max(end_s - self._ranks_since_s, 0.0)

    @property
    def between(self) -> bool:
        """Whether no iteration is in progress."""
        return not self._ends

    def wake(self) -> None:
        """Start if idle; otherwise cut a stretch at its next boundary."""
        if self._advancing or self.paused:
            return
        if not self._ends:
            self._begin(self._clock.now, idle=True)
        elif len(self._ends) > 1:
            # At this very instant our own boundary may have passed already: priorities tell.
            passed = self._clock.priority > 1 + self.index
            find = bisect_right if passed else bisect_left
            keep = find(self._ends, self._clock.now) + 1
            if keep < len(self._ends):
                del self._ends[keep:]
                self._book()

    def _begin(self, now_s: float, *, idle: bool = False) -> None:
        shapes = [rank.plan(now_s, idle=idle) for rank in self.ranks]
        nothing = _nothing(shapes)
        if nothing and not idle and any(rank.queued for rank in self.ranks):
            shapes = [rank.plan(now_s, idle=True) for rank in self.ranks]
            nothing = _nothing(shapes)
        if self.after_plan is not None:
            self.after_plan(self, now_s)
        if nothing:
            return
        steps = min(rank.quiet_steps(self._most) for rank in self.ranks)
        seconds = self._seconds(shapes)
        stages = self._stages
        end_s = now_s + seconds if stages is None else stages.pass_end_s(now_s, seconds)
        self._starts_s = now_s
        self._shapes = shapes
        self._ends = [end_s]
        if steps > 1:
            self._stretch(steps, end_s)
        self._book()

    def _stretch(self, steps: int, end_s: float) -> None:
        limit_s = self._next_arrival_s()
        if end_s >= limit_s:
            return
        coming = zip(*(rank.coming(steps) for rank in self.ranks), strict=True)
        next(coming)
        seconds, ends = self._seconds, self._ends
        for step in coming:
            end_s += seconds(step)
            ends.append(end_s)
            if end_s >= limit_s:
                break

    def _book(self) -> None:
        self._booking += 1
        booking = self._booking

        def end() -> None:
            if booking == self._booking:
                self._close()

        self._clock.call_at(self._ends[-1], end, 1 + self.index)

    def _close(self) -> None:
        end_s = self._ends[-1]
        self._count()
        self._advancing = True
        steps = len(self._ends)
        self._ends = []
        for rank in self.ranks:
            rank.advance(steps, end_s)
        if self.after_step is not None:
            self.after_step(self, end_s)
        self._advancing = False
        if not self.paused:
            self._begin(end_s)

    def _count(self) -> None:
        """Add closed iterations to the totals one by one, so that sums do not depend on skips."""
        start_s, counts, busy_s = self._starts_s, self.itl_counts, self.busy_s
        # Ranks decode the same sequences all through a stretch, and prefill in its first iteration.
        decoding = 0
        for shape in self._shapes:
            decoding += shape.decode_sequences
            self.prefill_tokens += shape.prefill_tokens
        for end_s in self._ends:
            took_s = end_s - start_s
            busy_s += took_s
            if decoding and took_s > 0:
                place = round(log(took_s) * _ITL_BINS_PER_E)
                counts[place] = counts.get(place, 0) + decoding
            start_s = end_s
        self.busy_s = busy_s
        self.decode_tokens += decoding * len(self._ends)
        self.iterations += len(self._ends)


def _nothing(shapes: list[Iteration]) -> bool:
    for shape in shapes:  # noqa: SIM110 - a generator costs more than what it looks at
        if shape.prefill_tokens or shape.decode_sequences:
            return False
    return True


def itl_quantile(counts: dict[int, int], share: float) -> float:
    """Read a quantile of the inter-token latency [s] from the histogram, to 0.25 %."""
    total = sum(counts.values())
    if not total:
        return math.nan
    reached = 0
    for place in sorted(counts):
        reached += counts[place]
        if reached >= share * total:
            return math.exp(place / _ITL_BINS_PER_E)
    raise AssertionError("unreachable: the histogram's parts sum to its total")
