"""A serving run as slices and counters: what a trace viewer or a Gantt chart draws."""

from __future__ import annotations

import polars as pl

from planner.formats.perfetto import COUNTER, SLICE, free_tracks

MOST_REQUESTS = 5_000
"""Requests drawn; a viewer is of no use with more, the table has them all."""
_PHASES = (
    ("queue", "arrival_s", "scheduled_s"),
    ("prefill", "scheduled_s", "first_token_s"),
    ("decode", "first_token_s", "finished_s"),
)


def request_slices(requests: pl.DataFrame) -> pl.DataFrame:
    """Queue, prefill and decode of each request as slices, each request on the first free track.

    Args:
        requests: the per-request table; its first `MOST_REQUESTS` by arrival are drawn.

    Returns:
        Columns `SLICE`.
    """
    rows = []
    for (replica,), part in requests.group_by("replica_index", maintain_order=True):
        drawn = part.sort("arrival_s", "request_index").head(MOST_REQUESTS)
        tracks = free_tracks(drawn.select("arrival_s", "finished_s").iter_rows())
        for track, row in zip(tracks, drawn.iter_rows(named=True), strict=True):
            for phase, start, end in _PHASES:
                rows.append((
                    f"replica {replica}", f"slot {track:03d}",
                    f"{phase} {row['request_index']}", row[start], row[end],
                ))  # fmt: skip
    return pl.DataFrame(rows, schema=SLICE, orient="row")


def load_counters(timeline: pl.DataFrame) -> pl.DataFrame:
    """Waiting, running and KV share over time as counters, columns `COUNTER`."""
    process = pl.format("replica {}", "replica_index")
    parts = [
        timeline.select(
            process.alias("process"),
            pl.lit(name).alias("name"),
            "time_s",
            pl.col(name).cast(pl.Float64).alias("value"),
        )
        for name in ("waiting_count", "running_count", "kv_ratio")
    ]
    return pl.concat(parts).select(*COUNTER).sort("time_s", maintain_order=True)
