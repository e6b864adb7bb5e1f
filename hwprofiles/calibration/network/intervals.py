"""80 % intervals of a measured network from rows that no fit saw, judged group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hwprofiles.calibration.fitting import Array, coverage, interval
from hwprofiles.calibration.network.orders import ORDERS, message_bytes, token_width
from hwprofiles.calibration.network.pricing import layer_s, rows_seconds
from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.efficiency import Band, Curves
from hwprofiles.units import Ratio

LEAST_ROWS = 20
"""Fewer held-out rows than this leave the interval of the fit's own folds."""
Record = Mapping[str, Any]


class Coverage(Document):
    """How many rows of groups that were left out lie inside the interval of the other groups."""

    what: str
    left_out: str
    groups_count: int
    rows_count: int
    coverage_ratio: Ratio
    """0.8 is meant."""
    low_ratio: Ratio
    """The interval of all rows, as parts of the predicted seconds."""
    high_ratio: Ratio


def with_held_out(curves: Curves, cluster: Cluster, held_out: Sequence[Record]) -> Curves:
    """The curves with the interval of all-to-alls that rows of no fit give."""
    if len(held_out) < LEAST_ROWS:
        return curves
    low, high = interval(exchange_ratios(held_out, cluster, curves))
    curve = curves.families["all_to_all"].model_copy(
        update={"time": Band(low=low, typical=1.0, high=high)}
    )
    return curves.model_copy(update={"families": {**curves.families, "all_to_all": curve}})


def exchange_ratios(rows: Sequence[Record], cluster: Cluster, curves: Curves) -> Array:
    """Measured over predicted seconds of all-to-alls."""
    names = ("kernel", "library", "message_bytes", "dtype", "devices", "nodes")
    told = rows_seconds([{name: row[name] for name in names} for row in rows], cluster, curves)[1]
    return np.array([row["median_s"] for row in rows]) / told


def coverages(
    held_out: Sequence[Record], layers: Sequence[Record], cluster: Cluster, curves: Curves
) -> tuple[Coverage, ...]:
    """Judge exchanges and whole layers, each time with one width, size or group of ranks left out.

    Args:
        held_out: all-to-alls of sizes that were not fitted.
        layers: records of `gloo-cdac` and `gloo-dcca`, never fitted.
        cluster: links with their fitted latencies.
        curves: fitted to other sizes.
    """
    widths = {
        message_bytes(row, order): token_width(row, order) for row in layers for order in ORDERS
    }
    exchanges = exchange_ratios(held_out, cluster, curves) if held_out else np.empty(0)
    whole = np.array([
        row["median_s"]
        / layer_s(row, str(row["backend"]).removeprefix("gloo-"), cluster, curves)
        for row in layers
    ])  # fmt: skip
    judged: list[tuple[str, str, Array, Sequence[Record], Callable[[Record], object]]] = [
        ("exchange", "message size", exchanges, held_out, lambda row: row["message_bytes"]),
        ("exchange", "width of a token", exchanges, held_out,
         lambda row: widths.get(row["message_bytes"])),
        ("exchange", "group of ranks", exchanges, held_out, _ranks),
        ("layer", "width of the model", whole, layers, lambda row: row["hidden"]),
        ("layer", "tokens", whole, layers, lambda row: row["tokens"]),
        ("layer", "group of ranks", whole, layers, _ranks),
    ]  # fmt: skip
    return tuple(
        found
        for what, left_out, ratios, rows, group_of in judged
        if (found := _judged(what, left_out, ratios, [group_of(row) for row in rows]))
    )


def _ranks(row: Record) -> object:
    return row["devices"], row["nodes"]


def _judged(what: str, left_out: str, ratios: Array, groups: Sequence[object]) -> Coverage | None:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(ratios) < LEAST_ROWS or len(numbers) < 2:  # noqa: PLR2004 - one is left out, one stays
        return None
    low, high = interval(ratios)
    return Coverage(
        what=what, left_out=left_out, groups_count=len(numbers), rows_count=len(ratios),
        coverage_ratio=coverage(ratios, np.array([numbers[group] for group in groups])),
        low_ratio=low, high_ratio=high,
    )  # fmt: skip
