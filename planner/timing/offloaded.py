"""Seconds of a pass whose experts lie outside the device's memory: fetched, or computed there."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype
from hwprofiles.timing import TIMES
from planner.engines import Engine
from planner.moe_model import MoeModel
from planner.offload import Offload, fetch_bytes_per_s, offload_fit
from planner.parameters import expert_parameters
from planner.timing.step import time_sheet
from planner.work.resident import MISSED, RESIDENT
from planner.work.rows import Formats

Array = NDArray[np.float64]
BF16_BYTES = 2
CROSSINGS = 2
"""A token's activation goes to the host and its experts' sum comes back."""
CROSSING_S = 20e-6
"""Start of both copies of a layer and the wait for the host's threads (cudaLaunchHostFunc)."""


def time_offloaded(
    sheet: pl.DataFrame,
    points: pl.DataFrame,
    machine: tuple[Cluster, Engine],
    experts: tuple[Offload, MoeModel, Formats],
) -> pl.DataFrame:
    """Price a work sheet whose experts are not all resident.

    Args:
        sheet: columns `SHEET`.
        points: columns `POINT`, `LOAD`, `resident_share` and `missed_share`.
        machine: the device's cluster and the engine.
        experts: where experts lie, whose they are, how they are stored.

    Returns:
        As `time_sheet`, with stages `fetch` (waiting for storage) or `crossing` (to the host).
    """
    cluster, engine = machine
    offload, model, formats = experts
    if offload.host is not None:
        timed = _on_host(sheet, points, offload.host, (cluster, engine))
    else:
        timed = time_sheet(sheet, cluster, engine)
        rate = fetch_bytes_per_s(offload, cluster.device)
        if not rate > 0:
            raise MoesaicError("invalid", "storage needs a bandwidth above zero to fetch experts",
                               "/offload/storage_bytes_per_s")  # fmt: skip
    if offload.memory_step_s is not None:
        timed = _as_measured(timed, points, offload.memory_step_s - _host_s(engine, model))
    if offload.host is not None:
        return timed
    return _fetched(timed, points, offload, rate, (model, formats))


def _host_s(engine: Engine, model: MoeModel) -> float:
    return engine.step_overhead_s("decode", model.layer_count, 1.0)


def _as_measured(timed: pl.DataFrame, points: pl.DataFrame, kernels_s: float) -> pl.DataFrame:
    """Scale the kernels of decode passes so that they sum to what was measured in memory.

    Raises:
        MoesaicError: `invalid` where less was measured than the engine's host alone takes.
    """
    if kernels_s <= 0:
        raise MoesaicError(
            "invalid", "memory_step_s is below the engine's own host time", "/offload/memory_step_s"
        )
    spent = (pl.col("typical_s") * pl.col("repeat_count")).sum().over("point")
    decode = points.filter(phase="decode")["point"].implode()
    factor = pl.when(pl.col("point").is_in(decode)).then(kernels_s / spent).otherwise(1.0)
    return timed.with_columns(
        (pl.col("typical_s") * factor).alias(name) for name in TIMES
    ).with_columns(
        pl.when(pl.col("point").is_in(decode)).then(pl.lit("measured"))
        .otherwise(pl.col("source")).alias("source")
    )  # fmt: skip


def _fetched(
    timed: pl.DataFrame, points: pl.DataFrame, offload: Offload, rate: float,
    stored: tuple[MoeModel, Formats],
) -> pl.DataFrame:  # fmt: skip
    """Add a row a pass: what it waits for missed experts."""
    model, formats = stored
    if model.moe is None:
        return timed
    one = expert_parameters(model.moe, model.hidden) * dtype(formats.weights.routed).weight_bytes
    layers = len(model.moe_layers)
    each_s = one / points["moe_tp"].to_numpy() / rate + offload.storage_latency_s
    count = points[MISSED].to_numpy() * points["active_experts"].to_numpy() * layers
    fit = offload_fit()
    waits = waited_s(offload.waiting or fit.waiting, count * each_s, timed, points)
    ratios = dict(zip(TIMES, (fit.low_ratio, 1.0, fit.high_ratio), strict=True))
    return _with_rows(timed, points, "fetch", {n: waits * r for n, r in ratios.items()}, "memory")


def waited_s(form: str, fetch_s: Array, timed: pl.DataFrame, points: pl.DataFrame) -> Array:
    """Seconds that passes wait for experts, given how long fetching takes in all."""
    hidden = np.zeros_like(fetch_s)
    if form != "serial":
        rows = timed.filter(stage="attention") if form == "prefetch" else timed
        spent = rows["typical_s"].to_numpy() * rows["repeat_count"].to_numpy()
        size = int(points["point"].max() or 0) + 1  # type: ignore[arg-type]
        hidden = np.asarray(
            np.bincount(rows["point"].to_numpy(), spent, size)[points["point"]], dtype=np.float64
        )
    waits: Array = np.maximum(fetch_s - hidden, 0.0)
    return waits


