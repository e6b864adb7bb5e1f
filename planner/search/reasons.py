"""Why an answer is what it is, for any programme: limits that bind, and limits in conflict.

A programme names its limits, says what changing one does to the question, and how to solve it
again; everything else is the same for plans, placements and compression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError

Q = TypeVar("Q")
BETTER_RATIO = 1e-6
"""Less than this is the same answer."""
MOST_SETS = 600
"""Sets of limits that are tried for the smallest conflict; beyond, one that cannot be shrunk."""
DOUBLINGS, HALVINGS = 14, 8
"""Steps of the search: up to 2^14 times the limit, to 2^(1 / 2^8), which is 0.3 %."""


class Binding(Document):
    """A limit that holds an answer back, and what easing it gives."""

    limit: str
    value: float | None  # unit: the limit's own
    """None: a wish that is kept or dropped."""
    without_objective: float | None = None  # unit: as the answer's objective
    """What the objective would be without the limit; none where it cannot be dropped."""
    one_percent_more_value: float | None = None  # unit: the limit's own
    """1 % more of it, or the next whole step where that is more."""
    one_percent_more_objective: float | None = None  # unit: as the answer's objective


Status = Literal["optimal", "feasible"]
PROVEN_RATIO = 1e-6
"""A gap below this is rounding."""


def status_of(gap_ratio: float) -> Status:
    """Optimal where nothing is left between an answer and its bound."""
    return "optimal" if gap_ratio <= PROVEN_RATIO else "feasible"


class Explained(Document):
    """An answer that says what held it back and why the next one lost."""

    binding: tuple[Binding, ...] = ()
    """Limits whose easing gives a better answer; empty where none does."""
    runner_up: str | None = None
    """The next best answer and why it lost, in one sentence."""


@dataclass(frozen=True)
class Limit(Generic[Q]):
    """One named limit of a question.

    Args:
        name: as the question spells it.
        value: asked; none: a wish that is kept or dropped.
        change: the question with another value, or without it where none is given; none: that
            cannot be.
        greater: whether a greater value eases it.
        step: least change that matters; zero: any.
        end: the value beyond which it means nothing.
    """

    name: str
    value: float | None
    change: Callable[[Q, float | None], Q | None]
    greater: bool = True
    step: float = 0.0
    end: float | None = None

    def eased(self) -> float | None:
        """1 % more, or the next step; none: there is no more of it."""
        if self.value is None:
            return None
        more = abs(self.value) * 0.01
        if self.step:
            more = self.step * max(math.floor(more / self.step + 1e-9), 1)
        moved = self.clipped(self.value + (more if self.greater else -more))
        return None if moved == self.value else moved

    def clipped(self, value: float) -> float:
        """Not beyond the end."""
        if self.end is None:
            return value
        return min(value, self.end) if self.greater else max(value, self.end)


def bindings(
    question: Q, limits: Sequence[Limit[Q]], solve: Callable[[Q], float | None], now: float,
    *, maximise: bool = False,
) -> tuple[Binding, ...]:  # fmt: skip
    """Limits without which, or with more of which, the objective is better.

    Args:
        question: as asked.
        limits: its limits.
        solve: objective of a question; none: no answer.
        now: objective of the question as asked.
        maximise: whether more is better.
    """
    found = []
    for limit in limits:
        free = _objective(limit.change(question, None), solve)
        if free is not None and not better(free, now, maximise=maximise):
            continue
        value = limit.eased()
        more = None if value is None else _objective(limit.change(question, value), solve)
        if more is not None and not better(more, now, maximise=maximise):
            more = now
        if free is None and more in (None, now):
            continue
        found.append(Binding(
            limit=limit.name, value=limit.value, without_objective=free,
            one_percent_more_value=None if more is None else value,
            one_percent_more_objective=more,
        ))  # fmt: skip
    return tuple(found)


def _objective(question: Q | None, solve: Callable[[Q], float | None]) -> float | None:
    return None if question is None else solve(question)


def better(value: float, now: float, *, maximise: bool) -> bool:
    """Whether a value beats another by more than rounding."""
    return (value - now if maximise else now - value) > BETTER_RATIO * abs(now)


def without(question: Q, limits: Sequence[Limit[Q]], dropped: Collection[str]) -> Q:
    """The question without some of its limits; those that cannot be dropped stay."""
    for limit in limits:
        if limit.name in dropped:
            changed = limit.change(question, None)
            question = question if changed is None else changed
    return question


def smallest_conflict(
    question: Q, limits: Sequence[Limit[Q]], feasible: Callable[[Q], bool]
) -> tuple[str, ...]:
    """The fewest limits that cannot be kept together, all others dropped.

    Empty when even no limit at all leaves nothing feasible.

    Args:
        question: one that is not feasible.
        limits: its limits.
        feasible: whether a question has any answer.
    """
    names = tuple(limit.name for limit in limits)

    def contradict(kept: Collection[str]) -> bool:
        return not feasible(without(question, limits, set(names) - set(kept)))

    tried = 0
    for size in range(len(names) + 1):
        if (tried := tried + math.comb(len(names), size)) > MOST_SETS:
            break
        for kept in itertools.combinations(names, size):
            if contradict(kept):
                return kept
    left = names
    for name in names:
        fewer = tuple(other for other in left if other != name)
        left = fewer if contradict(fewer) else left
    return left


@dataclass(frozen=True)
class Relaxation:
    """The nearest value of one limit that makes the question feasible, the others kept."""

    limit: str
    value: float | None
    asked: float | None

    @property
    def change_ratio(self) -> float:
        """How far the value is from the asked one, as a share of the lesser."""
        if self.value is None or self.asked is None:
            return math.inf
        low, high = sorted((self.value, self.asked))
        return high / low - 1 if low > 0 else math.inf

    def text(self) -> str:
        """Say it in a line."""
        if self.value is None or self.asked is None:
            return f"without {self.limit} it would do"
        asked, value = (with_unit(self.limit, x) for x in (self.asked, self.value))
        return f"{self.limit} {value} in place of {asked} would do"


def with_unit(name: str, value: float) -> str:
    """A limit's value as people read it; its name says what it counts."""
    if name.endswith("_s"):
        return f"{value * 1e3:.4g} ms"
    if name.endswith("_bytes"):
        return f"{value / 2**30:.4g} GiB"
    return f"{value:.4g}"


