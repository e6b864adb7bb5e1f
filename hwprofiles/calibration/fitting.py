"""Measurements to efficiency curves, fitted with the pricing rules, judged on held-out shapes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.efficiency import Band, Curves, EfficiencyCurve
from hwprofiles.errors import MoesaicError
from hwprofiles.timing.rows import Rows, Work
from hwprofiles.timing.rules import COUNTS, timed
from hwprofiles.units import Ratio

Array = NDArray[np.float64]
FOLDS = 5
LEAST_ROWS = 4
"""Fewer rows than this say nothing about four constants."""
SHAPE: dict[str, tuple[str, ...]] = {
    "gemm": ("n", "k", "dtype"),
    "grouped_gemm": ("hidden", "inter", "experts", "dtype"),
    "router": ("hidden", "experts", "top_k", "dtype"),
    "attention_prefill": ("heads", "kv_heads", "head_dim", "window"),
    "attention_decode": ("heads", "kv_heads", "head_dim", "window"),
    "mla_prefill": ("heads",),
    "mla_decode": ("heads",),
    "moe_dispatch": ("devices", "nodes", "hidden", "top_k", "experts"),
    "moe_combine": ("devices", "nodes", "hidden", "top_k", "experts"),
    **dict.fromkeys(
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"), ("message_bytes",)
    ),
}
"""What makes a shape that is held out as a whole; other families hold out single sizes."""


@dataclass(frozen=True)
class Constants:
    """The fitted constants of one family, before they get their band."""

    compute_ratio: float = 0.6
    memory_ratio: float = 0.6
    link_ratio: float = 0.6
    fixed_s: float = 1e-6
    half_rows_count: float = 1.0
    token_s: float = 0.0
    """Collectives: what each further rank adds where ranks share cores."""

    def curve(self, time: tuple[float, float] | None = None) -> EfficiencyCurve:
        """The curve; `time`: low and high seconds as parts of the typical ones."""

        def band(share: float) -> Band:
            return Band(low=share, typical=share, high=share)

        return EfficiencyCurve(
            compute=band(self.compute_ratio),
            memory=band(self.memory_ratio),
            link=band(self.link_ratio),
            fixed_s=self.fixed_s,
            half_rows=self.half_rows_count,
            token_s=self.token_s,
            time=None if time is None else Band(low=time[0], typical=1.0, high=time[1]),
        )


LIMITS: dict[str, tuple[float, float]] = {
    "compute_ratio": (1e-4, 1.0),
    "memory_ratio": (1e-4, 1.2),
    "link_ratio": (1e-3, 1.2),
    "fixed_s": (1e-8, 1.0),
    "half_rows_count": (1e-3, 1e4),
    "token_s": (1e-8, 1.0),
}
STEPS = (8.0, 3.0, 1.6, 1.2, 1.07, 1.02, 1.006)


class FamilyFit(Document):
    """How well one family's curve prices shapes it was not fitted on."""

    family: str
    dtype: str
    rows_count: int
    shapes_count: int
    error_median_ratio: Ratio
    """Median of |predicted / measured - 1| over rows of held-out shapes."""
    error_p90_ratio: Ratio
    coverage_ratio: Ratio
    """Share of held-out rows inside low to high; 0.8 is meant."""
    bounds: dict[str, int]
    """Rows by what bounds them; a constant that bounds no row keeps its starting value."""


@dataclass(frozen=True)
class Fitted:
    """Curves of one format, and how well each family does."""

    curves: Curves
    families: tuple[FamilyFit, ...]


def part_of(work: Work, chosen: NDArray[np.bool_]) -> Work:
    """The work of some rows."""

    def cut(values: Array | None) -> Array | None:
        return None if values is None else values[chosen]

    return Work(
        work.compute_s[chosen], work.memory_s[chosen], cut(work.wire_s), cut(work.hops_s),
        cut(work.rows_count),
    )  # fmt: skip


def fit_curves(table: pl.DataFrame, cluster: Cluster, dtype: str | None = None) -> Fitted:
    """Fit one curve a family from trusted measurements.

    Args:
        table: columns of `MEASUREMENT`, quarantine already left out.
        cluster: the machine the rows were measured on.
        dtype: take rows of this format only; copies and elementwise rows have none and stay.

    Raises:
        MoesaicError: `outside_evidence` when no family has enough rows.
    """
    families: dict[str, EfficiencyCurve] = {}
    fits = []
    rows = table if dtype is None else table.filter(
        pl.col("dtype").is_null() | (pl.col("dtype") == dtype)
    )  # fmt: skip
    for (kernel,), part in rows.group_by("kernel", maintain_order=True):
        if part.height >= LEAST_ROWS and str(kernel) in COUNTS:
            curve, fit = fit_family(str(kernel), part, cluster)
            families[str(kernel)] = curve
            fits.append(fit)
    if not families:
        raise MoesaicError(
            "outside_evidence",
            f"{table.height} trusted rows are too few to fit any family; each needs {LEAST_ROWS}",
        )
    curves = Curves(
        name=f"{cluster.device.name}-measured",
        source=f"{rows.height} rows measured on {cluster.device.title}",
        date=datetime.datetime.now(datetime.UTC).date(),
        certainty="measured",
        families=families,
    )
    return Fitted(curves, tuple(fits))


