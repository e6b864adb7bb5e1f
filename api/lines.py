"""JSON lines in and out: a bad line is an error in its place, a killed run leaves its answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from api.output import Output
from hwprofiles.errors import MoesaicError
from hwprofiles.files import parse_text


def parsed_lines(path: Path) -> Iterator[object]:
    """Plain data of each line that is not blank; a malformed line comes as its error.

    Raises:
        MoesaicError: `invalid` when the file cannot be read.
    """
    for first, block in blocks(path, READ_BYTES):
        for number, line in numbered(block, first):
            yield parsed(line, number)


READ_BYTES = 2**16


def blocks(path: Path, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines of some `size_bytes` together, and the number of the first of them.

    Raises:
        MoesaicError: `invalid` when the file cannot be read.
    """
    number = 1
    try:
        with path.open("rb") as file:
            while block := file.read(size_bytes) + file.readline():
                if not block.isascii():
                    block.decode()
                yield number, block
                number += block.count(b"\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MoesaicError("invalid", f"cannot read {path}: {error}") from error


def numbered(block: bytes, first: int) -> Iterator[tuple[int, str]]:
    """Text and number of each line that is not blank; the first one's number is `first`."""
    with io.TextIOWrapper(io.BytesIO(block), encoding="utf-8") as lines:
        for number, line in enumerate(lines, first):
            if line.strip():
                yield number, line


def parsed(line: str, number: int) -> object:
    """Read one line: quickly where nothing in it can be ambiguous, else by the strict reader."""
    try:
        if line.count('"') <= MANY_QUOTES and "N" not in line and "Infinity" not in line:
            data: object = json.loads(line, object_pairs_hook=_pairs)
            return data
        return parse_text(line, f"line {number}", as_json=True)
    except MoesaicError as error:
        return MoesaicError(error.kind, f"line {number}: {error.message}", error.path)
    except (ValueError, RecursionError) as error:
        return MoesaicError("invalid", f"line {number}: {error}")


MANY_QUOTES = 400
"""A line with more quotes is long enough that the strict reader's checks cost nothing beside it."""


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MoesaicError("invalid", f"key {twice!r} stands twice")
    return data


@contextmanager
def written(output: Output) -> Iterator[Callable[[Sequence[str]], None]]:
    """Write chunks of lines to the chosen place, flushed one by one, with a bar on a terminal."""
    from rich.progress import Progress

    shown = not output.quiet and sys.stderr.isatty()
    try:
        stream = output.path.open("w", encoding="utf-8") if output.path else sys.stdout
    except OSError as error:
        raise MoesaicError("internal", f"cannot write {output.path}: {error.strerror}") from error
    try:
        with Progress(disable=not shown) as progress:
            task = progress.add_task("lines", total=None)

            def write(lines: Sequence[str]) -> None:
                stream.writelines(f"{line}\n" for line in lines)
                stream.flush()
                progress.advance(task, len(lines))

            yield write
    finally:
        if output.path:
            stream.close()
