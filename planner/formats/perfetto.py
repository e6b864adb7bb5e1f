"""Chrome's trace-event JSON, which Perfetto opens beside a PyTorch profile.

Format: "Trace Event Format" (Chrome tracing), complete events "X", counters "C", metadata "M";
times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError

SLICE: dict[str, type[pl.DataType]] = {
    "process": pl.String,
    "track": pl.String,
    "name": pl.String,
    "start_s": pl.Float64,
    "end_s": pl.Float64,
}
"""One slice: something that takes a stretch of time on one track."""

COUNTER: dict[str, type[pl.DataType]] = {
    "process": pl.String,
    "name": pl.String,
    "time_s": pl.Float64,
    "value": pl.Float64,
}
"""One counter reading."""

_NS_PER_S = 1e9


def trace_events(slices: pl.DataFrame, counters: pl.DataFrame | None = None) -> dict[str, Any]:
    """Turn slices and counters into one trace document.

    Times are rounded to whole nanoseconds on the clock, so that a slice that starts where another
    ends does not overlap it by a rounding error.

    Raises:
        MoesaicError: `internal` when two slices of one track overlap, `invalid` for a slice that
            ends before it starts.
    """
    check_tracks(slices)
    processes = _numbered(slices["process"].unique(maintain_order=True).to_list())
    if counters is not None:
        for name in counters["process"].unique(maintain_order=True):
            processes.setdefault(name, len(processes) + 1)
    events = [_named("process_name", pid, 0, name) for name, pid in processes.items()]
    threads: dict[tuple[str, str], int] = {}
    for row in slices.iter_rows(named=True):
        key = (row["process"], row["track"])
        pid = processes[row["process"]]
        if key not in threads:
            threads[key] = len(threads) + 1
            events.append(_named("thread_name", pid, threads[key], row["track"]))
        start, end = _ns(row["start_s"]), _ns(row["end_s"])
        events.append({
            "ph": "X", "name": row["name"], "pid": pid, "tid": threads[key],
            "ts": start / 1e3, "dur": (end - start) / 1e3,
        })  # fmt: skip
    if counters is not None:
        events.extend(
            {"ph": "C", "name": row["name"], "pid": processes[row["process"]], "tid": 0,
             "ts": _ns(row["time_s"]) / 1e3, "args": {"value": row["value"]}}
            for row in counters.iter_rows(named=True)
        )  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def check_tracks(slices: pl.DataFrame) -> None:
    """See that no two slices of a track overlap and none ends before it starts.

    Raises:
        MoesaicError: see `trace_events`.
    """
    rounded = slices.with_columns(
        (pl.col(name) * _NS_PER_S).round().cast(pl.Int64).alias(name)
        for name in ("start_s", "end_s")
    ).sort("process", "track", "start_s", "end_s", maintain_order=True)
    backwards = rounded.filter(pl.col("end_s") < pl.col("start_s"))
    if backwards.height:
        raise MoesaicError("invalid", f"slice {backwards['name'][0]!r} ends before it starts")
    before = pl.col("end_s").shift(1).over("process", "track")
    overlapping = rounded.filter(pl.col("start_s") < before)
    if overlapping.height:
        row = overlapping.row(0, named=True)
        raise MoesaicError(
            "internal", f"slice {row['name']!r} overlaps another on track {row['track']!r}"
        )


def free_tracks(starts_ends: Iterable[tuple[float, float]]) -> list[int]:
    """Give each interval the first track that is free, for intervals in order of start."""
    free_ns: list[int] = []
    tracks = []
    for start, end in starts_ends:
        at = next((i for i, until in enumerate(free_ns) if until <= _ns(start)), len(free_ns))
        if at == len(free_ns):
            free_ns.append(0)
        free_ns[at] = _ns(end)
        tracks.append(at)
    return tracks


def write_perfetto(path: Path, slices: pl.DataFrame, counters: pl.DataFrame | None = None) -> None:
    """Write a trace file.

    Raises:
        MoesaicError: as `trace_events`; `invalid` when the file cannot be written.
    """
    text = json.dumps(trace_events(slices, counters), separators=(",", ":"), allow_nan=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MoesaicError("invalid", f"cannot write {path}: {error.strerror}") from error


def _ns(time_s: float) -> int:
    return round(time_s * _NS_PER_S)


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, 1)}


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
