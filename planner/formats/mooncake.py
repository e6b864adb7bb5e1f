"""Mooncake's request traces: JSON lines with prefix hash blocks of 512 tokens.

Format: github kvcache-ai/Mooncake, FAST25-release/traces, "timestamp" in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from planner.formats.request import Request, bad_line, checked, numbered_lines, whole_tokens

BLOCK_TOKENS = 512
_FIELDS = ("timestamp", "input_length", "output_length")


def read_mooncake(path: Path) -> Iterator[Request]:
    """Stream a Mooncake trace.

    Raises:
        MoesaicError: `invalid` with the line number for anything malformed.
    """
    return checked(_parse(path), path)


def _parse(path: Path) -> Iterator[Request]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            yield _request(json.loads(line), number)
        except json.JSONDecodeError as error:
            raise bad_line(path, number, f"is no JSON: {error.msg}") from error
        except ValueError as error:
            raise bad_line(path, number, str(error)) from error


def _request(row: object, line: int) -> Request:
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - becomes a sentence with the line
    missing = [name for name in _FIELDS if name not in row]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    isl_tokens = whole_tokens(row["input_length"], "input_length")
    ids = row.get("hash_ids", [])
    if not isinstance(ids, list) or any(type(i) is not int for i in ids):
        raise ValueError("has hash_ids that are no list of whole numbers")
    if len(ids) * BLOCK_TOKENS >= isl_tokens + BLOCK_TOKENS:
        raise ValueError(
            f"has {len(ids)} hash_ids for {isl_tokens} tokens; one for each {BLOCK_TOKENS} is right"
        )
    return Request(
        arrival_s=_milliseconds(row["timestamp"]) / 1e3,
        isl_tokens=isl_tokens,
        osl_tokens=whole_tokens(row["output_length"], "output_length"),
        prefix_ids=tuple(ids),
        prefix_block_tokens=BLOCK_TOKENS,
        line=line,
    )


def _milliseconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"has timestamp {value!r}; milliseconds are needed")  # noqa: TRY004
    return float(value)