def _on_host(
    sheet: pl.DataFrame, points: pl.DataFrame, host: Cluster, machine: tuple[Cluster, Engine]
) -> pl.DataFrame:
    """Resident experts on the device and the rest on the host, side by side: the longer counts."""
    cluster, engine = machine
    link = cluster.device.host_link_bytes_per_s
    if link is None:
        raise MoesaicError(
            "outside_evidence", f"{cluster.device.name} states no link to a host", "/offload/host"
        )
    routed = sheet.filter(stage="experts")
    away = _shared_out(routed, points, MISSED, float(host.device_count))
    away = away.with_columns(pl.col("dtype").replace(engine.host_formats))
    hosted = time_sheet(away, host, engine)
    device = time_sheet(sheet.filter(pl.col("stage") != "experts"), cluster, engine)
    kept = _shared_out(routed, points, RESIDENT, 1.0)
    if kept.height:
        hosted = _longer(hosted, time_sheet(kept, cluster, engine))
    crossed = _crossing_s(hosted, points, link.value * offload_fit().link_share)
    timed = pl.concat([device, hosted])
    return _with_rows(timed, points, "crossing", dict.fromkeys(TIMES, crossed), "link")


def _shared_out(
    routed: pl.DataFrame, points: pl.DataFrame, part: str, processors: float
) -> pl.DataFrame:
    """Expert rows with only a part of each token's experts, cut over processors."""
    taken = routed.join(points.select("point", pl.col(part).alias("_part")), on="point",
                        maintain_order="left")  # fmt: skip
    return taken.filter(pl.col("_part") > 0).with_columns(
        pl.col("top_k") * pl.col("_part"),
        pl.max_horizontal(pl.col("active_experts") * pl.col("_part"), 1.0).alias("active_experts"),
        (pl.col("moe_tp") * processors).alias("moe_tp"),
    ).drop("_part")  # fmt: skip


def _longer(hosted: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Of two sides that work at once, what the longer one adds to the other stays visible."""
    spent = kept.select("point", pl.col("typical_s").alias("_kept_s"))
    joined = hosted.join(spent, on="point", how="left", maintain_order="left")
    beyond = pl.max_horizontal(pl.col("_kept_s").fill_null(0.0) / pl.col("typical_s"), 1.0)
    return joined.with_columns((pl.col(name) * beyond) for name in TIMES).drop("_kept_s")


def _crossing_s(hosted: pl.DataFrame, points: pl.DataFrame, rate: float) -> Array:
    """Seconds in which activations cross to the host and back, all layers of each pass."""
    size = int(points["point"].max() or 0) + 1  # type: ignore[arg-type]
    moved = hosted["tokens"].to_numpy() * hosted["hidden"].to_numpy() * BF16_BYTES * CROSSINGS
    each = (moved / rate + CROSSING_S) * hosted["repeat_count"].to_numpy()
    summed = np.bincount(hosted["point"].to_numpy(), each, size)
    return np.asarray(summed[points["point"]], dtype=np.float64)


def with_prefix_fetch(timed: pl.DataFrame, sized: pl.DataFrame, rate: float) -> pl.DataFrame:
    """Add a row a prefill pass: cached prompt tokens come from a pool before the pass begins.

    Raises:
        MoesaicError: `invalid` for a rate of zero.
    """
    if not rate > 0:
        raise MoesaicError("invalid", "cached tokens need a rate above zero to be fetched",
                           "/prefix_bytes_per_s")  # fmt: skip
    fetching = sized.filter((pl.col("phase") == "prefill") & (pl.col("past_tokens") > 0))
    held = pl.col("kv_bytes") * pl.col("past_tokens") / pl.col("context_tokens")
    seconds = fetching.select(held).to_series().to_numpy() / rate
    return _with_rows(timed, fetching, "prefix_fetch", dict.fromkeys(TIMES, seconds), "link")


def _with_rows(
    timed: pl.DataFrame, points: pl.DataFrame, stage: str, seconds: dict[str, Array], bound: str
) -> pl.DataFrame:
    """One more row a pass."""
    added = points.select("point").with_columns(
        pl.lit(stage).alias("stage"), pl.lit("copy").alias("kernel"),
        pl.lit(1.0).alias("repeat_count"), pl.lit(bound).alias("bound_by"),
        pl.lit("modelled").alias("source"),
        *(pl.Series(name, values) for name, values in seconds.items()),
    )  # fmt: skip
    return pl.concat([timed, added], how="diagonal")
