"""The work sheet's schema, and the one way to write rows into it."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from hwprofiles.kernels import KERNEL_ROW
from planner.expert_layout import USUAL_LAYOUT, ExpertLayout
from planner.moe_model import LayerKind, WeightFormats

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


Value = pl.Expr | float | str


def write_rows(
    points: pl.DataFrame, stage: str, kernel: str, repeat: Value, **columns: Value
) -> pl.DataFrame:
    """One row a point: `columns` are numbers, names or expressions over the points' columns."""
    named = {"stage": stage, "kernel": kernel, "repeat_count": repeat, **columns}
    expressions = [
        (value if isinstance(value, pl.Expr) else pl.lit(value)).cast(SHEET[name]).alias(name)
        for name, value in named.items()
    ]
    return points.select("point", *expressions)


def gemm(
    points: pl.DataFrame, stage: str, repeat: Value, size: tuple[Value, Value, Value], dtype: str
) -> pl.DataFrame:
    """A dense matrix product of `size` = (m tokens, n columns, k inner)."""
    m, n, k = size
    return write_rows(points, stage, "gemm", repeat, m=m, n=n, k=k, dtype=dtype)


def per_layer(layers: int) -> pl.Expr:
    """Runs of a kernel that each layer has once, at the pace of the fullest pipeline stage."""
    pp = pl.col("pp")
    return (layers / pp).ceil() * pp


def stated(points: pl.DataFrame, column: str, usual: float) -> pl.Expr:
    """What the routing policy says of each pass, else what is usual for the model."""
    return pl.col(column) if column in points.columns else pl.lit(float(usual))


def routed_ranks(layout: ExpertLayout) -> pl.Expr:
    """Expert-parallel ranks that hold routed experts."""
    return pl.max_horizontal(pl.col("moe_ep") - layout.shared_ranks, pl.lit(1.0))


def tokens() -> pl.Expr:
    """Tokens of one data-parallel rank in a pass."""
    return pl.col("batch") * pl.col("new_tokens")
