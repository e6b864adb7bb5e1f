"""Published quality of compressed models: found in a table, read between its rows, never beyond."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError

TABLE = Path(__file__).with_suffix(".csv")


class QualityRow(Document):
    """One published figure."""

    method: str
    model: str
    setting: str
    """What `at` counts: average bits, kept experts, share cut."""
    at: float
    metric: str
    value: float
    unit: str
    source: str
    date: str
    certainty: str


class Quality(Document):
    """A figure at a setting, with the rows it was read from."""

    metric: str
    value: float
    unit: str
    between: tuple[float, ...]
    sources: tuple[str, ...]


@cache
def quality_rows(path: Path = TABLE) -> tuple[QualityRow, ...]:
    """Read a table of published figures; your own may have the same columns."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        return tuple(QualityRow.parse(row, what=path.name) for row in rows)


def quality_at(method: str, model: str, metric: str, at: float, *, path: Path = TABLE) -> Quality:
    """Read a metric at a setting, linearly between the two published settings around it.

    Raises:
        MoesaicError: `outside_evidence` when nobody published the method on the model, or the
            setting lies beyond the published ones.
    """
    rows = [row for row in quality_rows(path) if (row.method, row.model) == (method, model)]
    found = sorted((row for row in rows if row.metric == metric), key=lambda row: row.at)
    if not found:
        known = sorted({f"{row.method} on {row.model}: {row.metric}" for row in quality_rows(path)})
        raise MoesaicError(
            "outside_evidence",
            f"no published {metric!r} of {method} on {model}; known: {'; '.join(known)}",
        )
    low, high = found[0].at, found[-1].at
    if not low <= at <= high:
        raise MoesaicError(
            "outside_evidence",
            f"{metric} of {method} on {model} is published for {found[0].setting} {low:g} to "
            f"{high:g}, not {at:g}",
        )
    below = max((row for row in found if row.at <= at), key=lambda row: row.at)
    above = min((row for row in found if row.at >= at), key=lambda row: row.at)
    span = above.at - below.at
    share = (at - below.at) / span if span else 0.0
    return Quality(
        metric=metric, unit=below.unit, value=below.value + share * (above.value - below.value),
        between=(below.at, above.at), sources=tuple({below.source, above.source}),
    )  # fmt: skip
