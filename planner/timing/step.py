"""A timed sheet summed to seconds of one forward pass, and to shares by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.kernels import DTYPES
from hwprofiles.timing import TIMES
from hwprofiles.timing.answer import Answers, Asked, fill
from hwprofiles.timing.rows import Columns
from planner.engines import Engine, Phase
from planner.quantities import Source, StageShare
from planner.work.rows import Array, Codes, Points

STEP: dict[str, type[pl.DataType]] = {
    "point": pl.UInt32,
    "low_s": pl.Float64,
    "typical_s": pl.Float64,
    "high_s": pl.Float64,
    "host_s": pl.Float64,  # the engine's own part, in each of the three
    "launch_count": pl.Float64,  # kernels of the pass, conversions to 8 or 4 bits included
    "experts_s": pl.Float64,  # parts of typical_s, as the fitted engine layer weighs them
    "attention_s": pl.Float64,
    "exchange_s": pl.Float64,
    "dense_s": pl.Float64,
    "other_s": pl.Float64,
}
"""Seconds of one forward pass through all layers, host work included."""
PART_OF = {
    "experts": "experts", "attention": "attention", "dispatch": "exchange", "combine": "exchange",
    "all_reduce": "exchange", "reduce_scatter": "exchange", "all_gather": "exchange",
    "permute": "experts", "dense": "dense", "shared": "dense", "projection": "dense",
}  # fmt: skip
"""Stage: part of a pass; stages not named here are `other`."""
HOST = "host"
"""The stage under which the engine's own time is shown."""


def time_sheet(sheet: pl.DataFrame, cluster: Cluster, engine: Engine) -> pl.DataFrame:
    """Price every row of a work sheet; equal rows are priced once.

    Returns:
        The sheet with `low_s`, `typical_s`, `high_s` of one run, `bound_by` and `source`.
    """
    return time_sheets(sheet, [(cluster, engine.name)], np.zeros(sheet.height, dtype=np.intp))


def time_sheets(
    sheet: pl.DataFrame, machines: Sequence[tuple[Cluster, str]], of: Codes
) -> pl.DataFrame:
    """Price a work sheet whose rows run on several machines, as `time_sheet` does on one.

    Args:
        sheet: columns `SHEET`.
        machines: clusters, and the engine whose kernels run there.
        of: which of them each row runs on.
    """
    half = np.array([_half_only(cluster) for cluster, _ in machines])
    if half.any():  # what is kept in 16 bits runs in the other kind
        dtype, there = pl.col("dtype"), pl.Series(half[of])
        other = pl.when(there & (dtype == "bf16")).then(pl.lit("fp16")).otherwise(dtype)
        sheet = sheet.with_columns(other.alias("dtype"))
    keys = [c for c in sheet.columns if c not in ("point", "stage", "repeat_count")]
    used = [c for c in keys if sheet[c].null_count() < sheet.height]
    # Rows of equal hash are equal rows: two others of 100,000 share one once in 10^9 sheets.
    marks = sheet.select(*used, pl.Series("machine", of)).hash_rows().to_numpy()
    _, first, where = np.unique(marks, return_index=True, return_inverse=True)
    order = np.argsort(first)  # rows keep the order in which they first appear
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # A pass sums dozens of kernels: one far outside the measured sizes widens the interval.
    kept = first[order]
    columns, answers = Columns(sheet.select(keys)[kept]), Answers.of(len(kept))
    for number, (cluster, backend) in enumerate(machines):
        chosen = np.flatnonzero(of[kept] == number)
        fill(answers, columns, Asked(cluster, backend, extrapolate=True), chosen)
    timed = pl.DataFrame(answers.columns())
    return sheet.hstack(timed[place[where.reshape(-1)]])


def _half_only(cluster: Cluster) -> bool:
    peaks = cluster.device.peak_flop_per_s
    return "bf16" not in peaks and "fp16" in peaks


