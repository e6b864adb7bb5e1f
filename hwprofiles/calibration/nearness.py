"""Choose a table's distance between shapes by what predicts shapes left out best.

The folds here are others than those a table is judged on afterwards, so that a choice that fits one
split by chance gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.timing.kriging import neighbours
from hwprofiles.timing.metric import Metric
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.rows import Array
from hwprofiles.timing.tables import NEIGHBOURS, mixed, running_median

FOLDS = 5
SEED = 11
LEAST_SHAPES = 12
"""Tables with fewer shapes keep their family's distance: nothing would be left to choose by."""
SAMPLE_CELLS, SAMPLE_SHAPES = 40, 200
"""Cells and shapes, drawn by chance, that a choice is judged by."""
JUMPS = (0.35, 0.7, 1.4)
FACTORS = (0.5, 2.0)
WITHIN = 8.0
"""Steps stay within this factor of their family's, so that far shapes keep a sense of distance."""
RUNNING = 5
"""Sizes of the running median that is tried."""
GAIN = 0.995
OTHER_KINDS = 0.25
"""Weight of the error on kinds (models) of which nothing is known, beside that on shapes."""
OUTLIERS = (np.inf, 0.2)
"""Ways to treat neighbours far from the rest that hold-out chooses between."""


def badness(errors: Array) -> float:
    """What a choice between fits goes by: median error and a quarter of the 90th percentile."""
    off = np.abs(errors[np.isfinite(errors)])
    return float(np.median(off) + np.quantile(off, 0.9) / 4) if len(off) else np.inf


@dataclass(frozen=True)
class Choice:
    """What a table takes: arguments of its family's `metric`, sizes to take medians over."""

    metric: dict[str, Any]
    running: int


def chosen(kernel: str, shapes: Array, measured: Array, cells: Array) -> Choice:
    """The distance and smoothing that do best.

    Args:
        kernel: the family.
        shapes: [s, d] coordinates.
        measured: [s, a, b] log residuals, NaN where nothing was measured.
        cells: the same with gaps filled.
    """
    if len(shapes) < LEAST_SHAPES:
        return Choice({}, 1)
    judge = _Judge(kernel, shapes, measured, cells)
    metric, least = _metric(judge)
    smooth = _Judge(kernel, shapes, measured, running_median(cells, RUNNING))
    return Choice(metric, RUNNING if smooth(metric) < least * GAIN else 1)


def leftover_badness(kernel: str, shapes: Array, measured: Array, cells: Array) -> float:
    """How badly shapes left out are predicted from what one physics leaves over; 0: too few.

    Judged with a plain choice of distance, layouts of one kind nearer than others.
    """
    if len(shapes) < LEAST_SHAPES:
        return 0.0
    kinds = FAMILIES[kernel].kinds
    judge = _Judge(kernel, shapes, measured, cells)
    return min(judge({}), *(judge({"kind": kind, "jump": JUMPS[1]}) for kind in kinds), np.inf)


def _metric(judge: _Judge) -> tuple[dict[str, Any], float]:
    best: dict[str, Any] = {}
    least, kernel = judge(best), judge.kernel
    for kind in FAMILIES[kernel].kinds:
        for jump in JUMPS:
            trial = {"kind": kind, "jump": jump}
            value = judge(trial, least)
            if value < least * GAIN:
                best, least = trial, value
    return _stepped(judge, best, least)


def _stepped(judge: _Judge, best: dict[str, Any], least: float) -> tuple[dict[str, Any], float]:
    usual = FAMILIES[judge.kernel].steps
    for axis in range(len(usual)):
        for factor in FACTORS:
            while True:
                steps = list(best.get("steps", usual))
                steps[axis] *= factor
                if not 1 / WITHIN <= steps[axis] / usual[axis] <= WITHIN:
                    break
                value = judge({**best, "steps": steps}, least)
                if value >= least * GAIN:
                    break
                best, least = {**best, "steps": steps}, value
    return best, least


class _Judge:
    """Badness of a distance on some cells of shapes left out, and of kinds left out."""

    def __init__(self, kernel: str, shapes: Array, measured: Array, cells: Array) -> None:
        self.kernel, self.shapes = kernel, shapes
        flat, known = cells.reshape(len(shapes), -1), measured.reshape(len(shapes), -1)
        some = np.random.default_rng(SEED).permutation(flat.shape[1])[:SAMPLE_CELLS]
        self.cells, self.known = flat[:, some], known[:, some]
        order = np.random.default_rng(SEED).permutation(len(shapes))
        self.folds, self.some = order % FOLDS, order[:SAMPLE_SHAPES]

    def __call__(self, choice: dict[str, Any], least: float = np.inf) -> float:
        """Badness of a distance; only a lower bound where that is above `least` already."""
        metric = FAMILIES[self.kernel].metric(**choice)
        bad = self._bad(metric, self.folds[:, None] == self.folds)
        for apart in kinds_apart(self.kernel, self.shapes):
            if bad < least:
                bad += OTHER_KINDS * self._bad(metric, apart)
        return bad

    def _bad(self, metric: Metric, apart: NDArray[np.bool_]) -> float:
        points, some = metric.points(self.shapes), self.some
        count = int(min(NEIGHBOURS, (~apart).sum(axis=1).min()))
        index, weight, _ = neighbours(points.part(some), points, count, apart[some])
        values = self.cells[index]
        guesses = (mixed(values, weight[:, :, None], outlier) for outlier in OUTLIERS)
        return min(badness(self.known[some] - guess) for guess in guesses)


def kinds_apart(kernel: str, shapes: Array) -> Iterator[NDArray[np.bool_]]:
    """[s, s] true where the kinds of two shapes share a fold: whole kinds are left out."""
    sums = FAMILIES[kernel].kinds.get(_WHOLE, ())
    if not sums:
        return
    kinds = np.round(shapes @ np.array(sums, dtype=float).T, 3)
    _, which = np.unique(kinds, axis=0, return_inverse=True)
    count = int(which.max()) + 1
    if count >= FOLDS:
        fold = (np.random.default_rng(SEED).permutation(count) % FOLDS)[which.ravel()]
        yield fold[:, None] == fold


_WHOLE = "model"
"""The kind that is left out as a whole: a model nobody measured will be asked for."""
