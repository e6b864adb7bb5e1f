"""When to scale: by queue, by SLO attainment, or by where the arrival rate is going."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import unknown_name


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
