"""Every request trace that can be read, by name, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from hwprofiles.errors import MoesaicError, unknown_name
from planner.formats.azure import read_azure
from planner.formats.lengths import read_servingsim
from planner.formats.mooncake import read_mooncake
from planner.formats.request import Request, numbered_lines

TRACE_FORMATS: dict[str, tuple[str, Callable[[Path], Iterator[Request]]]] = {
    "mooncake": ("input_length", read_mooncake),
    "servingsim": ("input_toks", read_servingsim),
    "azure": ("ContextTokens", read_azure),
}
"""Name: the word that its first line holds, its reader."""


def read_trace(path: Path, form: str | None = None) -> Iterator[Request]:
    """Stream a trace in a named format, or in the one its first line shows.

    Raises:
        MoesaicError: `unknown_name` for a format, `invalid` for a file nothing fits.
    """
    if form is None:
        first = next((line for _, line in numbered_lines(path) if line.strip()), "")
        form = next((name for name, (word, _) in TRACE_FORMATS.items() if word in first), None)
        if not first:
            raise MoesaicError("invalid", f"{path} holds no request")
        if form is None:
            known = ", ".join(f"{name} ({word})" for name, (word, _) in TRACE_FORMATS.items())
            raise MoesaicError(
                "invalid", f"{path} line 1 fits no known trace; known by their words: {known}"
            )
    if form not in TRACE_FORMATS:
        raise unknown_name("trace format", form, TRACE_FORMATS)
    return TRACE_FORMATS[form][1](path)
