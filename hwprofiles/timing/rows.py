"""The rows of one kernel family as arrays, and the work they are counted into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype

Array = NDArray[np.float64]
TIMES = ("low_s", "typical_s", "high_s")
TIMED: dict[str, type[pl.DataType]] = {
    "low_s": pl.Float64,
    "typical_s": pl.Float64,
    "high_s": pl.Float64,
    "bound_by": pl.String,
    "source": pl.String,
}
"""Columns that timing adds to a kernel row."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kernel family as arrays of equal length; nulls are NaN or given a default."""

    frame: pl.DataFrame

    def get(self, column: str, default: float | None = None) -> Array:
        """One column as floats.

        Raises:
            MoesaicError: `invalid` when the column is needed and holds nulls.
        """
        if column not in self.frame.columns:
            if default is None:
                raise MoesaicError("invalid", f"{self.kernel} needs {column}", f"/{column}")
            return np.full(self.frame.height, float(default))
        series = self.frame[column]
        if series.dtype != pl.Float64:
            series = series.cast(pl.Float64)
        missing = series.null_count()
        if missing and default is None:
            raise MoesaicError("invalid", f"{self.kernel} needs {column}", f"/{column}")
        if default is not None and missing == len(series):
            return np.full(len(series), float(default))
        values: Array = series.to_numpy()  # nulls become NaN; polars' own fill costs milliseconds
        if default is None or not missing:
            return values
        return np.where(np.isnan(values), default, values)

    @property
    def kernel(self) -> str:
        """Name of the family."""
        return str(self.frame["kernel"][0])

    def by_dtype(self, column: str, look: Callable[[str], float], default: str) -> Array:
        """Map a column of format names to numbers, once per distinct name."""
        series = self.frame[column]
        names = [default] if series.null_count() == len(series) else series.to_list()
        table = {name: float(look(name or default)) for name in set(names)}
        if len(table) == 1:
            return np.full(len(series), next(iter(table.values())))
        return np.array([table[name] for name in names], dtype=np.float64)

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
