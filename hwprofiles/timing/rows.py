"""The rows of one kernel family as arrays, and the work they are counted into."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype

Array = NDArray[np.float64]
Codes = NDArray[np.intp]
Made = TypeVar("Made")
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
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = frozenset(self.frame.columns)

    def kept(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What is made of the whole table once, under a name of the caller's."""
        if name not in self._kept:
            self._kept[name] = make()
        made: Made = self._kept[name]
        return made

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
                self._labels[name] = _coded(series)
        return self._labels[name]


MANY = 4096
"""Rows from which polars' own coding of texts pays for its start (0.2 ms a column)."""


def _coded(series: pl.Series) -> tuple[list[str | None], Codes]:
    """Distinct texts of a column, and which of them each row has."""
    if len(series) < MANY:
        texts = series.to_list()
        known = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        return list(known), np.fromiter(map(known.__getitem__, texts), np.intp, len(texts))
    labels: list[str | None] = series.drop_nulls().unique(maintain_order=True).to_list()
    places = series.cast(pl.Enum([label for label in labels if label is not None])).to_physical()
    if series.null_count():
        places, labels = places.cast(pl.UInt32).fill_null(len(labels)), [*labels, None]
    return labels, places.to_numpy().astype(np.intp)


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
    _read: dict[tuple[str, float | None], Array] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @cached_property
    def columns(self) -> Columns:
        """The frame's columns."""
        return self.shared or Columns(self.frame)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.frame.height if self.chosen is None else len(self.chosen)

    def get(self, column: str, default: float | None = None) -> Array:
        """One column as floats, which are for reading only: they are made once.

        Raises:
            MoesaicError: `invalid` when the column is needed and holds nulls.
        """
        asked = (column, default)
        if asked not in self._read:
            self._read[asked] = self._numbers(column, default)
        return self._read[asked]

    def _numbers(self, column: str, default: float | None) -> Array:
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
        picked = self._picked(codes)
        if len(picked) and (picked == picked[0]).all():
            return [labels[picked[0]]], np.zeros(len(picked), dtype=np.intp)
        used, back = np.unique(picked, return_inverse=True)
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
    tokens of a rank; in a collective, the other ranks."""
