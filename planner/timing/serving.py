"""Seconds of forward passes turned into TTFT, TPOT and throughput of a steady service.

Three columns of each quantity go side by side: low, typical and high are computed from the low,
typical and high seconds of the passes, so an interval is never made up afterwards.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from planner.candidates import LAYOUT
from planner.timing.engine_layer import Layer, Layers, Spread
from planner.timing.parts import Array, Load, held_up_share, tpot_parts, ttft_parts
from planner.work.attention import PROMPT

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
} | {"ttft_median_ratio": pl.Float64}  # fmt: skip
"""One candidate for one role. `request_rate` is requests per second of one worker;
`ttft_median_ratio`: median over mean TTFT of the requests of the usual test."""


def serving_table(
    passes: pl.DataFrame, modes: tuple[str, ...], pair_by: tuple[str, ...] = KEY,
    layer: Layers | Layer | None = None,
) -> pl.DataFrame:  # fmt: skip
    """Combine priced passes into candidates for every role that the modes allow.

    Args:
        passes: columns `POINT`, `MEMORY`, `total_bytes` and `low_s`, `typical_s`, `high_s`.
        modes: `agg`, `disagg` or both.
        pair_by: columns in which an aggregated worker's prefill and decode pass agree.
        layer: the fitted engine layer that weighs parts of TPOT and TTFT, or those of all
            questions; none: physics alone.

    Returns:
        Columns `SERVING`, and those of `pair_by`.
    """
    prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
    roles = []
    if "agg" in modes:
        both = paired(prefill, decode, pair_by)
        roles += _both_phases(both, Layers.of(layer))
    if "disagg" in modes:
        roles += [_prefill_pool(prefill), _decode_pool(decode)]
    columns = [*SERVING, *(c for c in pair_by if c not in SERVING)]
    one = pl.lit(1.0).alias("ttft_median_ratio")
    roles = [r if "ttft_median_ratio" in r.columns else r.with_columns(one) for r in roles]
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


def paired(prefill: pl.DataFrame, decode: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """Decode passes beside every prefill pass of the same worker that is no larger.

    Adds `held_up`, the share of a prompt's pass that falls on one decode step, and of the prefill
    pass `prefill_point`, `prefill_batch`, `isl`, `prefill_tp`, `prefill_launch_count` and seconds.
    """
    first = prefill.select(
        *by, pl.col("point").alias("prefill_point"), pl.col("batch").alias("prefill_batch"),
        (pl.col("new_tokens") + pl.col("past_tokens")).alias("isl"),
        pl.col("launch_count").alias("prefill_launch_count"),
        pl.col("activation_bytes").alias("prefill_activation_bytes"),
        unevenness(prefill).alias("prompt_spread"),
        *(pl.col(f"{name}_s").alias(f"{name}_s_prefill") for name in (*SIDES, "raw")),
    )  # fmt: skip
    both = decode.join(first, on=list(by), maintain_order="left")
    both = both.filter(pl.col("prefill_batch") <= pl.col("batch").ceil())
    held = held_up_share(*(both[name].to_numpy() for name in ("batch", "osl", "dp")))
    return both.with_columns(pl.Series("held_up", held) / pl.col("prefill_batch"))


def unevenness(prefill: pl.DataFrame) -> pl.Expr:
    """E[isl²] / E[isl]²: how much longer a prompt in progress is than the mean one."""
    if PROMPT not in prefill.columns:
        return pl.lit(1.0)
    return pl.col(PROMPT).fill_null(pl.col("new_tokens")) / pl.col("new_tokens")


def _both_phases(both: pl.DataFrame, layers: Layers) -> list[pl.DataFrame]:
    """Workers that do both, those of questions without a fitted layer apart."""
    fitted = layers.fitted(both)
    if fitted.all() and both.height:
        return [_fitted(both, layers)]
    if not fitted.any():
        return [_aggregated(both)]
    return [_fitted(both.filter(fitted), layers), _aggregated(both.filter(~fitted))]


def _fitted(both: pl.DataFrame, layers: Layers) -> pl.DataFrame:
    """A worker that does both, parts of TPOT and TTFT weighed by the fitted engine layer."""
    parts = tpot_parts(both)
    tpot = layers.weighed(both, parts, lambda a, p: p.total(a.fit.tpot.terms, a.labels))
    ttft, median = _ttft(both, layers)
    grown = pl.max_horizontal(
        pl.col("prefill_activation_bytes") - pl.col("activation_bytes"), pl.lit(0.0)
    )
    timed = both.with_columns(
        pl.lit("agg").alias("role"),
        pl.col("point").alias("decode_point"),
        _inflight().alias("inflight"),
        (pl.col("total_bytes") + grown).alias("total_bytes"),
        *_sides("tpot_s", tpot, (both, layers)),
        *_sides("ttft_s", ttft, (both, layers)),
        pl.Series("ttft_median_ratio", median / ttft),
    )
    return _with_rates(timed)


def _ttft(both: pl.DataFrame, layers: Layers) -> tuple[Array, Array]:
    """Mean and median time to first token."""
    load = load_of(both, layers)
    mean, median = (
        layers.weighed(both, ttft_parts(load, of), lambda a, p: p.total(a.fit.ttft.terms, a.labels))
        for of in (0.0, 1.0)
    )
    return mean, median


def _sides(name: str, typical: Array, of: tuple[pl.DataFrame, Layers]) -> list[pl.Series]:
    """The interval around a quantity, by the spread of each row's layer."""
    both, layers = of

    def spread(layer: Layer) -> Spread:
        return layer.tpot if name == "tpot_s" else layer.ttft

    factors: tuple[Array | float, ...] = (
        layers.numbers(both, lambda layer: float(np.exp(spread(layer).low_log_ratio))),
        1.0,
        layers.numbers(both, lambda layer: float(np.exp(spread(layer).high_log_ratio))),
    )
    return [
        pl.Series(f"{name}_{side}", typical * factor)
        for side, factor in zip(SIDES, factors, strict=True)
    ]