def step_seconds(timed: pl.DataFrame, points: pl.DataFrame, host_s: Array) -> pl.DataFrame:
    """Sum rows to passes, columns `STEP`, one row a point in the points' order.

    Args:
        timed: the timed work sheet.
        points: the passes.
        host_s: what the engine's host adds to each (`host_seconds`).
    """
    # Summed row after row: a threaded group_by adds in another order each time, and the last bit of
    # an answer would change from run to run.
    at = timed["point"].to_numpy()
    size = int(points["point"].max() or 0) + 1  # type: ignore[arg-type]
    runs = timed["repeat_count"].to_numpy()
    part = timed["stage"].replace_strict(PART_OF, default="other")
    weights = {name: timed[name].to_numpy() * runs for name in TIMES}
    weights["launch_count"] = runs * (1 + timed.select(_converts()).to_series().to_numpy())
    for name in ("experts", "attention", "exchange", "dense", "other"):
        weights[f"{name}_s"] = weights["typical_s"] * (part == name).to_numpy()
    sums = [
        pl.Series(name, np.bincount(at, weight, size)[points["point"]])
        for name, weight in weights.items()
    ]
    host = pl.Series("host_s", host_s)
    return points.with_columns(*sums, host).select(
        "point", *(pl.col(name) + pl.col("host_s") for name in TIMES), *list(STEP)[4:]
    )


def _converts() -> pl.Expr:
    """One where a matrix product reads 8- or 4-bit activations: a kernel makes them first."""
    narrow = [name for name, kind in DTYPES.items() if kind.compute in ("fp8", "fp4", "int8")]
    product = pl.col("kernel").is_in(["gemm", "grouped_gemm"]) & pl.col("dtype").is_in(narrow)
    return product.cast(pl.Float64)


def host_seconds(points: Points, engine: Engine, layers: int) -> Array:
    """Seconds an engine's host adds to each pass: base, layers, sequences."""
    phases: tuple[Phase, Phase] = ("decode", "prefill")
    decode, prefill = (
        engine.step_overhead_s(phase, layers)
        + points["batch"] * engine.overhead[phase].per_sequence_s.value
        for phase in phases
    )
    return np.where(points.decoding, decode, prefill)


