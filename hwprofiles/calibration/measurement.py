"""The measured row: a kernel row with seconds and origin, written so that a kill loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import KERNEL_ROW

MEASUREMENT: dict[str, type[pl.DataType]] = {
    "id": pl.String,  # digest of device, backend and kernel row
    "device": pl.String,
    "backend": pl.String,  # what ran it: numpy, torch-cuda, nccl, vllm ...
    "backend_version": pl.String,
    **KERNEL_ROW,
    "median_s": pl.Float64,
    "min_s": pl.Float64,
    "spread_ratio": pl.Float64,  # (90th - 10th percentile) / median
    "samples_count": pl.Float64,  # kept
    "dropped_count": pl.Float64,  # thrown away because something else ran
    "rounds_count": pl.Float64,  # minutes apart, of which this is the middle one
    "steal_ratio": pl.Float64,  # of the cores' time, taken by the hypervisor
    "foreign_ratio": pl.Float64,  # of the cores' time, taken by other processes
    "disturbed": pl.Boolean,  # too few quiet samples; kept as a record, not fitted
    "environment": pl.String,  # digest of the fingerprint
    "measured_at": pl.String,
    "source": pl.String,
}
"""Columns of the measurements table."""


def row_id(device: str, backend: str, row: Mapping[str, object]) -> str:
    """Name a kernel row on a device and backend by its content."""
    sizes = {
        key: float(value) if isinstance(value, int) else value
        for key in KERNEL_ROW
        if (value := row.get(key)) is not None
    }
    text = json.dumps([device, backend, sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measurement_table(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Build a measurements table from plain rows; absent columns become null.

    Raises:
        MoesaicError: `invalid` for a field that measurements do not have.
    """
    plain = [dict(row) for row in rows]
    for row in plain:
        unknown = set(row) - set(MEASUREMENT)
        if unknown:
            raise MoesaicError("invalid", f"a measurement has no fields {sorted(unknown)}")
    return pl.DataFrame(plain, schema=MEASUREMENT)


class Journal:
    """Measurements in a JSON Lines file: each finished row is on disk before the next begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All whole rows; a line torn by a kill is left out, the last of equal ids wins.

        Raises:
            MoesaicError: `invalid` for a malformed line that is not the last one.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        found: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines[:-1], start=1):
            row = self._parsed(line, number)
            found.pop(row["id"], None)
            found[row["id"]] = row
        return list(found.values())

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            where = f"{self.path.name} line {number}"
            raise MoesaicError("invalid", f"{where} is no measurement: {error}") from error
        if not isinstance(row, dict) or "id" not in row:
            where = f"{self.path.name} line {number}"
            raise MoesaicError("invalid", f"{where} is no measurement: no id")
        return row

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row and wait until it is on disk; a torn line before it is cut off first.

        Raises:
            MoesaicError: `internal` when the disk refuses.
        """
        text = json.dumps({k: v for k, v in row.items() if v is not None}, allow_nan=False)
        try:
            with self.path.open("ab+") as stream:
                _cut_torn_line(stream.fileno())
                stream.write(text.encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise MoesaicError("internal", f"cannot write {self.path}: {error.strerror}") from error


def _cut_torn_line(descriptor: int) -> None:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 4096)
        block = os.pread(descriptor, end - start, start)
        at = block.rfind(b"\n")
        if at >= 0:
            if start + at + 1 < size:
                os.ftruncate(descriptor, start + at + 1)
            return
        end = start
    os.ftruncate(descriptor, 0)
