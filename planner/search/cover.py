"""The cheapest workers of one role that carry a rate, for every rate at once, on a fine grid.

A covering knapsack: cost(x) is the least of Σ n_c cost_c with Σ n_c rate_c >= x. Every column is
taken 1, 2, 4, … times (any count is a sum of these), each time over the whole grid (Martello and
Toth, Knapsack Problems, 1990, 3.4). Rates are rounded up to the grid, so cost(x) is never above
the true one, and what is taken may carry a little less than x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One column taken `count` times, or not, at every level of the grid."""

    column: int
    count: int
    levels: int
    """By how much it lowers what is left to carry."""
    taken: npt.NDArray[np.uint8]
    """A bit a level."""

    def taken_at(self, level: int) -> bool:
        """Whether the cheapest way to carry a level takes it."""
        return bool(self.taken[level >> 3] >> (7 - (level & 7)) & 1)


class Cover:
    """Least cost by level, and the workers that reach it."""

    def __init__(self, levels: Whole, costs: Floats, top: int) -> None:
        """Fill the grid.

        Args:
            levels: rate of each column in steps of the grid, rounded up.
            costs: of one worker of each column, none below zero.
            top: highest level asked for.
        """
        self.costs = np.full(top + 1, np.inf)
        self.costs[0] = 0.0
        self._steps: list[Step] = []
        for column in _undominated(levels, costs):
            self._take(column, int(levels[column]), float(costs[column]), top)

    def _take(self, column: int, level: int, cost: float, top: int) -> None:
        count = 1
        while True:
            reach = min(count * level, top)
            tried = np.full(top + 1, count * cost)
            tried[reach:] += self.costs[: top + 1 - reach]
            tried[0] = 0.0
            taken = tried < self.costs
            np.minimum(tried, self.costs, out=self.costs)
            self._steps.append(Step(column, count, reach, np.packbits(taken)))
            if count * level >= top:
                return
            count *= 2

    def workers(self, level: int) -> dict[int, int]:
        """Workers by column of the cheapest way to carry a level."""
        found: dict[int, int] = {}
        for step in reversed(self._steps):
            if level > 0 and step.taken_at(level):
                found[step.column] = found.get(step.column, 0) + step.count
                level = max(level - step.levels, 0)
        return found


def _undominated(levels: Whole, costs: Floats) -> list[int]:
    """Columns than which none carries as much for as little."""
    kept, least = [], np.inf
    for column in np.lexsort((costs, -levels)):
        if costs[column] < least:
            kept.append(int(column))
            least = costs[column]
    return kept
