"""When to scale: by queue, by SLO attainment, or by where the arrival rate is going."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import MoesaicError, unknown_name
from planner.simulation.clock import ARRIVAL, Clock
from planner.simulation.group import Group
from planner.simulation.scaling import LayoutChange, LayoutChanges
from planner.simulation.sequence import Sequence as Request


@dataclass(frozen=True)
class Window:
    """What a controller saw since it last looked."""

    arrivals_per_s: Sequence[float]
    """Arrival rates of the windows so far, the newest last."""
    waiting: int
    slo_attainment_ratio: float
    """Share of requests finished in the window that met their limits; 1 where none finished."""
    ranks: int


@dataclass(frozen=True)
class Bounds:
    """What a controller may do and what it aims at."""

    fewest_ranks: int
    most_ranks: int
    rank_requests_per_s: float
    """What one rank serves within its limits."""
    waiting_per_rank: float = 4.0
    attainment_ratio: float = 0.9
    """ElasticMoE scales up below 90 % (arXiv:2510.02613, section 5)."""
    headroom_ratio: float = 0.8
    """Share of a rank's rate that is planned for."""

    def clip(self, ranks: float) -> int:
        """Nearest allowed number of ranks."""
        return int(min(max(ranks, self.fewest_ranks), self.most_ranks))


def threshold(seen: Window, bounds: Bounds) -> int:
    """One more rank when too many wait, one fewer when nobody does and the rate would allow it."""
    if seen.waiting > bounds.waiting_per_rank * seen.ranks:
        return bounds.clip(seen.ranks + 1)
    return _fewer(seen, bounds) if seen.waiting == 0 else seen.ranks


def attainment(seen: Window, bounds: Bounds) -> int:
    """One more rank when fewer requests meet their limits than promised."""
    if seen.slo_attainment_ratio < bounds.attainment_ratio:
        return bounds.clip(seen.ranks + 1)
    return _fewer(seen, bounds)


def forecast(seen: Window, bounds: Bounds) -> int:
    """Ranks for the rate that the last windows' straight line reaches in the next one."""
    rates = np.asarray(seen.arrivals_per_s[-4:], dtype=float)
    if len(rates) < 2:  # noqa: PLR2004 - a line needs two points
        ahead = float(rates[-1]) if len(rates) else 0.0
    else:
        slope, start = np.polyfit(np.arange(len(rates)), rates, 1)
        ahead = max(float(start + slope * len(rates)), 0.0)
    return bounds.clip(math.ceil(ahead / (bounds.rank_requests_per_s * bounds.headroom_ratio)))


def _fewer(seen: Window, bounds: Bounds) -> int:
    rate = seen.arrivals_per_s[-1] if seen.arrivals_per_s else 0.0
    if rate < (seen.ranks - 1) * bounds.rank_requests_per_s * bounds.headroom_ratio:
        return bounds.clip(seen.ranks - 1)
    return seen.ranks


POLICIES: dict[str, Callable[[Window, Bounds], int]] = {
    "threshold": threshold,
    "attainment": attainment,
    "forecast": forecast,
}
"""Every controller by name."""


def policy(name: str) -> Callable[[Window, Bounds], int]:
    """Find a controller.

    Raises:
        MoesaicError: `unknown_name`.
    """
    if name not in POLICIES:
        raise unknown_name("autoscaling policy", name, POLICIES)
    return POLICIES[name]


@dataclass(frozen=True)
class Autoscale:
    """A controller at work.

    Args:
        rule: name in `POLICIES`.
        bounds: what it may do.
        every_s: how often it looks.
        change: gives the changes from so many ranks to so many, beginning at a time: one for each
            group that changes together.
        meets: whether a request that finished then met its limits.
    """

    rule: str
    bounds: Bounds
    every_s: float
    change: Callable[[int, int, float], Sequence[LayoutChange]]
    meets: Callable[[Request, float], bool]


class Autoscaler:
    """Looks at even times while requests are unanswered, and changes ranks.

    What it looks at is one group, or all batches in flight of one replica with pipeline stages.
    """

    def __init__(
        self,
        clock: Clock,
        groups: Sequence[Group],
        changes: LayoutChanges,
        settings: Autoscale,
        busy: Callable[[], bool],
    ) -> None:
        if not settings.every_s > 0:
            raise MoesaicError("invalid", f"a controller that looks every {settings.every_s} s")
        self._clock, self._groups, self._changes = clock, groups, changes
        self._settings, self._busy = settings, busy
        self._rule = policy(settings.rule)
        self._rates: list[float] = []
        self._arrived = self._finished = self._met = 0
        self.rank_seconds = 0.0
        clock.call_at(settings.every_s, self._look, ARRIVAL)

    def arrived(self) -> None:
        """Count an arrival."""
        self._arrived += 1

    def finished(self, request: Request, end_s: float) -> None:
        """Count an answer."""
        self._finished += 1
        self._met += self._settings.meets(request, end_s)

    def _look(self) -> None:
        settings, groups = self._settings, self._groups
        self._rates.append(self._arrived / settings.every_s)
        ranks = len(groups[0].ranks)
        self.rank_seconds += ranks * settings.every_s
        seen = Window(
            self._rates,
            sum(group.waiting for group in groups),
            self._met / self._finished if self._finished else 1.0,
            ranks,
        )
        self._arrived = self._finished = self._met = 0
        wanted = self._rule(seen, settings.bounds)
        busy = any(group.index in self._changes.running for group in groups)
        if wanted != ranks and not busy:
            for change in settings.change(ranks, wanted, self._clock.now):
                self._changes.begin(change)
        if self._busy():
            self._clock.call_at(self._clock.now + settings.every_s, self._look, ARRIVAL)
