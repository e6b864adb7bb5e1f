"""Estimates beside measured figures: errors, intervals, ranks and choices of layout.

A published median TTFT is compared with the estimated median.
Errors are |estimated / measured - 1|; bias is the median of estimated / measured - 1.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from planner.estimate import estimate_many
from planner.model_library import resolve_model
from planner.point import Estimated
from planner.quantities import Estimate
from planner.validation.evidence import Figure
from planner.validation.fitting import was_fitted_on

COMPARED: dict[str, type[pl.DataType]] = {
    "id": pl.String, "target": pl.String, "source": pl.String, "engine": pl.String,
    "machine": pl.String, "model": pl.String, "mode": pl.String, "precision": pl.String,
    "setting": pl.String, "statistic": pl.String, "choice": pl.String, "layout": pl.String,
    "measured": pl.Float64, "typical": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "error": pl.String, "seen": pl.String, "question": pl.String, "asked": pl.String,
    "callers": pl.Float64, "devices": pl.Float64,
}  # fmt: skip
LAYOUT = ("tp", "pp", "dp", "moe_tp", "moe_ep", "prefill", "decode")
SEEN, UNSEEN = "fitted on", "not fitted on"
SAME = ("backend_version", "isl", "osl", "concurrency", "request_rate", "mtp_tokens")


@dataclass(frozen=True)
class Score:
    """How far off a set of estimates is."""

    count: int
    answered_ratio: float
    median_ratio: float | None = None
    mean_ratio: float | None = None
    p90_ratio: float | None = None
    bias_ratio: float | None = None
    covered_ratio: float | None = None
    """Share of measured values inside low to high."""
    rank_ratio: float | None = None
    """Spearman's rank correlation."""


@dataclass(frozen=True)
class ChoiceScore:
    """Whether the layout estimated best is the best measured, at equal device count."""

    groups_count: int
    right_ratio: float | None
    regret_ratio: float | None
    """Mean loss of the chosen layout against the best measured."""


def compare(figures: Sequence[Figure]) -> pl.DataFrame:
    """Ask every configuration once and put its estimates beside the figures, columns `COMPARED`."""
    keys = [_key(figure.point) for figure in figures]
    asked = dict(zip(keys, (figure.point for figure in figures), strict=True))
    lines = [{**point, "id": key} for key, point in asked.items()]
    answers = {str(a.id): a for a in estimate_many(lines, resolve_model)}
    rows = [_row(f, answers[key]) for f, key in zip(figures, keys, strict=True)]
    return pl.DataFrame(rows, schema=COMPARED)


def _key(point: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in point.items() if k != "id"}, sort_keys=True)


def _row(figure: Figure, answer: Estimated) -> dict[str, Any]:
    found = _estimate(answer, figure)
    point = figure.point
    return {
        **figure.tags, "id": figure.id, "target": figure.target, "setting": figure.setting,
        "statistic": figure.statistic, "measured": figure.value,
        "choice": "|".join([*(str(v) for v in figure.tags.values()), str(_size(point)),
                            *(str(point.get(k)) for k in SAME)]),
        "layout": _key({k: point[k] for k in LAYOUT if k in point}),
        "typical": found and found.typical, "low": found and found.low,
        "high": found and found.high,
        "error": answer.error.message if answer.error else None,
        "seen": SEEN if was_fitted_on(figure) else UNSEEN,
        "question": "|".join([*(str(v) for k, v in figure.tags.items() if k != "source"),
                              *(str(point.get(k)) for k in ("backend_version", "isl", "osl"))]),
        "asked": _key(point), "callers": float(point.get("concurrency") or 0),
        "devices": float(_size(point)),
    }  # fmt: skip


def _size(point: dict[str, Any]) -> int:
    pools = [point] if point["mode"] == "agg" else [point["prefill"], point["decode"]]
    return sum(p["tp"] * p["dp"] * p["pp"] * p.get("workers", 1) for p in pools)


def _estimate(answer: Estimated, figure: Figure) -> Estimate | None:
    if answer.error is not None or answer.ttft_s is None or answer.tpot_s is None:
        return None
    if figure.target == "request_s":
        ttft, tpot, more = answer.ttft_s, answer.tpot_s, figure.point["osl"] - 1
        sides = {s: getattr(ttft, s) + more * getattr(tpot, s) for s in ("low", "typical", "high")}
        return Estimate(**sides, source=tpot.source)
    of_median = figure.target == "ttft_s" and figure.statistic == "median"
    found: Estimate | None = answer.ttft_median_s if of_median else getattr(answer, figure.target)
    return found