def _optional(both: pl.DataFrame, name: str) -> Array:
    """A column, or zeros where the passes have none."""
    if name not in both.columns:
        return np.zeros(both.height)
    values: Array = both[name].to_numpy()
    return values


def load_of(both: pl.DataFrame, layers: Layers) -> Load:
    """What a prompt meets, from decode passes beside their prefill pass (before the fitted layer).

    Args:
        both: what `paired` or `beside` gives.
        layers: whose engines' schedulers prompts meet.
    """
    get = {
        name: both[name].to_numpy()
        for name in ("batch", "dp", "pp", "isl", "osl", "raw_s_prefill", "prefill_batch",
                     "typical_s", "step_tokens", "prefill_launch_count")
    }  # fmt: skip
    get["open_loop"] = _optional(both, "open_loop")
    pooled = "prefill_ranks" in both.columns
    per_rank, ranks = get["batch"] * get["pp"], get["dp"]
    callers = per_rank * ranks
    if pooled:
        callers, ranks = both["callers"].to_numpy(), both["prefill_dp"].to_numpy()
        per_rank = callers / both["prefill_ranks"].to_numpy()
    prompt_s = get["raw_s_prefill"] / get["prefill_batch"]
    step_s = get["typical_s"] / get["step_tokens"]
    prompts_s = get["batch"] * prompt_s
    chunk_tokens = layers.numbers(both, lambda layer: layer.chunk_tokens)
    return Load(
        callers=callers, per_rank=per_rank, isl=get["isl"], osl=get["osl"],
        poll_passes=_poll_passes(callers, both, layers),
        prompt_s=prompt_s, step_s=step_s, launches=get["prefill_launch_count"],
        ranks=ranks, pooled=np.full_like(per_rank, float(pooled)),
        rides=np.zeros_like(per_rank) if pooled else np.minimum(get["isl"] / chunk_tokens, 1.0),
        busy=prompts_s / (prompts_s + get["osl"] * step_s),
        open_loop=get["open_loop"],
        uneven=both["prompt_spread"].to_numpy(),
    )  # fmt: skip