def fit_family(
    kernel: str, rows: pl.DataFrame, cluster: Cluster
) -> tuple[EfficiencyCurve, FamilyFit]:
    """Fit one family and judge it by leaving out whole shapes."""
    measured = rows["median_s"].to_numpy()
    work = COUNTS[kernel](Rows(rows), cluster)
    folds = shape_folds(kernel, rows)
    ratios = np.empty(rows.height)
    for fold in range(folds.max() + 1):
        out = folds == fold
        constants = fit_constants(part_of(work, ~out), measured[~out])
        ratios[out] = measured[out] / timed(part_of(work, out), constants.curve())[0][1]
    curve = fit_constants(work, measured).curve(interval(ratios))
    errors = np.abs(1 / ratios - 1)
    _, bounds = timed(work, curve)
    names, counts = np.unique(bounds, return_counts=True)
    return curve, FamilyFit(
        family=kernel,
        dtype=", ".join(sorted(rows["dtype"].drop_nulls().unique())),
        rows_count=rows.height,
        shapes_count=int(rows.select(_shape_columns(kernel)).n_unique()),
        error_median_ratio=float(np.median(errors)),
        error_p90_ratio=float(np.quantile(errors, 0.9)),
        coverage_ratio=coverage(ratios, folds),
        bounds={str(n): int(c) for n, c in zip(names, counts, strict=True)},
    )


def interval(ratios: Array) -> tuple[float, float]:
    """Parts of the predicted seconds that hold the next row 8 times in 10: (low, high).

    Split conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018): of n held-out
    ratios the (n + 1)/10 th smallest and largest, which quantiles of few rows fall short of.

    Args:
        ratios: measured over predicted of held-out rows.
    """
    ordered, count = np.sort(ratios), len(ratios)
    rank = max(1, math.floor((count + 1) * OUTSIDE))
    return min(1.0, float(ordered[rank - 1])), max(1.0, float(ordered[count - rank]))


OUTSIDE = 0.1
"""Share of rows that may lie below an interval, and above."""


def coverage(ratios: Array, groups: NDArray[Any]) -> float:
    """Share of rows inside the interval that the rows of all other groups give."""
    inside = 0
    for group in np.unique(groups):
        low, high = interval(ratios[groups != group])
        own = ratios[groups == group]
        inside += int(np.count_nonzero((own >= low) & (own <= high)))
    return inside / ratios.size


def _shape_columns(kernel: str) -> list[str]:
    return list(SHAPE.get(kernel, ("bytes", "message_bytes", "devices", "m", "n", "k")))


def shape_folds(kernel: str, rows: pl.DataFrame) -> NDArray[np.int64]:
    """Fold of each row; rows of one shape share a fold, so that no shape is known and judged."""
    shapes = rows.select(
        pl.struct(_shape_columns(kernel)).rank("dense").cast(pl.Int64).alias("shape")
    )["shape"].to_numpy() - 1  # fmt: skip
    count = int(shapes.max()) + 1
    # Golden-ratio steps spread neighbouring sizes over the folds.
    order = np.argsort(np.argsort((np.arange(count) * 0.6180339887498949) % 1))
    folds: NDArray[np.int64] = (order % min(FOLDS, count)).astype(np.int64)[shapes]
    return folds


def fit_constants(work: Work, measured: Array) -> Constants:
    """Find the constants with the least mean |log(predicted / measured)| by coordinate search.

    Absolute logarithms, so that a few odd rows do not pull and 2x and 1/2x weigh the same.
    """
    wanted = np.log(measured)

    def loss(constants: Constants) -> float:
        predicted = timed(work, constants.curve())[0][1]
        return float(np.mean(np.abs(np.log(predicted) - wanted)))

    start = Constants(fixed_s=float(measured.min()) / 2)
    candidates = [
        replace(start, compute_ratio=c, memory_ratio=m, link_ratio=m, fixed_s=start.fixed_s * f)
        for c in (0.1, 0.5, 0.9)
        for m in (0.1, 0.5, 0.9)
        for f in (0.1, 1.0)
    ]
    best = min(candidates, key=loss)
    return _descend(best, loss)


def _descend(best: Constants, loss: Callable[[Constants], float]) -> Constants:
    least = loss(best)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name in LIMITS:
                for factor in (step, 1 / step):
                    trial = _moved(best, name, factor)
                    value = loss(trial)
                    if value < least * (1 - 1e-6):
                        best, least, improved = trial, value, True
    return best


def _moved(constants: Constants, name: str, factor: float) -> Constants:
    low, high = LIMITS[name]
    value = min(high, max(low, getattr(constants, name) * factor))
    moved: Constants = replace(constants, **{name: value})
    return moved
