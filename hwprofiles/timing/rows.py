"""The rows of one kernel family as arrays, and the work they are counted into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype

Array = NDArray[np.float64]
Codes = NDArray[np.intp]
TIMES = ("low_s", "typical_s", "high_s")
TIMED: dict[str, type[pl.DataType]] = {
    "low_s": pl.Float64,
    "typical_s": pl.Float64,
    "high_s": pl.Float64,
    "bound_by": pl.String,
    "source": pl.String,
}
"""Columns that timing adds to a kernel row."""


@dataclass
class Columns:
    """A table's columns as arrays, each made once however many groups of rows read it."""

    frame: pl.DataFrame
    _numbers: dict[str, Array] = field(default_factory=dict)
    _labels: dict[str, tuple[list[str | None], Codes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = frozenset(self.frame.columns)

    def numbers(self, name: str) -> Array:
        """A column as floats; nulls become NaN (polars' own fill costs milliseconds a call)."""
        if name not in self._numbers:
            series = self.frame[name]
            series = series if series.dtype == pl.Float64 else series.cast(pl.Float64)
            self._numbers[name] = series.to_numpy()
        return self._numbers[name]

    def labels(self, name: str) -> tuple[list[str | None], Codes]:
        """A column's distinct texts (none for null), and which of them each row has."""
        if name not in self._labels:
            height = self.frame.height
            series = self.frame[name] if name in self.names else None
            if series is None or series.null_count() == height:
                self._labels[name] = [None], np.zeros(height, dtype=np.intp)
            else:
                texts = series.to_list()
                known = {text: code for code, text in enumerate(dict.fromkeys(texts))}
                codes = np.fromiter(map(known.__getitem__, texts), np.intp, height)
                self._labels[name] = list(known), codes
        return self._labels[name]


@dataclass(frozen=True)
class Rows:
    """The rows of one kernel family as arrays of equal length; nulls are NaN or given a default."""

    frame: pl.DataFrame
    chosen: Codes | None = None
    """Numbers of the rows that are meant; none: all."""
    shared: Columns | None = None
    """The frame's columns, where other groups of its rows read them, too."""
    stated: Mapping[str, Array] = field(default_factory=dict)
    """Numbers that stand in for a column's."""
    names: Mapping[str, str | None] = field(default_factory=dict)
    """Texts that stand in for a column's, the same in every row."""

    @cached_property
    def columns(self) -> Columns:
        """The frame's columns."""
        return self.shared or Columns(self.frame)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.frame.height if self.chosen is None else len(self.chosen)

    def get(self, column: str, default: float | None = None) -> Array:
        """One column as floats.

        Raises:
            MoesaicError: `invalid` when the column is needed and holds nulls.
        """
        if column in self.stated:
            values = self.stated[column]
        elif column in self.columns.names:
            values = self._picked(self.columns.numbers(column))
        elif default is None:
            raise MoesaicError("invalid", f"{self.kernel} needs {column}", f"/{column}")
        else:
            return np.full(self.count, float(default))
        missing = np.isnan(values)
        if not missing.any():
            return values
        if default is None:
            raise MoesaicError("invalid", f"{self.kernel} needs {column}", f"/{column}")
        return np.where(missing, default, values)

    def _picked(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.chosen is None else values[self.chosen]

    @property
    def kernel(self) -> str:
        """Name of the family."""
        return str(self.frame["kernel"][0 if self.chosen is None else int(self.chosen[0])])

    def texts(self, column: str) -> tuple[list[str | None], Codes]:
        """A column's distinct texts, and which of them each row has."""
        if column in self.names:
            return [self.names[column]], np.zeros(self.count, dtype=np.intp)
        labels, codes = self.columns.labels(column)
        if len(labels) == 1 or self.chosen is None:
            return labels, self._picked(codes)
        used, back = np.unique(self._picked(codes), return_inverse=True)
        return [labels[code] for code in used], back

    def by_dtype(self, column: str, look: Callable[[str], float], default: str) -> Array:
        """Map a column of format names to numbers, once per distinct name."""
        labels, codes = self.texts(column)
        table = np.array([float(look(name or default)) for name in labels])
        return table[codes] if len(labels) > 1 else np.full(len(codes), table[0])

    def peaks(self, cluster: Cluster) -> Array:
        """Peak FLOP/s of the device in each row's format.

        Raises:
            MoesaicError: `outside_evidence` when no source states that peak.
        """
        return self.by_dtype("dtype", lambda name: cluster.device.peak(dtype(name).compute), "bf16")

    def activation(self, column: str = "dtype") -> Array:
        """Bytes of one activation in each row's format."""
        return self.by_dtype(column, lambda name: dtype(name).activation_bytes, "bf16")

    def weight(self) -> Array:
        """Bytes of one weight in each row's format."""
        return self.by_dtype("dtype", lambda name: dtype(name).weight_bytes, "bf16")


@dataclass(frozen=True)
class Work:
    """What rows must do, in seconds at the stated peaks; arrays of equal length."""

    compute_s: Array
    memory_s: Array
    wire_s: Array | None = None
    """Set for collectives and exchanges, which cross links instead of computing."""
    hops_s: Array | None = None
    """Latency of the links crossed."""
    rows_count: Array | None = None
    """Rows of the left operand, where small ones fall below the arithmetic ceiling; in an exchange,
    tokens of a rank."""
