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


_NEVER = (-math.inf, -1, -1)


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
        self._append = tuple(column.append for column in self._columns.values())

    def look(self, group: Group, now_s: float) -> None:
        """Note the group if its queue or running set changed."""
        waiting, running = group.waiting, 0
        for rank in group.ranks:
            running += rank.running
        last_s, last_waiting, last_running = self._last.get(group.index, _NEVER)
        if last_waiting == waiting and last_running == running:
            return
        keep = now_s - last_s >= self._step_s
        self._last[group.index] = (now_s if keep else last_s, waiting, running)
        if not keep:
            return
        blocks = used = 0
        for rank in group.ranks:
            blocks += rank.kv.blocks
            used += rank.kv.used
        time, index, queue, inside, share = self._append
        time(now_s)
        index(group.index)
        queue(waiting)
        inside(running)
        share(used / blocks)

    def table(self) -> pl.DataFrame:
        """All looks in order."""
        return pl.DataFrame(
            {n: pl.Series(n, values, dtype=LOAD_ROW[n]) for n, values in self._columns.items()}
        )