def relaxations(
    question: Q, limits: Sequence[Limit[Q]], feasible: Callable[[Q], bool]
) -> list[Relaxation]:
    """For each limit whose relaxing alone helps, the nearest value that does; cheapest first."""
    found = []
    for limit in limits:
        free = limit.change(question, None)
        if free is not None and not feasible(free):
            continue
        if limit.value is None:
            found += [] if free is None else [Relaxation(limit.name, None, None)]
        elif (value := nearest(question, limit, feasible)) is not None:
            found.append(Relaxation(limit.name, value, limit.value))
    return sorted(found, key=lambda r: (r.change_ratio, r.limit))


def nearest(question: Q, limit: Limit[Q], feasible: Callable[[Q], bool]) -> float | None:
    """The value of a limit nearest to the asked one that leaves something feasible.

    Whole steps are searched exactly; other limits by doubling the factor until it helps, then
    halving the interval on a logarithmic scale.
    """
    asked, sign = limit.value or 0.0, 1.0 if limit.greater else -1.0

    def value(far: float) -> float:
        moved = asked + sign * limit.step * far if limit.step else asked * math.exp2(sign * far)
        return limit.clipped(moved)

    def works(far: float) -> bool:
        changed = limit.change(question, value(far))
        return changed is not None and feasible(changed)

    high = next((far for far in _distances(limit) if works(far)), None)
    if high is None:
        return None
    low = (high - 1 if not limit.step else high / 2) if high > 1 else 0.0
    if limit.step:
        while high - low > 1:
            middle = float((low + high) // 2)
            low, high = (low, middle) if works(middle) else (middle, high)
        return value(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return value(high)


def _distances(limit: Limit[Q]) -> list[float]:
    """How far to go at first: in powers of two of a whole step, or of the limit itself."""
    if not limit.step:
        return [float(power) for power in range(1, DOUBLINGS + 1)]
    far = abs(limit.value or 0.0) / limit.step
    steps = DOUBLINGS + math.ceil(math.log2(max(far, 1.0)))
    return [2.0**power for power in range(steps + 1)]


def contradiction(
    error: MoesaicError, question: Q, limits: Sequence[Limit[Q]], feasible: Callable[[Q], bool]
) -> MoesaicError:
    """The error with the smallest set of limits in conflict and the cheapest relaxation."""
    conflict = smallest_conflict(question, limits, feasible)
    reasons = [error.message]
    if len(conflict) > 1:
        reasons.append(f"in conflict: {' and '.join(conflict)}")
    rivals = [limit for limit in limits if limit.name in conflict]
    reasons += [found.text() for found in relaxations(question, rivals, feasible)[:1]]
    return MoesaicError(error.kind, "; ".join(reasons), error.path)
