"""Azure's LLM inference traces: CSV of wall-clock time, context and generated tokens.

Format: github Azure/AzurePublicDataset, header TIMESTAMP,ContextTokens,GeneratedTokens.
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator
from pathlib import Path

from planner.formats.request import Request, bad_line, checked, numbered_lines, whole_tokens

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path) -> Iterator[Request]:
    """Stream an Azure trace; its first row arrives at 0 s.

    Raises:
        MoesaicError: `invalid` with the line number for anything malformed.
    """
    return checked(_parse(path), path)


def _parse(path: Path) -> Iterator[Request]:
    lines = numbered_lines(path)
    header = next(lines, (1, ""))[1].lstrip("\ufeff").split(",")
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise bad_line(path, 1, f"lacks the column {', '.join(missing)}")
    places = [header.index(name) for name in _COLUMNS]
    start: datetime.datetime | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line]))
            if len(cells) != len(header):
                raise ValueError(f"has {len(cells)} cells; the header has {len(header)}")  # noqa: TRY301
            stamp, isl, osl = (cells[place] for place in places)
            moment = _moment(stamp)
            start = start or moment
            arrival_s = (moment - start).total_seconds()
            yield Request(
                arrival_s, whole_tokens(isl, "ContextTokens"), whole_tokens(osl, "GeneratedTokens"),
                line=number,
            )  # fmt: skip
        except ValueError as error:
            raise bad_line(path, number, str(error)) from error


def _moment(stamp: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(stamp.strip()).replace(tzinfo=None)
    except ValueError:
        raise ValueError(f"has TIMESTAMP {stamp!r}; write it like 2023-11-16 18:17:03.97") from None
