"""Queues, running sequences and KV use over time, as a table."""

from __future__ import annotations

import math
from array import array
from typing import Any

import polars as pl

from planner.simulation.group import Group

LOAD_ROW: dict[str, type[pl.DataType]] = {
    "time_s": pl.Float64,
    "replica_index": pl.Int64,
    "waiting_count": pl.Int64,
    "running_count": pl.Int64,
    "kv_ratio": pl.Float64,
}
"""What one group held at a moment."""


class LoadTimeline:
    """Looks at a group when an iteration starts with another number waiting or running.

    Iterations between two changes add nothing, so a run that skips them writes the same table.

    Args:
        step_s: shortest time between two looks; 0 keeps every change.
    """

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._last: dict[int, tuple[float, int, int]] = {}
        self._columns: dict[str, array[Any]] = {
            name: array("d" if kind is pl.Float64 else "q") for name, kind in LOAD_ROW.items()
        }

    def look(self, group: Group, now_s: float) -> None:
        """Note the group if its queue or running set changed."""
        waiting, running = group.waiting, 0
        for rank in group.ranks:
            running += rank.running
        last_s, *last = self._last.get(group.index, (-math.inf, -1, -1))
        if last == [waiting, running]:
            return
        keep = now_s - last_s >= self._step_s
        self._last[group.index] = (now_s if keep else last_s, waiting, running)
        if not keep:
            return
        blocks = used = 0
        for rank in group.ranks:
            blocks += rank.kv.blocks
            used += rank.kv.used
        row = (now_s, group.index, waiting, running, used / blocks)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def table(self) -> pl.DataFrame:
        """All looks in order."""
        return pl.DataFrame(
            {n: pl.Series(n, values, dtype=LOAD_ROW[n]) for n, values in self._columns.items()}
        )