@dataclass(frozen=True)
class Stages:
    """Where passes spend their time, one row for each pass and stage; the host is not among them.

    Rows of a pass stand together, the longest stage first.
    """

    point: Codes
    stage: list[str]
    seconds_s: Array
    """Before the fitted engine layer."""
    bound_by: list[str]
    source: list[str]

    def rows_of(self, points: Codes) -> list[slice]:
        """The rows of each pass."""
        starts = np.searchsorted(self.point, points).tolist()
        ends = np.searchsorted(self.point, points, side="right").tolist()
        return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def stages_of(timed: pl.DataFrame, points: Codes) -> Stages:
    """Sum a timed sheet's rows to the stages of the passes wanted.

    A stage is bound by, and as certain as, the longest of its rows.
    """
    columns = Columns(timed)
    at = timed["point"].to_numpy().astype(np.intp)
    wanted = np.zeros(int(max(at.max(initial=0), np.max(points, initial=0))) + 1, dtype=bool)
    wanted[points] = True
    rows = np.flatnonzero(wanted[at])
    names, stage = columns.labels("stage")
    ordered = np.argsort(np.argsort([str(name) for name in names]))[stage]
    spent = columns.numbers("typical_s") * columns.numbers("repeat_count")
    rows = rows[np.lexsort((ordered[rows], -spent[rows], at[rows]))]
    both = at[rows] * len(names) + ordered[rows]
    known, first, back = np.unique(both, return_index=True, return_inverse=True)
    total = np.bincount(back.reshape(-1), spent[rows], len(known))
    order = np.lexsort((known % len(names), -total, known // len(names)))
    longest = rows[first[order]]
    texts = [
        [str(labels[code]) for code in codes[longest].tolist()]
        for labels, codes in (columns.labels(name) for name in ("stage", "bound_by", "source"))
    ]
    return Stages(at[longest], texts[0], np.asarray(total[order], float), texts[1], texts[2])


def stage_shares(
    timed: pl.DataFrame, passes: pl.DataFrame, points: Iterable[int]
) -> dict[int, tuple[StageShare, ...]]:
    """Where passes spend their time, the longest stage first, the engine's host last.

    Args:
        timed: the timed work sheet.
        passes: columns `point`, `host_s`, `raw_s`, `typical_s`; a fitted engine layer between the
            last two weighs every stage alike, so that stages add up to the pass.
        points: the passes wanted.
    """
    wanted = np.array(sorted(set(points)), dtype=np.intp)
    known = passes.filter(pl.col("point").is_in(wanted.tolist())).sort("point")
    asked = timed.filter(pl.col("point").is_in(wanted.tolist()))
    rows = share_rows(stages_of(asked, wanted), known)
    return {
        point: tuple(StageShare.model_construct(**row) for row in found)
        for point, found in zip(wanted.tolist(), rows, strict=True)
    }


def share_rows(stages: Stages, passes: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """The stages of each pass as plain data of `StageShare`; arguments as those of `stage_shares`.

    Args:
        stages: what `stages_of` gives.
        passes: columns `point`, `host_s`, `raw_s`, `typical_s` of the passes wanted.
    """
    host, raw = passes["host_s"].to_numpy(), passes["raw_s"].to_numpy()
    fitted = passes["typical_s"].to_numpy() / raw
    points = passes["point"].to_numpy().astype(np.intp)
    slices = stages.rows_of(points)
    sizes = [part.stop - part.start for part in slices]
    place = np.repeat(np.arange(len(points)), sizes)
    rows = np.concatenate([np.arange(p.start, p.stop) for p in slices]) if sizes else place
    seconds = (stages.seconds_s[rows] * fitted[place]).tolist()
    shares = (stages.seconds_s[rows] / raw[place]).tolist()
    written = [
        {"stage": stages.stage[row], "seconds_s": spent, "share_ratio": share,
         "bound_by": stages.bound_by[row], "source": stages.source[row]}
        for row, spent, share in zip(rows.tolist(), seconds, shares, strict=True)
    ]  # fmt: skip
    found, start = [], 0
    own = zip(sizes, (host * fitted).tolist(), (host / raw).tolist(), strict=True)
    for size, spent, share in own:
        last = {"stage": HOST, "seconds_s": spent, "share_ratio": share, "bound_by": "latency",
                "source": "assumed"}  # fmt: skip
        found.append([*written[start : start + size], last])
        start += size
    return found


SOURCE_ORDER: tuple[Source, ...] = ("measured", "simulated", "calibrated", "modelled", "assumed")


SMALL_SHARE = 0.1
"""Parts that together take less of the time do not decide what a sum is called."""


def weakest_source(timed: pl.DataFrame) -> Source:
    """A sum is as certain as its least certain part, small parts (a tenth in all) apart."""
    return weakest_sources(timed, np.zeros(timed.height, dtype=np.intp), 1)[0]


def weakest_sources(timed: pl.DataFrame, of: Codes, count: int) -> list[Source]:
    """`weakest_source` of several sums: `of` says which of them each row belongs to."""
    columns = Columns(timed)
    labels, codes = columns.labels("source")
    rank = np.array([SOURCE_ORDER.index(label) for label in labels])[codes]
    spent = columns.numbers("typical_s") * columns.numbers("repeat_count")
    size = len(SOURCE_ORDER)
    by_source = np.bincount(of * size + rank, spent, count * size).reshape(count, size)
    passed = np.cumsum(by_source[:, ::-1], axis=1)
    weak = passed > SMALL_SHARE * by_source.sum(axis=1, keepdims=True)
    place = np.where(weak.any(axis=1), weak.argmax(axis=1), 0)
    return [SOURCE_ORDER[size - 1 - at] for at in place.tolist()]
