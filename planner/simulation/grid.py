"""Straight-line interpolation in measured tables, one lookup at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import polars as pl

from hwprofiles.errors import MoesaicError


class Grid:
    """Values on a complete grid of any number of axes, linear between its points.

    Below the first point of an axis the first point's value holds (a kernel never gets quicker than
    its launch); above the last, the last two points' line goes on.

    Args:
        table: one row a grid point; rows off the complete grid must have been filtered out.
        axes: names of the axis columns.
        value: name of the value column.

    Raises:
        MoesaicError: `invalid` when a grid point is missing.
    """

    def __init__(self, table: pl.DataFrame, axes: Sequence[str], value: str) -> None:
        self._axes = [sorted(float(x) for x in table[axis].unique()) for axis in axes]
        points = {
            tuple(float(x) for x in row[:-1]): float(row[-1])
            for row in table.select(*axes, value).iter_rows()
        }
        expected = 1
        self._strides: list[int] = []
        for axis in reversed(self._axes):
            self._strides.insert(0, expected)
            expected *= len(axis)
        if len(points) != expected or not points:
            raise MoesaicError(
                "invalid", f"a table over {', '.join(axes)} has {len(points)} of {expected} points"
            )
        self._values = [points[key] for key in sorted(points)]

    def __call__(self, *position: float) -> float:
        """Interpolate at a position, one number an axis."""
        corners: list[tuple[int, float]] = [(0, 1.0)]
        for axis, stride, x in zip(self._axes, self._strides, position, strict=True):
            low, share = _bracket(axis, x)
            if share == 0:
                corners = [(at + low * stride, weight) for at, weight in corners]
            else:
                corners = [
                    (at + (low + side) * stride, weight * (share if side else 1 - share))
                    for at, weight in corners
                    for side in (0, 1)
                ]
        values = self._values
        return sum(values[at] * weight for at, weight in corners)


def _bracket(axis: list[float], x: float) -> tuple[int, float]:
    if x <= axis[0] or len(axis) == 1:
        return 0, 0.0
    low = min(bisect_right(axis, x) - 1, len(axis) - 2)
    return low, (x - axis[low]) / (axis[low + 1] - axis[low])
