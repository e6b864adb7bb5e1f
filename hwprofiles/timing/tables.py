"""One table of measured kernel times: physics fitted to it, and what is left over at each shape.

t = (fixed + hops + smooth max(compute / share, memory / share, wire / share)) · exp(residual), the
residual kriged between measured shapes and interpolated between measured sizes. Physics carries the
answer where shapes end, the residual where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.timing.kriging import SAME, neighbours
from hwprofiles.timing.metric import Metric
from hwprofiles.timing.places import FAMILIES, Place
from hwprofiles.timing.rows import Array, Work

NEIGHBOURS = 12
MOST_KNOWN = 20_000
"""Shapes whose neighbours a table remembers: some 4 MB."""
SHARPNESS = 4.0
"""Power of the smooth maximum: parts that are equal take 2^(1/4) = 1.19 times as long as one."""
ON_GRID = 1e-4
MARGIN = 0.1
"""How far, in log seconds, a kriged residual may leave the range of its neighbours."""


@dataclass(frozen=True)
class Physics:
    """Launch cost and the shares of the peaks that the kernels of one table reach."""

    fixed_s: float
    compute_share: float
    memory_share: float
    """For collectives and exchanges: the share of the link bandwidth."""
    cache_s: float = 0.0
    """Bytes the cache keeps between two runs, in seconds of memory; 0: it made no difference."""
    cache_ratio: float = 1.0
    """How many times faster than memory what lies in the cache is read."""

    def parts(self, work: Work) -> tuple[Array, Array]:
        """Seconds of arithmetic and seconds of memory or wire."""
        slow = self._read_s(work.memory_s) if work.wire_s is None else work.wire_s
        return work.compute_s / self.compute_share, slow / self.memory_share

    def _read_s(self, memory_s: Array) -> Array:
        """Kernels are measured over and over: what fits the last cache isn't read from memory."""
        if self.cache_ratio <= 1:
            return memory_s
        kept = 1 / (1 + (memory_s / self.cache_s) ** SHARPNESS)
        read: Array = memory_s * (1 - kept * (1 - 1 / self.cache_ratio))
        return read

    def seconds(self, work: Work) -> Array:
        """Time without a residual."""
        compute, slow = self.parts(work)
        most = np.maximum(np.maximum(compute, slow), 1e-30)
        less = np.minimum(compute, slow) / most
        busy = most * (1 + less**SHARPNESS) ** (1 / SHARPNESS)
        hops = 0.0 if work.hops_s is None else work.hops_s
        total: Array = self.fixed_s + hops + busy
        return total


@dataclass(frozen=True)
class Bands:
    """Log offsets that held 80 % of held-out rows, by distance to the nearest measured shape.

    The first entry is for shapes that were measured themselves; `edges` are the upper ends of the
    distances of the following entries, the last entry has none.
    """

    edges: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def offsets(self, nearest: Array) -> tuple[Array, Array]:
        """Log offsets of each row, from its distance."""
        bucket = np.where(nearest < SAME, 0, 1 + np.searchsorted(self.edges, nearest))
        return np.array(self.low)[bucket], np.array(self.high)[bucket]


@dataclass(frozen=True)
class Table:
    """Measured times of one kernel family in one format on one device with one engine."""

    kernel: str
    keys: dict[str, str | None]
    physics: Physics
    shapes: Array
    """[s, d] base-2 logarithms, as `places` makes them."""
    outer: Array
    inner: Array
    residual: NDArray[np.float32]
    """[s, a, b] log of measured over physics; cells that were not measured hold the nearest one."""
    bands: Bands
    local_when_balanced: bool = False
    """The balanced rows of several expert ranks count every token as local to the one measured."""
    outlier: float = np.inf
    """Log seconds: neighbours farther than this from their median are drawn in to it. Finite where
    hold-out was better so (autotuned kernels that jump from shape to shape)."""
    running: int = 1
    """Sizes that a running median is taken over where a shape was not measured: odd rows of other
    shapes then say nothing."""
    metric: Metric | None = None
    """Distance between shapes; none: the family's."""
    known: dict[bytes, tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)
    """Neighbours, weights and nearest distance of shapes that were asked for."""

    @property
    def distance(self) -> Metric:
        """Distance between shapes that this table was judged with."""
        return self.metric or FAMILIES[self.kernel].metric()

    @cached_property
    def smooth(self) -> NDArray[np.float32]:
        """The residual as shapes between measured ones take it."""
        return running_median(self.residual, self.running)


@dataclass(frozen=True)
class Residual:
    """What a table says about n rows, in log seconds over physics."""

    typical: Array
    nearest: Array
    """Distance to the nearest measured shape."""
    beyond: Array
    """Doublings outside the measured range, the worst coordinate."""
    measured: NDArray[np.bool_]
    """True where shape and sizes are exactly measured ones."""

    def away(self, doublings: Array) -> Residual:
        """The same with loads so many doublings from those that were measured; NaN: none stated."""
        far = np.nan_to_num(doublings)
        return replace(self, beyond=self.beyond + far, measured=self.measured & (far <= 0))


