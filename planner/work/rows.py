"""The work sheet's schema, and the one way to write rows into it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.kernels import KERNEL_ROW
from planner.expert_layout import USUAL_LAYOUT, ExpertLayout
from planner.moe_model import LayerKind, WeightFormats

Array = NDArray[np.float64]
Codes = NDArray[np.intp]
Flags = NDArray[np.bool_]
SHEET: dict[str, type[pl.DataType]] = {
    "point": pl.UInt32,  # the forward pass this row belongs to
    "stage": pl.String,  # attention, shared, experts, dispatch, …: what the time is shown under
    "repeat_count": pl.Float64,  # how often the kernel runs in one pass
} | KERNEL_ROW


@dataclass(frozen=True)
class Formats:
    """Numeric formats of one question: weights by bucket, cache, exchange."""

    weights: WeightFormats
    kv_dtype: str
    dispatch_dtype: str
    combine_dtype: str = "bf16"
    exchange: str = "library"
    """How tokens reach experts: a key of `planner.work.exchange.EXCHANGES`."""
    layout: ExpertLayout = USUAL_LAYOUT
    """Sums, shared experts, copies and order; its exchange is the field above."""


@dataclass(frozen=True)
class LayerWork:
    """One kind of layer, how many of it, and what every stage must know."""

    kind: LayerKind
    layers: int
    hidden: int
    formats: Formats


@dataclass(frozen=True)
class Points:
    """Forward passes as arrays of equal length, one entry a pass; names as in `POINT`.

    Some of the passes (`where`) know those they were taken from, so that a size counted for all may
    be written for some.
    """

    columns: dict[str, Any]
    """Of some of the passes: those that were asked for."""
    parent: Points | None = None
    index: Codes | None = None
    """Which of the parent's passes these are."""

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Points:
        """The columns of a table of points."""
        whole = [
            name for name in frame.columns if name != "point" and frame[name].dtype.is_integer()
        ]
        exact = frame.with_columns(pl.col(whole).cast(pl.Float64)) if whole else frame
        return cls({name: exact[name].to_numpy() for name in exact.columns})

    def __contains__(self, name: str) -> bool:
        return name in (self.columns if self.parent is None else self.parent)

    def __getitem__(self, name: str) -> Array:
        if name not in self.columns and self.parent is not None:
            self.columns[name] = self.parent[name][self.index]
        values: Array = self.columns[name]
        return values

    @cached_property
    def count(self) -> int:
        """How many passes there are."""
        return len(self["tp"]) if self.index is None else len(self.index)

    @cached_property
    def decoding(self) -> Flags:
        """True where a pass decodes."""
        return np.asarray(self["phase"] == "decode")

    @cached_property
    def decode(self) -> Points:
        """Passes that decode."""
        return self.where(self.decoding)

    @cached_property
    def prefill(self) -> Points:
        """Passes that prefill."""
        return self.where(~self.decoding)

    def where(self, flags: Flags | bool) -> Points:  # noqa: FBT001 - a condition
        """Those of the passes for which a condition holds."""
        if np.all(flags):
            return self
        return Points({}, self, np.flatnonzero(np.broadcast_to(flags, self.count)))

    def taken(self, values: Array) -> Array:
        """Values of these passes, or of passes that these were taken from."""
        if len(values) == self.count or self.parent is None or self.index is None:
            return values
        return self.parent.taken(values)[self.index]


Value = Array | float | str


@dataclass(frozen=True)
class Part:
    """Rows of one kernel, one a pass."""

    points: Points
    texts: Mapping[str, str]
    numbers: Mapping[str, Array | float]

    def number(self, name: str) -> Array:
        """One number a row."""
        value = self.numbers[name]
        if isinstance(value, np.ndarray):
            return self.points.taken(value)
        return np.full(self.points.count, float(value))


def write_rows(
    points: Points, stage: str, kernel: str, repeat: Array | float, **columns: Value
) -> Part:
    """One row a point: `columns` are names, numbers of each point or one number for all."""
    texts = {"stage": stage, "kernel": kernel}
    numbers: dict[str, Array | float] = {"repeat_count": repeat}
    for name, value in columns.items():
        if isinstance(value, str):
            texts[name] = value
        else:
            numbers[name] = value
    return Part(points, texts, numbers)


def sheet_of(parts: Sequence[Part]) -> pl.DataFrame:
    """Rows one part after the other, columns `SHEET`."""
    parts = [part for part in parts if part.points.count]
    sizes = [part.points.count for part in parts]
    edges = list(itertools.accumulate(sizes, initial=0))
    columns: dict[str, pl.Series] = {}
    for name, kind in SHEET.items():
        if name == "point":
            points = [part.points["point"] for part in parts]
            columns[name] = pl.Series(np.concatenate(points) if points else [], dtype=kind)
        elif kind == pl.String:
            columns[name] = _texts([part.texts.get(name) for part in parts], sizes)
        else:
            columns[name] = _numbers(name, parts, edges)
    return pl.DataFrame([column.alias(name) for name, column in columns.items()])


def _texts(values: Sequence[str | None], sizes: Sequence[int]) -> pl.Series:
    labels = {label: code for code, label in enumerate(dict.fromkeys(values))}
    codes = np.repeat([labels[value] for value in values], sizes).astype(np.uint32)
    return pl.Series(list(labels), dtype=pl.String).gather(codes)


def _numbers(name: str, parts: Sequence[Part], edges: Sequence[int]) -> pl.Series:
    if not any(name in part.numbers for part in parts):
        return pl.Series([None], dtype=pl.Float64).new_from_index(0, edges[-1])
    found = np.full(edges[-1], np.nan)
    for part, start, end in zip(parts, edges, edges[1:], strict=False):
        value = part.numbers.get(name)
        if value is not None:
            found[start:end] = part.points.taken(value) if isinstance(value, np.ndarray) else value
    return pl.Series(found, nan_to_null=True)


def gemm(
    points: Points, stage: str, repeat: Array | float,
    size: tuple[Array | float, Array | float, Array | float], dtype: str,
) -> Part:  # fmt: skip
    """A dense matrix product of `size` = (m tokens, n columns, k inner)."""
    m, n, k = size
    return write_rows(points, stage, "gemm", repeat, m=m, n=n, k=k, dtype=dtype)


def per_layer(points: Points, layers: int) -> Array:
    """Runs of a kernel that each layer has once, at the pace of the fullest pipeline stage."""
    pp = points["pp"]
    return np.asarray(np.ceil(layers / pp) * pp)


def stated(points: Points, column: str, usual: float) -> Array:
    """What the routing policy says of each pass, else what is usual for the model."""
    return points[column] if column in points else np.full(points.count, float(usual))


def routed_ranks(points: Points, layout: ExpertLayout) -> Array:
    """Expert-parallel ranks that hold routed experts."""
    return np.asarray(np.maximum(points["moe_ep"] - layout.shared_ranks, 1.0))


def tokens(points: Points) -> Array:
    """Tokens of one data-parallel rank in a pass."""
    return points["batch"] * points["new_tokens"]