def _poll_passes(callers: Array, both: pl.DataFrame, layers: Layers) -> Array:
    """Passes from one look for new requests to the next; 0: every pass looks."""
    passes, places = np.zeros_like(callers), layers.places(both)
    for number, layer in enumerate(layers.layers):
        for poll in layer.polls if layer else ():
            passes[(places == number) & (callers >= poll.callers)] = poll.passes
    return passes


def beside(prefill: pl.DataFrame, decode: pl.DataFrame, pools: pl.DataFrame) -> pl.DataFrame:
    """Decode passes beside the prefill pass of another pool that feeds them.

    Args:
        prefill: priced passes with `line`.
        decode: priced passes with `line`.
        pools: `line`, `callers` (requests in flight) and `prefill_workers`.
    """
    first = prefill.select(
        "line", pl.col("batch").alias("prefill_batch"), pl.col("dp").alias("prefill_dp"),
        (pl.col("new_tokens") + pl.col("past_tokens")).alias("isl"),
        pl.col("launch_count").alias("prefill_launch_count"),
        unevenness(prefill).alias("prompt_spread"),
        *(pl.col(f"{name}_s").alias(f"{name}_s_prefill") for name in (*SIDES, "raw")),
    )  # fmt: skip
    both = decode.join(first, on="line", maintain_order="left")
    return both.join(pools, on="line", maintain_order="left").with_columns(
        pl.lit(0.0).alias("held_up"),
        (pl.col("prefill_dp") * pl.col("prefill_workers")).alias("prefill_ranks"),
    )


def pool_ttft(both: pl.DataFrame, layers: Layers) -> pl.DataFrame:
    """TTFT of disaggregated lines under their load, by line and side (`beside` makes `both`).

    Returns:
        Columns `line`, `ttft_s_low`, `ttft_s_typical`, `ttft_s_high` and `ttft_median_ratio` of
        the lines whose engine and machine were fitted on.
    """
    known = both.filter(layers.fitted(both))
    ttft, median = _ttft(known, layers)
    ratio = pl.Series("ttft_median_ratio", median / ttft)
    return pl.DataFrame([known["line"], *_sides("ttft_s", ttft, (known, layers)), ratio])


def _aggregated(both: pl.DataFrame) -> pl.DataFrame:
    """A worker that does both: each request's prefill pass holds up everybody's decoding once.

    Between two tokens of one request, `batch / prefill batch - 1` prefill passes of others fall
    into every `osl` steps. A new prompt waits for the pass in progress and for prompts before it
    (M/G/1, Pollaczek and Khinchine, with the prefill share of the worker's time as its load).
    """
    grown = pl.max_horizontal(
        pl.col("prefill_activation_bytes") - pl.col("activation_bytes"), pl.lit(0.0)
    )
    others = pl.max_horizontal(pl.col("batch") - pl.col("prefill_batch"), 0.0)
    passes = others / pl.col("prefill_batch") / pl.col("osl")
    columns = []
    for side in SIDES:
        stolen = passes * _seconds(side, "_prefill")
        tpot = _seconds(side) / pl.col("step_tokens") + stolen
        load = stolen / tpot
        served = _seconds(side, "_prefill") * pl.col("prompt_spread")
        wait = _seconds(side) / 2 + load * served / (2 * (1 - load))
        columns += [tpot.alias(f"tpot_s_{side}"),
                    (_seconds(side, "_prefill") + wait).alias(f"ttft_s_{side}")]  # fmt: skip
    timed = both.with_columns(
        pl.lit("agg").alias("role"),
        pl.col("point").alias("decode_point"),
        _inflight().alias("inflight"),
        (pl.col("total_bytes") + grown).alias("total_bytes"),
        *columns,
    )
    return _with_rates(timed)


def _with_rates(timed: pl.DataFrame) -> pl.DataFrame:
    """Requests per second of a closed loop: callers over the time of one request (Little's law)."""
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
