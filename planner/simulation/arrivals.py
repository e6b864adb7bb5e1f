"""Where requests come from when no trace is at hand: drawn arrivals and drawn lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request

Lengths = Callable[[np.random.Generator], tuple[int, int]]
"""Draws (isl, osl) of one request."""


def fixed_lengths(isl_tokens: int, osl_tokens: int) -> Lengths:
    """Every request alike."""
    _positive(isl_tokens, osl_tokens)
    return lambda _: (isl_tokens, osl_tokens)


def lognormal_lengths(isl_tokens: float, osl_tokens: float, variation_ratio: float) -> Lengths:
    """Independent lognormal lengths with these means and this standard deviation over mean."""
    _positive(isl_tokens, osl_tokens)
    if not variation_ratio >= 0:
        raise MoesaicError("invalid", f"length variation {variation_ratio}; 0 or more is needed")
    variance = math.log1p(variation_ratio**2)
    sigma = math.sqrt(variance)

    def draw(random: np.random.Generator) -> tuple[int, int]:
        isl, osl = (
            max(1, round(mean * math.exp(sigma * random.standard_normal() - variance / 2)))
            for mean in (isl_tokens, osl_tokens)
        )
        return isl, osl

    return draw


def sampled_lengths(pairs: list[tuple[int, int]]) -> Lengths:
    """Draw whole (isl, osl) pairs from measured ones, so that their correlation stays."""
    if not pairs:
        raise MoesaicError("invalid", "no measured lengths to draw from")
    return lambda random: pairs[int(random.integers(len(pairs)))]


def _positive(*tokens: float) -> None:
    if not all(number >= 1 for number in tokens):
        raise MoesaicError("invalid", f"lengths {tokens}; a request needs at least one token each")


def gamma_arrivals(
    rate_per_s: float, burstiness: float, lengths: Lengths, random: np.random.Generator
) -> Iterator[Request]:
    """Gamma-distributed gaps; burstiness 1 is Poisson, below 1 comes in bursts (vLLM's meaning).

    Args:
        rate_per_s: mean requests a second.
        burstiness: shape of the gamma distribution.
        lengths: draws lengths.
        random: draws gaps and lengths.
    """
    if not (rate_per_s > 0 and burstiness > 0):
        raise MoesaicError(
            "invalid", f"rate {rate_per_s} and burstiness {burstiness}; both must be above zero"
        )
    scale_s = 1 / (rate_per_s * burstiness)
    now_s = 0.0
    while True:
        now_s += float(random.gamma(burstiness, scale_s))
        yield Request(now_s, *lengths(random))


def ramp_arrivals(
    points: list[tuple[float, float]], lengths: Lengths, random: np.random.Generator
) -> Iterator[Request]:
    """Poisson arrivals whose rate runs straight from point to point; the last rate stays.

    Each gap uses up an exponentially distributed area under the rate, so the count in any window
    is Poisson (Cinlar 1975, inversion).

    Args:
        points: (time [s], rate [1/s]), times rising, the first at 0.
        lengths: draws lengths.
        random: draws gaps and lengths.
    """
    times = [time for time, _ in points]
    rates = [rate for _, rate in points]
    if not points or times[0] != 0 or times != sorted(set(times)) or min(rates) < 0:
        raise MoesaicError("invalid", f"ramp {points}; times rise from 0 and rates are 0 or more")
    if rates[-1] <= 0:
        raise MoesaicError("invalid", "the ramp ends at rate 0; its last rate must be above zero")
    now_s = 0.0
    while True:
        now_s = _after_area(now_s, float(random.exponential()), points)
        yield Request(now_s, *lengths(random))


def _after_area(now_s: float, area: float, points: list[tuple[float, float]]) -> float:
    """Time at which the area under the rate since `now_s` reaches `area` requests."""
    for (start_s, first), (end_s, last) in itertools.pairwise(points):
        if now_s >= end_s:
            continue
        slope = (last - first) / (end_s - start_s)
        rate = first + slope * (now_s - start_s)
        left_s = end_s - now_s
        inside = (rate + last) / 2 * left_s
        if area < inside:
            # slope / 2 x^2 + rate x = area, in the form that stays exact for a slope near zero.
            return now_s + 2 * area / (rate + math.sqrt(rate**2 + 2 * slope * area))
        area -= inside
        now_s = end_s
    return now_s + area / points[-1][1]


@dataclass(frozen=True)
class ClosedLoop:
    """A fixed number of users, each sending its next request when the last one is answered."""

    users: int
    lengths: Lengths
    think_s: float = 0.0
    stagger_s: float = 0.0
    """Time over which the users start, evenly."""

    def first(self, random: np.random.Generator) -> Iterator[Request]:
        """Draw the first request of each user, in order of arrival."""
        if self.users < 1 or not (self.think_s >= 0 and self.stagger_s >= 0):
            raise MoesaicError(
                "invalid", f"{self.users} users; at least one, and times of 0 or more, are needed"
            )
        gap_s = self.stagger_s / self.users
        return (Request(user * gap_s, *self.lengths(random)) for user in range(self.users))

    def next(self, now_s: float, random: np.random.Generator) -> Request:
        """Draw the request that follows an answer at `now_s`."""
        return Request(now_s + self.think_s, *self.lengths(random))
