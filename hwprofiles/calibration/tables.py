"""Fit one table of measured kernel rows: physics, residual, and the error on shapes held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.calibration.nearness import (
    OUTLIERS,
    Choice,
    badness,
    chosen,
    kinds_apart,
    leftover_badness,
)
from hwprofiles.cluster import Cluster
from hwprofiles.kernels import KERNEL_ROW
from hwprofiles.timing.kriging import neighbours
from hwprofiles.timing.metric import Metric
from hwprofiles.timing.places import FAMILIES
from hwprofiles.timing.profile import columns_of, pack, unpack
from hwprofiles.timing.rows import Array, Rows, Work
from hwprofiles.timing.rules import COUNTS
from hwprofiles.timing.tables import NEIGHBOURS, Physics, mixed, running_median

FOLDS = 5
SEED = 7
SAMPLE_ROWS = 4000
IMPOSSIBLE_RATIO = 0.8
"""A time below this share of arithmetic at peak is a fault of the measurement."""
RADII = (0.3, 0.6)
"""Neighbourhoods left out in turn, in units of distance, to learn how error grows with distance."""
LOW, HIGH, SHARE = 0.1, 0.9, 0.8
PARTS = 40
"""Groups left out in turn when a band is tried on what it has not seen."""
FACTORS = np.arange(1.0, 4.01, 0.05)
WIDE = 0.4
"""Log seconds either way where a table has too few shapes to hold any out."""
ENOUGH_SHAPES = 4


@dataclass(frozen=True)
class Cube:
    """Measured log residuals on a grid: `cells` [s, a, b], NaN where nothing was measured."""

    shapes: Array
    outer: Array
    inner: Array
    cells: Array


@dataclass(frozen=True)
class Fitted:
    """A table ready to be stored: what the card says, and its arrays."""

    card: dict[str, Any]
    shapes: NDArray[np.float32]
    residual: NDArray[np.uint8]


def fit_table(
    rows: pl.DataFrame, keys: dict[str, str | None], cluster: Cluster, origin: str
) -> Fitted:
    """Fit one table.

    Args:
        rows: kernel rows of one family and format, with `seconds`.
        keys: columns that choose the table; none for any value.
        cluster: device and links whose peaks the shares refer to.
        origin: files the rows come from.
    """
    kernel = str(rows["kernel"][0])
    known = rows.columns
    absent = [pl.lit(None, kind).alias(c) for c, kind in KERNEL_ROW.items() if c not in known]
    frame = rows.with_columns(absent)
    if keys.get("dtype") is None:
        frame = frame.with_columns(pl.lit("bf16").alias("dtype"))
    work, seconds = COUNTS[kernel](Rows(frame), cluster), rows["seconds"].to_numpy()
    possible = seconds >= IMPOSSIBLE_RATIO * work.compute_s
    if not possible.all():
        frame, seconds = frame.filter(pl.Series(possible)), seconds[possible]
        work = COUNTS[kernel](Rows(frame), cluster)
    fits = [_Fit.of(kernel, frame, work, seconds, p) for p in fit_physics(work, seconds)]
    best = fits[0] if len(fits) == 1 else min(fits, key=lambda fit: fit.badness(kernel))
    cube = best.cube
    choice = chosen(kernel, cube.shapes, cube.cells, best.stored)
    errors = held_out(best, choice, kernel)
    given = {k: v for k, v in vars(best.physics).items() if v != getattr(Physics, k, None)}
    card = {
        "kernel": kernel, "keys": keys, "data": origin, "rows": len(seconds),
        "impossible_rows": int((~possible).sum()), "shapes": len(cube.shapes),
        "physics": {k: float(f"{v:.5g}") for k, v in given.items()},
        "outer": np.round(cube.outer, 6).tolist(), "inner": np.round(cube.inner, 6).tolist(),
        **({"metric": choice.metric} if choice.metric else {}),
        **({"running": choice.running} if choice.running > 1 else {}), **errors,
    }  # fmt: skip
    return Fitted(card, columns_of(cube.shapes), best.residual)


@dataclass(frozen=True)
class _Fit:
    """One physics with what it leaves over, as measured and as stored."""

    physics: Physics
    cube: Cube
    residual: NDArray[np.uint8]
    stored: Array

    @classmethod
    def of(
        cls, kernel: str, frame: pl.DataFrame, work: Work, seconds: Array, physics: Physics
    ) -> _Fit:
        cube = _cube(kernel, frame, np.log(seconds / physics.seconds(work)))
        residual = pack(filled(cube.cells, cube.outer, cube.inner).astype(np.float32))
        return cls(physics, cube, residual, unpack(residual).astype(float))

    def badness(self, kernel: str) -> float:
        return leftover_badness(kernel, self.cube.shapes, self.cube.cells, self.stored)


def fit_physics(work: Work, seconds: Array) -> list[Physics]:
    """Launch cost and shares by least absolute log error, and the same with a cache if it helps."""
    some = np.random.default_rng(SEED).permutation(len(seconds))[:SAMPLE_ROWS]
    part = Work(*(None if c is None else c[some] for c in vars(work).values()))  # type: ignore[arg-type]
    wanted = np.log(seconds[some])

    def error(values: Constants) -> float:
        return float(np.abs(np.log(Physics(*values).seconds(part)) - wanted).mean())

    least = float(np.quantile(seconds, 0.01))
    shares = itertools.product((0.5, 0.95), (0.3, 0.5, 0.7, 0.9), (0.3, 0.6, 0.9))
    grid = [(least * part, compute, memory) for part, compute, memory in shares]
    plain = _descended(min(grid, key=error), error)
    found = [Physics(*plain)]
    if work.wire_s is None:
        start = [(*plain, cache, ratio) for cache in _cache_sizes(part) for ratio in CACHE_RATIOS]
        cached = _descended(min(start, key=error), error)
        if error(cached) < CACHE_GAIN * error(plain) and 1 < cached[4] <= MOST_CACHE_RATIO:
            found.append(Physics(*cached))
    return found


Constants = tuple[float, ...]
CACHE_RATIOS = (1.5, 2.5, 4.0)
MOST_CACHE_RATIO = 8.0
"""Last caches are two to six times as fast as their memory; more is something else."""
CACHE_GAIN = 0.97
CACHE_QUANTILES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)


def _cache_sizes(work: Work) -> Array:
    """Sizes to try, in seconds of memory: quantiles of what the rows move."""
    sizes: Array = np.quantile(work.memory_s, CACHE_QUANTILES)
    return sizes


def _descended(best: Constants, error: Callable[[Constants], float]) -> Constants:
    for step in (1.3, 1.1, 1.03):
        for axis in 2 * tuple(range(len(best))):
            trial = [_scaled(best, axis, f) for f in (1 / step, 1.0, step)]
            best = min(trial, key=error)
    return best


def _scaled(values: Constants, axis: int, factor: float) -> Constants:
    return (*values[:axis], values[axis] * factor, *values[axis + 1 :])


def _cube(kernel: str, frame: pl.DataFrame, residual: Array) -> Cube:
    place = FAMILIES[kernel].place(Rows(frame))
    shapes, which = np.unique(np.round(place.shape, 6), axis=0, return_inverse=True)
    outer, a = np.unique(np.round(place.outer, 6), return_inverse=True)
    inner, b = np.unique(np.round(place.inner, 6), return_inverse=True)
    cells = np.full((len(shapes), len(outer), len(inner)), np.nan)
    cells[which.ravel(), a, b] = residual
    return Cube(shapes, outer, inner, cells)


def filled(cells: Array, outer: Array, inner: Array) -> Array:
    """Cells that were not measured: between two measured sizes interpolated, else the nearest."""
    result = _along(_along(cells, inner, axis=2), outer, axis=1)
    typical = np.nanmedian(result, axis=0, keepdims=True)
    return np.where(np.isnan(result), np.nan_to_num(typical), result)


def _along(cells: Array, grid: Array, axis: int) -> Array:
    moved = np.moveaxis(cells, axis, -1)
    known = ~np.isnan(moved)
    at = np.arange(len(grid))
    left = np.maximum.accumulate(np.where(known, at, -1), axis=-1)
    right = np.minimum.accumulate(np.where(known, at, len(grid))[..., ::-1], axis=-1)[..., ::-1]
    left, right = np.where(left < 0, right, left), np.where(right >= len(grid), left, right)
    left, right = np.clip(left, 0, len(grid) - 1), np.clip(right, 0, len(grid) - 1)
    span = grid[right] - grid[left]
    part = np.where(span > 0, (grid - grid[left]) / np.where(span > 0, span, 1), 0)
    below, above = (np.take_along_axis(moved, i, axis=-1) for i in (left, right))
    return np.moveaxis((1 - part) * below + part * above, -1, axis)


def held_out(fit: _Fit, choice: Choice, kernel: str) -> dict[str, Any]:
    """Error on sizes and on whole shapes that were left out, and the bands that held them."""
    cube = fit.cube
    sizes = _left_out_sizes(cube)
    scale, covered = stretch(sizes)
    card: dict[str, Any] = {"error_sizes": _error(sizes) | {"coverage": covered}}
    bands = [_band(sizes, scale)]
    edges: list[float] = []
    if len(cube.shapes) >= ENOUGH_SHAPES:
        metric = FAMILIES[kernel].metric(**choice.metric)
        smooth = replace(fit, stored=running_median(fit.stored, choice.running))
        whole = list(kinds_apart(kernel, cube.shapes))
        tried = [(o, *_left_out_shapes(metric, smooth, o, whole)) for o in OUTLIERS]
        outlier, found, nearest = min(tried, key=lambda t: badness(t[1][0]))
        card["outlier"] = None if np.isinf(outlier) else outlier
        scale, covered = stretch(found[0])
        card["error_shapes"] = _error(found[0]) | {"coverage": covered}
        if whole:
            card["error_models"] = _error(found[-1])
        flat, far = np.concatenate(found).ravel(), np.concatenate(nearest).ravel()
        edges = [float(e) for e in np.round(np.quantile(far[np.isfinite(flat)], (0.34, 0.67)), 4)]
        bucket = np.searchsorted(edges, far)
        bands += [_band(flat[bucket == i], scale) for i in range(3)]
    else:
        bands.append((-WIDE, WIDE))
    low, high = zip(*bands, strict=True)
    card["bands"] = {"edges": edges, "low": list(low), "high": list(high)}
    return card


def stretch(errors: Array) -> tuple[float, float]:
    """How much wider than its own quantiles a band must be to hold 80 % of what it has not seen.

    Args:
        errors: [groups, n]; groups (shapes, or sizes) are left out in turn.

    Returns:
        Factor on the band's half width, and the share of left-out rows inside it.
    """
    part = np.arange(len(errors)) % min(len(errors), PARTS)
    centre, half = (np.full(len(errors), np.nan) for _ in range(2))
    for i in np.unique(part):
        low, high = (_quantile(errors[part != i], q) for q in (LOW, HIGH))
        centre[part == i], half[part == i] = (low + high) / 2, (high - low) / 2
    known = np.isfinite(errors)
    off = np.abs(errors - centre[:, None])
    covered = 0.0
    for factor in FACTORS:
        covered = float((off <= factor * half[:, None])[known].mean()) if known.any() else 0.0
        if covered >= SHARE:
            break
    return float(factor), float(f"{covered:.4g}")


def _band(errors: Array, factor: float) -> tuple[float, float]:
    low, high = _quantile(errors, LOW), _quantile(errors, HIGH)
    centre, half = (low + high) / 2, factor * (high - low) / 2
    return float(f"{centre - half:.4g}"), float(f"{centre + half:.4g}")


def _left_out_sizes(cube: Cube) -> Array:
    """Interpolate each inner size from its neighbours; [sizes, shapes x outer]."""
    grid, cells = cube.inner, cube.cells
    if len(grid) < 3:  # noqa: PLR2004 - an inner point needs two neighbours
        return np.full((1, 1), np.nan)
    middle = np.arange(1, len(grid) - 1)
    part = (grid[middle] - grid[middle - 1]) / (grid[middle + 1] - grid[middle - 1])
    guess = (1 - part) * cells[..., middle - 1] + part * cells[..., middle + 1]
    left_out: Array = (cells[..., middle] - guess).reshape(-1, len(middle)).T
    return left_out


def _left_out_shapes(
    metric: Metric, fit: _Fit, outlier: float, whole: list[NDArray[np.bool_]]
) -> tuple[list[Array], list[Array]]:
    """Predict whole shapes from the others: in folds first, then without any near neighbour.

    `whole` says which shapes to leave out together besides, such as all layouts of a model.
    """
    cube, points = fit.cube, metric.points(fit.cube.shapes)
    fold = np.random.default_rng(SEED).permutation(len(points)) % min(FOLDS, len(points))
    between = points.between(points)
    errors, distances = [], []
    for apart in (fold[:, None] == fold, *(between < radius for radius in RADII), *whole):
        usable = (~apart).sum(axis=1) >= ENOUGH_SHAPES - 1
        if not usable.any():
            continue
        count = int(min(NEIGHBOURS, (~apart[usable]).sum(axis=1).min()))
        index, weight, near = neighbours(points.part(usable), points, count, apart[usable])
        guess = mixed(fit.stored[index], weight[:, :, None, None], outlier)
        errors.append((cube.cells[usable] - guess).reshape(int(usable.sum()), -1))
        distances.append(np.broadcast_to(near[:, None], errors[-1].shape))
    return errors, distances


def _quantile(errors: Array, q: float) -> float:
    known = errors[np.isfinite(errors)]
    if len(known) < 5:  # noqa: PLR2004 - too few to speak of a tenth
        return -WIDE if q < 0.5 else WIDE  # noqa: PLR2004
    return float(f"{np.quantile(known, q):.4g}")


def _error(errors: Array) -> dict[str, float]:
    off = np.abs(np.expm1(-errors[np.isfinite(errors)]))
    if not len(off):
        return {}
    return {"median": float(f"{np.median(off):.4g}"), "p90": float(f"{np.quantile(off, 0.9):.4g}")}
