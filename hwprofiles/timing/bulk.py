"""Answer many plain lines of `time --batch` at once; the careful reader gets what is unusual.

Two hundred thousand rows a second leave five microseconds a line, so a block of lines is read,
checked and written as a table. A block that holds anything else than plain rows with known names is
refused whole: its lines are then read one by one, and only the bad ones fail.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import DTYPES, KERNEL_ROW, KERNELS
from hwprofiles.timing.answer import NUMBERS
from hwprofiles.timing.lines import MAY_BE_ZERO, exponent, failed
from hwprofiles.timing.mixed import time_mixed
from hwprofiles.timing.rows import Codes

_ABOUT: dict[str, type[pl.DataType]] = {
    "device": pl.String,
    "backend": pl.String,
    "skew": pl.String,
}


def answer_block(blob: bytes, *, extrapolate: bool = False) -> str | None:
    """Answers as JSON lines in one text, or none where some line needs the careful reader.

    Args:
        blob: lines of JSON, the last with or without its end.
        extrapolate: answer far outside what was measured, with wider intervals.
    """
    block = Block.of(blob)
    frame = None if block.shortest < SHORTEST else _understood(block)
    if frame is None:
        return None
    try:
        timed, refused = time_mixed(_with_exponent(frame), extrapolate=extrapolate)
    except MoesaicError:  # a load that is none
        return None
    error = pl.Series("error", [None], dtype=pl.String).new_from_index(0, frame.height)
    text = pl.DataFrame([frame["id"], *timed, error]).write_ndjson()
    if not refused:
        return text
    lines = text.split("\n")
    for row, why in refused.items():
        lines[row] = failed(frame["id"][row], why)
    return "\n".join(lines)


SAMPLE = 200
"""Lines looked at for the names of fields; where others turn up, all are."""
SHORTEST = 20
"""Bytes; no line shorter than this holds a kernel and a device (blank ones do not)."""
_QUOTE, _SPACE, _COLON, _END = b'" :\n'


@dataclass(frozen=True)
class Block:
    """Lines of JSON as bytes, and where their marks stand: one pass each instead of a search."""

    blob: bytes
    data: NDArray[np.uint8]
    ends: Codes
    """Where each line ends, before its mark."""
    after: NDArray[np.uint8]
    """The byte after each colon and one space; a space where there are two."""
    colons: Codes

    @classmethod
    def of(cls, blob: bytes) -> Block:
        """Look for the marks."""
        blob = blob.rstrip() if blob[-2:].isspace() else blob
        data = np.frombuffer(blob, np.uint8)
        colons, ends = np.flatnonzero(data == _COLON), np.flatnonzero(data == _END)
        last = len(data) - 1
        after = data.take(colons + 1, mode="clip")
        after = np.where(after == _SPACE, data.take(colons + 2, mode="clip"), after)
        if not len(ends) or ends[-1] != last:
            ends = np.append(ends, last + 1)
        return cls(blob, data, ends, after, colons)

    @property
    def shortest(self) -> int:
        """Bytes of the shortest line."""
        return int(np.diff(self.ends, prepend=-1).min()) - 1

    @property
    def some(self) -> bytes:
        """Lines from all over the block; all of them where there are few."""
        step = len(self.ends) // SAMPLE
        if not step:
            return self.blob
        starts = self.ends[:-1:step] + 1
        return b"\n".join(self.blob[i:j] for i, j in zip(starts, self.ends[1::step], strict=True))

    @property
    def truths(self) -> bool:
        """True where a value may be a truth value, which would pass for a number."""
        return bool(np.isin(self.after, np.frombuffer(b"tf ", np.uint8)).any())

    @property
    def texts_as_ids(self) -> int:
        """How many lines have a text as their id."""
        named = self.colons[self.after == _QUOTE]
        for back, byte in enumerate(b'"di"', start=1):
            named = named[self.data[named - back] == byte]
        return len(named)


def _understood(block: Block) -> pl.DataFrame | None:
    """The lines as a table, read for the fields of some lines first."""
    if block.truths:
        return None
    for some in (block.some, block.blob):
        frame = _read(block.blob, some)
        if frame is not None and frame.height == len(block.ends) and _plain(frame, block):
            return frame
    return None


def _read(blob: bytes, some: bytes) -> pl.DataFrame | None:
    """Read the fields that occur in `some` of the lines."""
    quoted = b'"id": "' in some or b'"id":"' in some
    schema: dict[str, type[pl.DataType]] = {"id": pl.String if quoted else pl.Int64}
    schema |= {
        name: kind for name, kind in (KERNEL_ROW | _ABOUT).items() if f'"{name}"'.encode() in some
    }
    try:
        return pl.read_ndjson(io.BytesIO(blob), schema=schema)
    except pl.exceptions.ComputeError:
        return None


def _plain(frame: pl.DataFrame, block: Block) -> bool:
    """True where every field was understood, every name is known and every size is a size."""
    given = sum(frame.height - frame[name].null_count() for name in frame.columns)
    if "skew" in frame.columns:
        given += int(frame["skew"].str.starts_with("{").sum())
    if len(block.colons) != given and block.blob.count(b'":') != given:  # ids may hold colons
        return False
    texts = frame.schema["id"] == pl.String
    if frame["id"].null_count() or (texts and block.texts_as_ids != frame.height):
        return False  # a number among texts would come back as a text
    return _known(frame) and _sizes(frame)


def _known(frame: pl.DataFrame) -> bool:
    known = {"kernel": set(KERNELS), "dtype": set(DTYPES), "kv_dtype": set(DTYPES)}
    needed = [
        frame[name].null_count() == 0 for name in ("kernel", "device") if name in frame.columns
    ]
    names = [name for name in known if name in frame.columns]
    fit = all(set(frame[name].drop_nulls().unique()) <= known[name] for name in names)
    return fit and len(needed) == 2 and all(needed)  # noqa: PLR2004 - both were there


def _sizes(frame: pl.DataFrame) -> bool:
    numbers = [name for name in frame.columns if name in NUMBERS]
    least = [
        (pl.col(name) >= 0 if name in MAY_BE_ZERO else pl.col(name) > 0) & pl.col(name).is_finite()
        for name in numbers
    ]
    return bool(
        frame.select(pl.all_horizontal(e.fill_null(value=True) for e in least).all()).item()
    )


def _with_exponent(frame: pl.DataFrame) -> pl.DataFrame:
    """State each load's exponent as a number."""
    if "skew" not in frame.columns:
        return frame.with_columns(pl.lit(None, pl.Float64).alias("skew_alpha"))
    texts = frame["skew"].drop_nulls().unique().to_list()
    values = {text: exponent(json.loads(text) if text.startswith("{") else text) for text in texts}
    column = pl.col("skew").replace_strict(values, default=None, return_dtype=pl.Float64)
    return frame.with_columns(column.alias("skew_alpha")).drop("skew")