def residual_of(table: Table, place: Place) -> Residual:
    """Interpolate a table's residual at the rows' places."""
    shape, back = _distinct(place.shape)
    lowest, highest = table.shapes.min(axis=0), table.shapes.max(axis=0)
    held = np.clip(shape, lowest, highest)
    index, weight, nearest = _remembered(table, held)
    cells = _cells(table, place)
    typical = np.empty(len(back))
    exact = (nearest < SAME)[back]
    for chosen, count in ((exact, 1), (~exact, index.shape[1])):
        if chosen.any():
            of_shape = back[chosen]
            typical[chosen] = _mixed(table, cells, index[of_shape], weight[of_shape], chosen, count)
    stretch = np.abs(shape - held)
    sizes = np.maximum(_outside(place.inner, table.inner), _outside(place.outer, table.outer))
    beyond = np.maximum(stretch.max(axis=1)[back], sizes)
    nearest = nearest + (stretch / np.array(table.distance.steps)).max(axis=1)
    return Residual(typical, nearest[back], beyond, exact & cells.on_grid & (beyond <= 0))


def _remembered(table: Table, held: Array) -> tuple[NDArray[np.intp], Array, Array]:
    """Neighbours of shapes; a table keeps those it was asked for, since models repeat theirs."""
    keys = [row.tobytes() for row in np.ascontiguousarray(held)]
    new = [place for place, key in enumerate(keys) if key not in table.known]
    if new:
        if len(table.known) > MOST_KNOWN:
            table.known.clear()
            new = list(range(len(keys)))
        points = table.distance.points
        found = neighbours(points(held[new]), points(table.shapes), NEIGHBOURS)
        table.known.update(
            (keys[place], parts) for place, parts in zip(new, zip(*found, strict=True), strict=True)
        )
    index, weight, nearest = zip(*(table.known[key] for key in keys), strict=True)
    return np.array(index), np.array(weight), np.array(nearest)


@dataclass(frozen=True)
class _Cells:
    """The grid cell of each row: its lower corner and how far it stands into it."""

    outer: NDArray[np.intp]
    inner: NDArray[np.intp]
    outer_part: Array
    inner_part: Array

    @property
    def on_grid(self) -> NDArray[np.bool_]:
        """True where a row stands on a corner."""
        return (np.abs(self.outer_part - np.round(self.outer_part)) < ON_GRID) & (
            np.abs(self.inner_part - np.round(self.inner_part)) < ON_GRID
        )


def _cells(table: Table, place: Place) -> _Cells:
    outer, outer_part = _position(place.outer, table.outer)
    inner, inner_part = _position(place.inner, table.inner)
    return _Cells(outer, inner, outer_part, inner_part)


def _position(values: Array, grid: Array) -> tuple[NDArray[np.intp], Array]:
    if len(grid) == 1:
        return np.zeros(len(values), dtype=np.intp), np.zeros(len(values))
    lower = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    part = np.clip((values - grid[lower]) / (grid[lower + 1] - grid[lower]), 0, 1)
    return lower, part


def _outside(values: Array, grid: Array) -> Array:
    below, above = grid[0] - values, values - grid[-1]
    outside: Array = np.maximum(np.maximum(below, above), 0.0)
    return outside


def _distinct(shape: Array) -> tuple[Array, NDArray[np.intp]]:
    """Rows that differ, and for each row which of them it is."""
    code = shape @ np.sqrt(np.arange(2, 2 + shape.shape[1]))
    _, first, back = np.unique(code, return_index=True, return_inverse=True)
    return shape[first], back


def _mixed(
    table: Table, cells: _Cells, index: NDArray[np.intp], weight: Array,
    chosen: NDArray[np.bool_], count: int,
) -> Array:  # fmt: skip
    """Bilinear inside each neighbour's grid, then weighted over neighbours."""
    if count == 1:
        nearest = weight.argmax(axis=1)[:, None]
        index = np.take_along_axis(index, nearest, axis=1)
        weight = np.ones(index.shape)
    values = np.zeros(index.shape)
    residual = table.residual if count == 1 else table.smooth
    flat, (outer, inner) = residual.reshape(-1), residual.shape[1:]
    corner = index * (outer * inner)
    for up_outer in (0, 1):
        part = cells.outer_part[chosen] if up_outer else 1 - cells.outer_part[chosen]
        if not part.any():
            continue
        row = np.minimum(cells.outer[chosen] + up_outer, len(table.outer) - 1) * inner
        for up_inner in (0, 1):
            share = cells.inner_part[chosen] if up_inner else 1 - cells.inner_part[chosen]
            column = np.minimum(cells.inner[chosen] + up_inner, len(table.inner) - 1)
            values += (part * share)[:, None] * flat.take(corner + (row + column)[:, None])
    return mixed(values, weight, table.outlier)


def running_median(cells: NDArray[Any], width: int) -> NDArray[Any]:
    """Median over so many neighbouring inner sizes, the last axis; ends are repeated."""
    if width == 1:
        return cells
    side = width // 2
    padded = np.concatenate([cells[..., :1]] * side + [cells] + [cells[..., -1:]] * side, axis=-1)
    moved = [padded[..., i : i + cells.shape[-1]] for i in range(width)]
    median: NDArray[Any] = np.median(np.stack(moved), axis=0)
    return median


def mixed(values: Array, weights: Array, outlier: float) -> Array:
    """Weighted neighbours, [rows, neighbours, …] over the second axis, kept near their range."""
    if np.isfinite(outlier):
        middle = np.median(values, axis=1, keepdims=True)
        values = np.clip(values, middle - outlier, middle + outlier)
    total = (values * weights).sum(axis=1)
    held: Array = np.clip(total, values.min(axis=1) - MARGIN, values.max(axis=1) + MARGIN)
    return held
