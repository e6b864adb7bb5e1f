"""Percentiles, goodput and use of a run, and their bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from planner.simulation.group import itl_quantile
from planner.simulation.serving import Serving

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LATENCIES = ("ttft_s", "tpot_s", "e2e_s", "queue_s")


@dataclass(frozen=True)
class Slo:
    """What a request must meet to count for goodput; null limits always hold."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def holds(self, ttft_s: float, e2e_s: float, osl_tokens: int) -> bool:
        """Whether one request meets every limit."""
        tpot_s = (e2e_s - ttft_s) / (osl_tokens - 1) if osl_tokens > 1 else 0.0
        pairs = ((ttft_s, self.ttft_s), (tpot_s, self.tpot_s), (e2e_s, self.e2e_s))
        return all(limit is None or value <= limit for value, limit in pairs)

    def met(self) -> pl.Expr:
        """True for requests that meet every limit; one output token has no TPOT to miss."""
        limits = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        checks = [
            pl.col(name).fill_null(0.0) <= limit
            for name, limit in limits.items()
            if limit is not None
        ]
        return pl.all_horizontal(*checks) if checks else pl.lit(value=True)


def measures(run: Serving, requests: pl.DataFrame, slo: Slo) -> dict[str, float]:
    """All figures of one run, by name with unit.

    Args:
        run: the finished run.
        requests: its table with latencies.
        slo: limits of goodput.
    """
    figures: dict[str, float] = {}
    for name in LATENCIES:
        column = requests[name].drop_nulls()
        stem = name.removesuffix("_s")
        if column.is_empty():
            continue
        figures[f"{stem}_mean_s"] = float(column.mean())  # type: ignore[arg-type]
        for word, share in QUANTILES.items():
            value = column.quantile(share, interpolation="linear")
            figures[f"{stem}_{word}_s"] = float(value)  # type: ignore[arg-type]
    figures |= _inter_token(run)
    figures |= _rates(run, requests, slo)
    return figures


def _inter_token(run: Serving) -> dict[str, float]:
    counts: dict[int, int] = {}
    for group in run.groups:
        for place, count in group.itl_counts.items():
            counts[place] = counts.get(place, 0) + count
    if not counts:
        return {}
    return {f"itl_{word}_s": itl_quantile(counts, share) for word, share in QUANTILES.items()}


def _rates(run: Serving, requests: pl.DataFrame, slo: Slo) -> dict[str, float]:
    start_s = float(requests["arrival_s"].min())  # type: ignore[arg-type]
    end_s = float(requests["finished_s"].max())  # type: ignore[arg-type]
    span_s = end_s - start_s
    met = requests.select(slo.met().alias("met").cast(pl.Float64)).to_series()
    attained = float(met.mean())  # type: ignore[arg-type]
    ranks = sum(len(group.ranks) for group in run.groups)
    figures = {
        "requests_count": float(requests.height),
        "duration_s": span_s,
        "slo_attainment_ratio": attained,
        "preemptions_count": _sum(requests, "preemptions_count"),
        "cached_tokens_ratio": _ratio(
            _sum(requests, "cached_tokens"), _sum(requests, "isl_tokens")
        ),
        "rank_time_s": sum(group.rank_time_s(end_s) for group in run.groups),
        "iterations_count": float(sum(group.iterations for group in run.groups)),
    }
    if span_s > 0:
        figures |= {
            "requests_per_s": requests.height / span_s,
            "goodput_requests_per_s": attained * requests.height / span_s,
            "output_tokens_per_s": _sum(requests, "osl_tokens") / span_s,
            "output_tokens_per_s_per_rank": _sum(requests, "osl_tokens") / span_s / ranks,
            "busy_ratio": sum(g.busy_s for g in run.groups) / (len(run.groups) * span_s),
        }
    if run.links is not None and span_s > 0:
        figures["kv_link_busy_ratio"] = run.links.busy_s / (run.links.count * span_s)
        figures["kv_link_wait_mean_s"] = _ratio(run.links.waited_s, requests.height)
        figures["kv_moved_bytes"] = run.links.moved_bytes
    return figures


def _sum(table: pl.DataFrame, column: str) -> float:
    return float(table[column].sum())


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0


def banded(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean of each figure over seeds with two bands.

    `low` and `high` are meant to hold another run's figure 8 times in 10 (prediction interval of a
    normal sample: mean +- t(0.9, n-1) s sqrt(1 + 1/n)); `mean_low` and `mean_high` hold the mean
    itself 95 times in 100. One seed has no band: all are null-free and equal to the figure.
    """
    result: dict[str, dict[str, float]] = {}
    for name in runs[0]:
        values = np.array([run[name] for run in runs if name in run])
        count = len(values)
        typical = float(values.mean())
        deviation = float(values.std(ddof=1)) if count > 1 else 0.0
        reach = student_t(0.9, count - 1) * deviation * math.sqrt(1 + 1 / count)
        trust = student_t(0.975, count - 1) * deviation / math.sqrt(count)
        result[name] = {
            "typical": typical,
            "low": max(typical - reach, 0.0),
            "high": typical + reach,
            "mean_low": typical - trust,
            "mean_high": typical + trust,
        }
    return result


def student_t(share: float, freedom: int) -> float:
    """Quantile of Student's t, to about 1e-9 by bisection on its distribution function.

    >>> round(student_t(0.975, 9), 3)
    2.262
    """
    if freedom < 1:
        return 0.0
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * step / (step + 1)
    share = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + share / 2
