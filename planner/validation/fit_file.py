"""The fitted engine layer as a file: one line a term, the same fit gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hwprofiles.files import write_text
from planner.timing.engine_layer import EngineFit

WIDTH = 10_000
HEAD = "# Fitted engine layer, written by planner/validation/fitting.py; never edited by hand.\n"


def write_fit(fit: EngineFit, path: Path) -> None:
    """Write a fit where `load_fit` (or the next release) reads it."""
    write_text(path, HEAD + "".join(_lines(fit.model_dump(mode="json"))))


def _lines(fit: dict[str, Any]) -> Iterator[str]:
    for name, value in fit.items():
        if name in ("tpot", "ttft"):
            yield f"{name}:\n  terms:\n"
            yield from (f"  - {_inline(term)}\n" for term in value.pop("terms"))
            yield "  known:\n"
            yield from (
                f"    {key}: {_inline(spread)}\n" for key, spread in value.pop("known").items()
            )
            yield from (f"  {key}: {_inline(rest)}\n" for key, rest in value.items())
        else:
            yield f"{name}: {_inline(value)}\n"


def _inline(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=WIDTH)
    return text.removesuffix("\n").removesuffix("...").rstrip()
