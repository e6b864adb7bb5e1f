"""Rates of one line: requests of its workers, tokens of its pools, joules of a token."""

from __future__ import annotations

from typing import Any

from planner.point import Point
from planner.pricing import Question
from planner.quantities import Estimate, Source
from planner.timing.serving import SIDES

Row = dict[str, Any]


def side_by_side(row: Row, name: str, source: Source) -> Estimate:
    """The three columns of a quantity as an estimate."""
    low, typical, high = (row[f"{name}_{side}"] for side in SIDES)
    # model_construct: ten thousand lines have fifty thousand of these, all just computed
    return Estimate.model_construct(typical=typical, low=low, high=high, source=source)


def requests_per_s(point: Point, parts: list[tuple[int, Row]]) -> dict[str, float]:
    """Requests per second: the slower pool, and no more than the callers' closed loop gives."""
    rate = {side: min(w * row[f"request_rate_{side}"] for w, row in parts) for side in SIDES}
    if point.mode == "disagg" and point.concurrency is not None:
        (_, prefill), (_, decode) = parts
        for side, slow in (("low", "high"), ("typical", "typical"), ("high", "low")):
            turn = prefill[f"ttft_s_{slow}"] + (point.osl - 1) * decode[f"tpot_s_{slow}"]
            rate[side] = min(rate[side], point.concurrency / turn)
    return rate


def energy_of(question: Question, output: Estimate) -> Estimate | None:
    """Watts of the device over its tokens per second; none where no source states its power."""
    power = question.cluster.device.power_w
    if power is None:
        return None
    values = {"typical": output.typical, "low": output.high, "high": output.low}
    return Estimate(**{s: power.value / v for s, v in values.items()}, source=output.source)


def pool_rates(point: Point, rows: dict[str, Row], source: Source) -> dict[str, Estimate]:
    """Tokens a second and device that each pool gives when it never waits for the other."""
    if point.mode == "agg":
        return {}
    tokens = {"prefill": point.isl - point.cached_tokens, "decode": point.osl}
    found = {}
    for role, count in tokens.items():
        row = rows[role]
        rate = side_by_side(row, "request_rate", source)
        scaled = {s: getattr(rate, s) * count / row["devices"] for s in SIDES}
        found[f"{role}_tokens_per_s_per_device"] = Estimate(**scaled, source=source)
    return found
