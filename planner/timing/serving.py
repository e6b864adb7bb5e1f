"""Seconds of forward passes turned into TTFT, TPOT and throughput of a steady service.

Three columns of each quantity go side by side: low, typical and high are computed from the low,
typical and high seconds of the passes, so an interval is never made up afterwards.
"""

from __future__ import annotations

import polars as pl

from planner.candidates import LAYOUT

SIDES = ("low", "typical", "high")
KEY = tuple(LAYOUT)
SERVING: dict[str, type[pl.DataType]] = LAYOUT | {
    "role": pl.String,  # agg | prefill | decode
    "decode_point": pl.UInt32,
    "prefill_point": pl.UInt32,
    "batch": pl.Float64,  # sequences a data-parallel rank decodes (prefill role: prefills) at once
    "inflight": pl.Float64,  # sequences of a whole worker
    "total_bytes": pl.Float64,  # of the fullest device
} | {
    f"{name}_{side}": pl.Float64
    for name in ("ttft_s", "tpot_s", "request_rate")
    for side in SIDES
}  # fmt: skip
"""One candidate for one role. `request_rate` is requests per second of one worker."""


def serving_table(
    passes: pl.DataFrame, modes: tuple[str, ...], pair_by: tuple[str, ...] = KEY
) -> pl.DataFrame:
    """Combine priced passes into candidates for every role that the modes allow.

    Args:
        passes: columns `POINT`, `MEMORY`, `total_bytes` and `low_s`, `typical_s`, `high_s`.
        modes: `agg`, `disagg` or both.
        pair_by: columns in which an aggregated worker's prefill and decode pass agree.

    Returns:
        Columns `SERVING`, and those of `pair_by`.
    """
    prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
    roles = []
    if "agg" in modes:
        roles.append(_aggregated(_paired(prefill, decode, pair_by)))
    if "disagg" in modes:
        roles += [_prefill_pool(prefill), _decode_pool(decode)]
    columns = [*SERVING, *(c for c in pair_by if c not in SERVING)]
    return pl.concat([role.select(*columns) for role in roles])


def _seconds(side: str, phase: str = "") -> pl.Expr:
    return pl.col(f"{side}_s{phase}")


def _opposite(side: str) -> str:
    return {"low": "high", "high": "low"}.get(side, side)


def _inflight() -> pl.Expr:
    return pl.col("batch") * pl.col("dp") * pl.col("pp")


def _prefill_pool(prefill: pl.DataFrame) -> pl.DataFrame:
    """A worker that only prefills: TTFT is its pass, its rate one batch a stage time."""
    none = pl.lit(None, pl.Float64)
    return prefill.with_columns(
        pl.lit("prefill").alias("role"),
        pl.lit(None, pl.UInt32).alias("decode_point"),
        pl.col("point").alias("prefill_point"),
        _inflight().alias("inflight"),
        *(_seconds(side).alias(f"ttft_s_{side}") for side in SIDES),
        *(none.alias(f"tpot_s_{side}") for side in SIDES),
        *(
            (_inflight() / _seconds(_opposite(side))).alias(f"request_rate_{side}")
            for side in SIDES
        ),
    )


def _decode_pool(decode: pl.DataFrame) -> pl.DataFrame:
    """A worker that only decodes: TPOT is a step over its tokens, its rate Little's law."""
    tpot = {side: _seconds(side) / pl.col("step_tokens") for side in SIDES}
    none = pl.lit(None, pl.Float64)
    return decode.with_columns(
        pl.lit("decode").alias("role"),
        pl.col("point").alias("decode_point"),
        pl.lit(None, pl.UInt32).alias("prefill_point"),
        _inflight().alias("inflight"),
        *(none.alias(f"ttft_s_{side}") for side in SIDES),
        *(tpot[side].alias(f"tpot_s_{side}") for side in SIDES),
        *(
            (_inflight() / (pl.col("osl") * tpot[_opposite(side)])).alias(f"request_rate_{side}")
            for side in SIDES
        ),
    )


def _paired(prefill: pl.DataFrame, decode: pl.DataFrame, pair_by: tuple[str, ...]) -> pl.DataFrame:
    """Decode passes beside every prefill pass of the same worker that is no larger."""
    first = prefill.select(
        *pair_by, pl.col("point").alias("prefill_point"), pl.col("batch").alias("prefill_batch"),
        pl.col("activation_bytes").alias("prefill_activation_bytes"),
        *(_seconds(side).alias(f"{side}_s_prefill") for side in SIDES),
    )  # fmt: skip
    both = decode.join(first, on=list(pair_by), maintain_order="left")
    return both.filter(pl.col("prefill_batch") <= pl.col("batch").ceil())


def _aggregated(both: pl.DataFrame) -> pl.DataFrame:
    """A worker that does both: each request's prefill pass holds up everybody's decoding once.

    Between two tokens of one request, `batch / prefill batch` prefill passes fall into every `osl`
    steps. A new prompt waits for the pass in progress and for prompts before it (M/D/1, with the
    prefill share of the worker's time as its load).
    """
    grown = pl.max_horizontal(
        pl.col("prefill_activation_bytes") - pl.col("activation_bytes"), pl.lit(0.0)
    )
    passes = pl.col("batch") / pl.col("prefill_batch") / pl.col("osl")
    columns = []
    for side in SIDES:
        stolen = passes * _seconds(side, "_prefill")
        tpot = _seconds(side) / pl.col("step_tokens") + stolen
        load = stolen / tpot
        wait = _seconds(side) / 2 + load * _seconds(side, "_prefill") / (2 * (1 - load))
        columns += [tpot.alias(f"tpot_s_{side}"),
                    (_seconds(side, "_prefill") + wait).alias(f"ttft_s_{side}")]  # fmt: skip
    timed = both.with_columns(
        pl.lit("agg").alias("role"),
        pl.col("point").alias("decode_point"),
        _inflight().alias("inflight"),
        (pl.col("total_bytes") + grown).alias("total_bytes"),
        *columns,
    )
    return timed.with_columns(
        (
            pl.col("inflight")
            / (
                pl.col(f"ttft_s_{_opposite(side)}")
                + (pl.col("osl") - 1) * pl.col(f"tpot_s_{_opposite(side)}")
            )
        ).alias(f"request_rate_{side}")
        for side in SIDES
    )