def score(table: pl.DataFrame) -> Score:
    """Score the rows of a comparison."""
    answered = table.filter(pl.col("typical").is_not_null())
    if not answered.height:
        return Score(table.height, 0.0)
    measured, typical, low, high = (
        answered[name].to_numpy() for name in ("measured", "typical", "low", "high")
    )
    off = np.abs(typical / measured - 1)
    inside = (low <= measured) & (measured <= high)
    return Score(
        table.height, answered.height / table.height, float(np.median(off)), float(off.mean()),
        float(np.quantile(off, 0.9)), float(np.median(typical / measured - 1)),
        float(inside.mean()), _rank(answered),
    )  # fmt: skip


def _rank(answered: pl.DataFrame) -> float | None:
    if answered.height < 3:  # noqa: PLR2004 - two values always rank
        return None
    ranks = [answered[name].rank().to_numpy() for name in ("measured", "typical")]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def by(table: pl.DataFrame, column: str) -> dict[str, dict[str, Score]]:
    """Scores by target, then by the values of a column."""
    found: dict[str, dict[str, Score]] = defaultdict(dict)
    for (target, value), rows in table.group_by("target", column, maintain_order=True):
        found[str(target)][str(value)] = score(rows)
    return {target: dict(sorted(found[target].items())) for target in sorted(found)}


def choices(table: pl.DataFrame, target: str = "tpot_s") -> ChoiceScore:
    """Choose the layout of least estimated TPOT among those measured under equal conditions.

    Layouts that differ in their prefill pool alone have one TPOT: the one of least estimated TTFT
    is chosen then. This rule of the score, not of the model, was added after ties were seen to
    be chosen by their names.
    """
    rows = table.filter((pl.col("target") == target) & pl.col("typical").is_not_null())
    waits = (
        table.filter(pl.col("target") == "ttft_s")
        .group_by("choice", "layout").agg(pl.col("typical").median().alias("ttft"))
    )  # fmt: skip
    each = (
        rows.group_by("choice", "layout")
        .agg(pl.col("measured").median(), pl.col("typical").median())
        .join(waits, on=["choice", "layout"], how="left")
        .with_columns(pl.col("typical").round_sig_figs(6))
    )
    right: list[bool] = []
    regrets: list[float] = []
    for _, group in each.group_by("choice"):
        if group.height > 1:
            best = float(group["measured"].min())  # type: ignore[arg-type]
            picked = float(group.sort("typical", "ttft", "layout")["measured"][0])
            right.append(picked <= best * (1 + 1e-9))
            regrets.append(picked / best - 1)
    if not right:
        return ChoiceScore(0, None, None)
    return ChoiceScore(len(right), float(np.mean(right)), float(np.mean(regrets)))


def as_data(scores: dict[str, dict[str, Score]]) -> dict[str, Any]:
    """Scores as plain data."""
    return {t: {k: asdict(s) for k, s in found.items()} for t, found in scores.items()}


def missed(found: Mapping[str, float | None], gates: Iterable[dict[str, Any]]) -> list[str]:
    """Sentences about gates of single numbers (`value`) that are not kept."""
    told = []
    for gate in gates:
        value = found.get(gate.get("value", ""))
        if value is not None:
            told += _outside(gate["value"], value, gate)
    return told


def missed_by(table: pl.DataFrame, gates: Iterable[dict[str, Any]]) -> list[str]:
    """Sentences about gates of figures (`target` and `measure`) that a comparison doesn't keep."""
    told = []
    for gate in gates:
        if "target" not in gate:
            continue
        rows = table.filter(pl.col("target") == gate["target"])
        for column in ("mode", "setting"):
            if column in gate:
                rows = rows.filter(pl.col(column) == gate[column])
        if rows.height:
            name = f"{gate['target']} {gate['measure']}"
            told += _outside(name, getattr(score(rows), gate["measure"]), gate)
    return told


def _outside(name: str, value: float | None, gate: dict[str, Any]) -> list[str]:
    low, high = gate.get("at_least", -np.inf), gate.get("at_most", np.inf)
    if value is not None and low <= value <= high:
        return []
    asked = {"at_least": "at least", "at_most": "at most"}
    bound = ", ".join(f"{say} {gate[key]}" for key, say in asked.items() if key in gate)
    return [f"{name} is {'nothing' if value is None else format(value, '.3f')}; asked: {bound}"]
