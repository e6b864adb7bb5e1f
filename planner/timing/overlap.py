"""What of a pass nobody waits for, because something longer runs beside it.

Hidden seconds leave their rows, so that the parts of a pass still add up to it.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.timing import TIMES
from planner.timing.apart import turns_s

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
EXCHANGED = ("dispatch", "combine")
EXPERTS = ("experts", "permute")


def hide_exchange(
    timed: pl.DataFrame,
    beside: str,
    where: Flags | bool = True,  # noqa: FBT001, FBT002 - rows
) -> pl.DataFrame:
    """Keep of dispatch and combine what a stage of the same layer does not hide: max(e - s, 0).

    Sums over the ranks of one block wait for their operands and are never hidden.

    Args:
        timed: the timed work sheet.
        beside: the stage that runs meanwhile: `shared` experts, or `experts` where the exchange is
            part of their kernel (MC2).
        where: rows of passes that do so.
    """
    stages = EXPERTS if beside == "experts" else (beside,)
    return _hidden(timed, _travels(timed) & where, _at_stage(timed, *stages) & where)


def hide_shared(timed: pl.DataFrame) -> pl.DataFrame:
    """Shared experts on ranks of their own: a layer waits for the longer of them and the routed."""
    return _hidden(timed, _at_stage(timed, "shared"), _at_stage(timed, *EXPERTS))


def alternate_halves(timed: pl.DataFrame, split: pl.Series, layers: int) -> pl.DataFrame:
    """Two halves of a batch in turns: one exchanges while the other computes.

    A pass takes the longer of computation and exchange of both halves, and at its ends one layer
    of the shorter that nothing runs beside (DeepSeek-V3, arXiv:2412.19437, section 3.4).

    Args:
        timed: the timed work sheet of one half.
        split: by point, whether its batch was halved; whole ones stay as they are.
        layers: layers of a pass.
    """
    twice = split.to_numpy()[timed["point"].to_numpy()]
    runs = timed["repeat_count"] * pl.Series(np.where(twice, 2.0, 1.0))
    both = timed.with_columns(runs.alias("repeat_count"))
    travels = _travels(timed) & twice
    return _hidden(both, travels, ~travels & twice, 1 / (2 * max(layers, 1)))


def take_turns(
    timed: pl.DataFrame, points: pl.DataFrame, micro_batches: int, layers: int
) -> pl.DataFrame:
    """Attention and experts on devices of their own work on alternating micro-batches.

    Every row keeps its share of a round, so that rows add up to what `turns_s` says of the pass.

    Args:
        timed: the timed work sheet of one micro-batch.
        points: its passes, columns `POINT`.
        micro_batches: parts of a batch.
        layers: layers of a pass.
    """
    at = timed["point"].to_numpy()
    experts = _at_stage(timed, *EXPERTS)
    attention = ~experts & ~_travels(timed)
    found = []
    for name in TIMES:
        one, other, whole = (
            _sums(timed, name, rows, points.height) / layers
            for rows in (attention, experts, np.ones(len(at), dtype=bool))
        )
        taken = turns_s(one, other, whole, micro_batches, layers)
        factor = taken / np.maximum(layers * whole, 1e-30)
        found.append(pl.Series(name, timed[name].to_numpy() * factor[at]))
    return timed.with_columns(found)


def queue_experts(timed: pl.DataFrame) -> pl.DataFrame:
    """One expert's weights load while the one before computes (Edge-MoE, arXiv:2305.18691).

    The first load is waited for where computing is the longer; where loading is, the product's rows
    hold every load already, and the last expert's computation (shorter than a load) is left out.
    """
    product = (timed["kernel"] == "grouped_gemm").to_numpy()
    computes = product & (timed["bound_by"] == "compute").to_numpy()
    at = timed["point"].to_numpy()
    waits = np.bincount(at, computes) > 0
    first = _at_stage(timed, "experts") & (timed["kernel"] == "elementwise").to_numpy()
    gone = first & ~waits[at]
    return timed.with_columns(
        pl.Series(name, np.where(gone, 0.0, timed[name].to_numpy())) for name in TIMES
    )


def in_parts(points: pl.DataFrame, parts: int) -> pl.DataFrame:
    """Points of one part of each batch; a batch of fewer sequences stays whole."""
    split = pl.when(pl.col("batch") >= parts).then(pl.col("batch") / parts)
    return points.with_columns(split.otherwise(pl.col("batch")).alias("batch"))


def _travels(timed: pl.DataFrame) -> Flags:
    rows = pl.col("stage").is_in(EXCHANGED) & (pl.col("kernel") != "all_reduce")
    found: Flags = timed.select(rows).to_series().to_numpy()
    return found


def _at_stage(timed: pl.DataFrame, *stages: str) -> Flags:
    found: Flags = timed.select(pl.col("stage").is_in(stages)).to_series().to_numpy()
    return found


def _sums(timed: pl.DataFrame, name: str, rows: Flags, size: int = 0) -> Array:
    """Seconds of some rows by point."""
    spent = timed[name].to_numpy() * timed["repeat_count"].to_numpy() * rows
    return np.asarray(np.bincount(timed["point"].to_numpy(), spent, size), dtype=float)


def _hidden(
    timed: pl.DataFrame, rows: Flags, beside: Flags, end_share: float = 0.0
) -> pl.DataFrame:
    """Rows without the seconds that others of the same point hide; `end_share` of them stays."""
    at, found = timed["point"].to_numpy(), []
    for name in TIMES:
        own, other = _sums(timed, name, rows), _sums(timed, name, beside)
        seen = np.maximum(own - other, 0.0) + np.minimum(own, other) * end_share
        share = seen / np.where(own > 0, own, 1.0)
        seconds = timed[name].to_numpy()
        found.append(pl.Series(name, np.where(rows, seconds * share[at], seconds)))
    return timed.with_columns(found)
