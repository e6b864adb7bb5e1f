"""Picks that keep limits: the configuration of most tokens whose far side of the interval fits."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

TPOT_LIMIT_S, TTFT_LIMIT_S = 0.030, 2.0
"""Limits under which the best other tool's picks were judged."""


@dataclass(frozen=True)
class LimitScore:
    """How often a pick that should keep limits breaks them as measured."""

    groups_count: int
    """Questions: one model, machine, engine, version and lengths, several layouts and loads."""
    picks_count: int
    """Questions for which something keeps the limits on the interval's far side."""
    broken_ratio: float | None


def keep_limits(table: pl.DataFrame) -> LimitScore:
    """Pick for each question and look up what the pick did, columns `COMPARED` of `compare`."""
    both = _beside(table)
    broken: list[bool] = []
    groups = both.partition_by("question", maintain_order=True)
    for group in groups:
        kept = group.filter(
            (pl.col("high") <= TPOT_LIMIT_S) & (pl.col("high_ttft") <= TTFT_LIMIT_S)
        )
        if kept.height:
            pick = kept.sort("tokens_per_s", "asked", descending=[True, False]).row(0, named=True)
            late = pick["measured_ttft"] > TTFT_LIMIT_S
            broken.append(late or pick["measured"] > TPOT_LIMIT_S)
    share = sum(broken) / len(broken) if broken else None
    return LimitScore(len(groups), len(broken), share)


def _beside(table: pl.DataFrame) -> pl.DataFrame:
    """One row a measured configuration: TPOT, TTFT, and tokens a second and device as estimated."""
    rows = table.filter(pl.col("typical").is_not_null() & (pl.col("callers") > 0))
    key = ("question", "asked", "callers", "devices")
    values = ("measured", "typical", "high")
    each = rows.group_by(*key, "target", maintain_order=True).agg(
        pl.col(name).median() for name in values
    )
    tpot, ttft = (each.filter(target=t).drop("target") for t in ("tpot_s", "ttft_s"))
    both = tpot.join(ttft, on=list(key), suffix="_ttft", maintain_order="left")
    per_device = pl.col("callers") / pl.col("typical") / pl.col("devices")
    return both.with_columns(per_device.alias("tokens_per_s"))
