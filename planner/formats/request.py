"""One inference request as every trace reader hands it over, checked while it streams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hwprofiles.errors import MoesaicError

MAX_LINE_BYTES = 4 * 2**20
"""Longest line read: a Mooncake line of a million-token prompt has 2,000 block ids, about 16 kB."""


class Request(NamedTuple):
    """When a request arrives, how long it is, and which prefix blocks its prompt starts with."""

    arrival_s: float
    isl_tokens: int
    osl_tokens: int
    prefix_ids: tuple[int, ...] = ()
    """One id a block of `prefix_block_tokens` tokens; equal ids mean equal content so far."""
    prefix_block_tokens: int = 0
    line: int = 0
    """Line of the trace it comes from; 0 for a drawn request."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream the lines of a text file with their numbers, never the whole file.

    Raises:
        MoesaicError: `invalid` when the file is missing, not UTF-8, or a line is absurdly long.
    """
    number = 0
    try:
        # Bytes, decoded line by line: a decoder that reads ahead would name the wrong line.
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) >= MAX_LINE_BYTES:
                    raise bad_line(path, number, f"is longer than {MAX_LINE_BYTES} characters")
                yield number, line.decode().rstrip("\r\n")
    except OSError as error:
        raise MoesaicError("invalid", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise bad_line(path, number, f"is not UTF-8 text ({error.reason})") from error


def bad_line(path: Path, line: int, problem: str) -> MoesaicError:
    """Say which line of which trace is wrong."""
    return MoesaicError("invalid", f"{path} line {line} {problem}")


def whole_tokens(value: object, what: str) -> int:
    """Read a token count: a whole number of at least one.

    Raises:
        ValueError: with the rest of a sentence that starts "line N".
    """
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"has {what} {value!r}; a whole number of tokens is needed")  # noqa: TRY004
    try:
        number = int(value)
        exact = number == float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"has {what} {value!r}; a whole number of tokens is needed") from None
    if not exact:
        raise ValueError(f"has {what} {value!r}; a whole number of tokens is needed")
    if number < 1:
        raise ValueError(f"has {what} {number}; a request needs at least one token")
    return number


def checked(requests: Iterable[Request], path: Path) -> Iterator[Request]:
    """Pass requests on in arrival order, or name the line that goes back in time.

    Raises:
        MoesaicError: `invalid` for a negative or decreasing arrival time, or an empty trace.
    """
    last_s = 0.0
    seen = False
    for request in requests:
        arrival_s = request.arrival_s
        if seen and arrival_s < last_s:
            problem = f"arrives at {arrival_s} s, before the line above it ({last_s} s)"
            raise bad_line(path, request.line, f"{problem}; sort the trace by arrival")
        if not 0 <= arrival_s < math.inf:
            raise bad_line(
                path, request.line, f"arrives at {arrival_s} s, before the start or never"
            )
        last_s = arrival_s
        seen = True
        yield request
    if not seen:
        raise MoesaicError("invalid", f"{path} holds no request")
