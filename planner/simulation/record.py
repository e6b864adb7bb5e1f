"""The per-request table: filled as requests finish, on disk in parts that survive a killed run."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.simulation.sequence import Sequence

REQUEST_ROW: dict[str, type[pl.DataType]] = {
    "request_index": pl.Int64,
    "trace_line": pl.Int64,
    "replica_index": pl.Int64,
    "rank_index": pl.Int64,
    "arrival_s": pl.Float64,
    "queued_s": pl.Float64,
    "scheduled_s": pl.Float64,
    "first_token_s": pl.Float64,
    "finished_s": pl.Float64,
    "isl_tokens": pl.Int64,
    "osl_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "preemptions_count": pl.Int64,
}
"""One finished request; times on the simulation's clock, which starts at 0. `queued_s` is when the
engine took the request from its socket, which happens between iterations."""

ROWS_A_PART = 4096
_SUFFIXES = (".csv", ".jsonl", ".parquet")


class RequestLog:
    """Collects finished requests; with a path, writes each `ROWS_A_PART` of them at once.

    CSV and JSON lines grow by whole parts. Parquet is written as numbered parts in `PATH.parts/`,
    which become one file at the end; after a kill the parts are there to read.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is not None and path.suffix not in _SUFFIXES:
            raise MoesaicError(
                "invalid", f"cannot write requests to {path}; known endings: {', '.join(_SUFFIXES)}"
            )
        self._path = path
        self._columns: dict[str, array[Any]] = {
            name: array("d" if kind is pl.Float64 else "q") for name, kind in REQUEST_ROW.items()
        }
        self._fresh: list[tuple[float, ...]] = []
        self._written = 0
        self.count = 0
        if path is not None:
            self._prepare(path)

    def add(self, sequence: Sequence, finished_s: float) -> None:
        """Append one finished request."""
        request = sequence.request
        self._fresh.append((
            sequence.index, request.line, sequence.replica, sequence.rank, sequence.arrival_s,
            sequence.queued_s, sequence.scheduled_s, sequence.first_token_s, finished_s,
            request.isl_tokens, request.osl_tokens, sequence.cached_tokens, sequence.preemptions,
        ))  # fmt: skip
        self.count += 1
        if len(self._fresh) >= ROWS_A_PART:
            self._settle()
            self._write_part()

    def table(self) -> pl.DataFrame:
        """All requests so far, with the derived columns `ttft_s`, `tpot_s`, `e2e_s`, `queue_s`."""
        return with_latencies(self._frame(0))

    def close(self) -> pl.DataFrame:
        """Write what is left, join Parquet parts, and return the table."""
        self._write_part()
        table = self.table()
        if self._path is not None and self._path.suffix == ".parquet":
            temporary = self._path.with_suffix(".parquet.partial")
            table.write_parquet(temporary)
            temporary.replace(self._path)
            shutil.rmtree(_parts(self._path))
        return table

    def _settle(self) -> None:
        """Move fresh rows into the columns, many at a time."""
        if self._fresh:
            by_column = zip(*self._fresh, strict=True)
            for column, values in zip(self._columns.values(), by_column, strict=True):
                column.extend(values)
            self._fresh.clear()

    def _frame(self, start: int) -> pl.DataFrame:
        self._settle()
        data = {name: column[start:] for name, column in self._columns.items()}
        return pl.DataFrame(
            {
                name: pl.Series(name, values, dtype=REQUEST_ROW[name])
                for name, values in data.items()
            }
        )

    def _prepare(self, path: Path) -> None:
        try:
            if path.suffix == ".parquet":
                shutil.rmtree(_parts(path), ignore_errors=True)
                _parts(path).mkdir()
            else:
                path.write_text("", encoding="utf-8")
        except OSError as error:
            raise MoesaicError("invalid", f"cannot write {path}: {error.strerror}") from error

    def _write_part(self) -> None:
        if self._path is None or self.count == self._written:
            return
        part = with_latencies(self._frame(self._written))
        if self._path.suffix == ".parquet":
            part.write_parquet(_parts(self._path) / f"part-{self._written:09d}.parquet")
        else:
            with self._path.open("ab") as stream:
                if self._path.suffix == ".csv":
                    stream.write(part.write_csv(include_header=not self._written).encode())
                else:
                    stream.write(part.write_ndjson().encode())
        self._written = self.count


def _parts(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def with_latencies(requests: pl.DataFrame) -> pl.DataFrame:
    """Add latencies: TTFT and E2E from arrival, TPOT = (E2E - TTFT) / (output tokens - 1)."""
    first, last = pl.col("first_token_s"), pl.col("finished_s")
    more = pl.col("osl_tokens") > 1
    return requests.with_columns(
        queue_s=pl.col("scheduled_s") - pl.col("arrival_s"),
        ttft_s=first - pl.col("arrival_s"),
        tpot_s=pl.when(more).then((last - first) / (pl.col("osl_tokens") - 1)),
        e2e_s=last - pl.col("arrival_s"),
    )
