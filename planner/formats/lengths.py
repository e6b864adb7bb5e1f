"""Token lengths with or without arrivals: LLMServingSim's JSON lines, Vidur's CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from planner.formats.request import Request, bad_line, checked, numbered_lines, whole_tokens

_VIDUR = ("num_prefill_tokens", "num_decode_tokens")
_SERVINGSIM = ("input_toks", "output_toks", "arrival_time_ns")


def read_servingsim(path: Path) -> Iterator[Request]:
    """Stream LLMServingSim's workload: lengths and arrival in nanoseconds, one JSON object a line.

    Raises:
        MoesaicError: `invalid` with the line number for anything malformed.
    """
    return checked(_parse_servingsim(path), path)


def _parse_servingsim(path: Path) -> Iterator[Request]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("is no JSON object")  # noqa: TRY004, TRY301
            missing = [name for name in _SERVINGSIM if name not in row]
            if missing:
                raise ValueError(f"lacks {', '.join(missing)}")  # noqa: TRY301
            arrival = row["arrival_time_ns"]
            if type(arrival) not in (int, float):
                raise ValueError(f"has arrival_time_ns {arrival!r}; nanoseconds are needed")  # noqa: TRY301
            yield Request(
                arrival / 1e9,
                whole_tokens(row["input_toks"], "input_toks"),
                whole_tokens(row["output_toks"], "output_toks"),
                line=number,
            )
        except json.JSONDecodeError as error:
            raise bad_line(path, number, f"is no JSON: {error.msg}") from error
        except ValueError as error:
            raise bad_line(path, number, str(error)) from error


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Lengths of any trace this project reads, as (isl, osl) pairs.

    Raises:
        MoesaicError: `invalid` for a malformed or unknown file.
    """
    if next(numbered_lines(path), (1, ""))[1].startswith(_VIDUR[0]):
        return read_vidur_lengths(path)
    from planner.formats.traces import read_trace  # it reads this module's other format

    return [(request.isl_tokens, request.osl_tokens) for request in read_trace(path)]


def read_vidur_lengths(path: Path) -> list[tuple[int, int]]:
    """Read Vidur's processed lengths as (isl, osl) pairs; the file has no arrivals.

    Raises:
        MoesaicError: `invalid` with the line number for anything malformed.
    """
    lines = numbered_lines(path)
    header = next(lines, (1, ""))[1].split(",")
    missing = [name for name in _VIDUR if name not in header]
    if missing:
        raise bad_line(path, 1, f"lacks the column {', '.join(missing)}")
    isl_at, osl_at = (header.index(name) for name in _VIDUR)
    pairs: list[tuple[int, int]] = []
    for number, line in lines:
        if not line.strip():
            continue
        cells = next(csv.reader([line]))
        try:
            if len(cells) != len(header):
                raise ValueError(f"has {len(cells)} cells; the header has {len(header)}")  # noqa: TRY301
            pairs.append(
                (whole_tokens(cells[isl_at], _VIDUR[0]), whole_tokens(cells[osl_at], _VIDUR[1]))
            )
        except ValueError as error:
            raise bad_line(path, number, str(error)) from error
    return pairs
