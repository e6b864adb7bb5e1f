"""Perfetto traces: valid events, no overlap on a track."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import SLICE, check_tracks, free_tracks, trace_events, write_perfetto
from planner.formats.request import Request
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Pool, Serving
from planner.simulation.slices import load_counters, request_slices
from planner.simulation.step_seconds import LinearSteps, SlowestRank


def test_a_run_becomes_a_trace_without_overlaps(tmp_path: Path) -> None:
    pool = Pool(EngineLimits(max_num_seqs=3), SlowestRank(LinearSteps(0.01, 1e-5)), replicas=2)
    requests = (Request(n * 0.013, 50 + n, 3 + n % 7) for n in range(60))
    run = Serving(pool, requests).run()
    path = tmp_path / "trace.json"
    write_perfetto(path, request_slices(run.log.close()), load_counters(run.timeline.table()))
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    by_track: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            by_track.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
    assert sum(map(len, by_track.values())) == 180
    for slices in by_track.values():
        slices.sort()
        for (_, end), (start, _) in itertools.pairwise(slices):
            assert start >= end - 1e-9


def frame(*rows: tuple[str, str, str, float, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SLICE, orient="row")


def test_overlaps_and_backward_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="'b' overlaps"):
        trace_events(frame(("p", "t", "a", 0, 2), ("p", "t", "b", 1, 3)))
    trace_events(frame(("p", "t", "a", 0, 2), ("p", "u", "b", 1, 3)))
    with pytest.raises(MoesaicError, match="ends before"):
        trace_events(frame(("p", "t", "a", 2, 1)))
    with pytest.raises(MoesaicError, match="cannot write"):
        write_perfetto(tmp_path / "none" / "t.json", frame(("p", "t", "a", 0, 1)))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=40))
def test_free_tracks_never_overlap(spans: list[tuple[float, float]]) -> None:
    intervals = sorted((start, start + length) for start, length in spans)
    tracks = free_tracks(intervals)
    check_tracks(
        frame(*(("p", str(t), "x", *span) for t, span in zip(tracks, intervals, strict=True)))
    )
