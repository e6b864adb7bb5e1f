"""A simulation's figures as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hwprofiles.document import Document
from planner.quantities import Estimate
from planner.simulation.question import SimulationAnswer
from planner.simulation.told import EventCost
from reports import views
from reports.text import text_table

_MS = 1e3
_PERCENT = 100
_LITTLE = 0.1
"""Fewer GiB are shown in MiB."""
_SECONDS = ("duration_s", "downtime_s", "intake_paused_s", "boot_s")
_UNITS = {
    "speedup_ratio": ("speedup", 1.0),
    "_s": (" ms", _MS),
    "_ratio": (" %", _PERCENT),
    "_bytes": (" GiB", 1 / views.GIB),
    "_j": (" J", 1.0),
    "_count": ("", 1.0),
}
"""Ending of a field: what stands behind its name, and the factor to that unit."""
_SILENT = ("schema_version", "kind", "name", "assumptions")


def simulation_text(answer: SimulationAnswer) -> str:
    """Percentiles and rates with their bands, then what was assumed."""
    return "\n".join([
        f"{answer.name}: {answer.seeds} seed(s), {answer.kv_blocks} KV blocks a rank",
        "",
        text_table(["figure", "typical", "low", "high"], figure_rows(answer)),
        "",
        *(event_text(event) for event in answer.events),
        *(f"Assumed: {text}" for text in answer.assumptions),
    ])  # fmt: skip


def figure_rows(answer: SimulationAnswer) -> list[list[str]]:
    """Each figure with its typical, low and high value in display units."""
    rows = []
    for name, figure in answer.summary.items():
        label, scale = _label(name)
        cells = [views.number(value * scale) for value in (figure.typical, figure.low, figure.high)]
        rows.append([label, *cells])
    return rows


def event_text(event: EventCost) -> str:
    """One scale operation or failure as a sentence."""
    cost, number = event.cost, views.number
    text = (
        f"At {number(event.at_s)} s: {event.kind} of {event.pool} {event.replica}, "
        f"{event.dp_before} to {event.dp} ranks, {cost.strategy.replace('_', ' ')} in "
        f"{number(cost.duration_s or 0.0)} s ({_cell('phases', cost.phases)}), down for "
        f"{number(cost.downtime_s or 0.0)} s, peak {number((cost.peak_bytes or 0.0) / views.GIB)} "
        "GiB"
    )
    if event.layout is None:
        return text
    layout = event.layout
    return (
        f"{text}; {layout.lost_experts_count} experts lost, {layout.moves_count} slots changed, "
        f"busiest over mean {number(layout.busy_ratio)} ({number(layout.busy_kept_ratio)} without "
        "other moves)"
    )


def facts_text(answer: Document) -> str:
    """Any other answer: its figures, one a line, then its tables and what was assumed."""
    facts = fact_rows(answer)
    parts = [str(getattr(answer, "name", ""))]
    if facts:
        parts += ["", text_table(["figure", "value"], facts)]
    for _, headers, rows in tables(answer):
        parts += ["", text_table(headers, rows)]
    parts += ["", *(f"Assumed: {text}" for text in getattr(answer, "assumptions", ()))]
    return "\n".join(parts)


def fact_rows(answer: Document) -> list[list[str]]:
    """Figures of an answer, each with its label and its value in display units."""
    return [row for name in type(answer).model_fields if name not in _SILENT
            for row in _facts(name, getattr(answer, name))]  # fmt: skip


def tables(answer: Document) -> list[tuple[str, list[str], list[list[str]]]]:
    """Name, headers and rows of each field that holds documents of one kind."""
    found = []
    for name in type(answer).model_fields:
        rows = getattr(answer, name)
        if isinstance(rows, tuple) and rows and isinstance(rows[0], Document):
            found.append((name.replace("_", " "), *_documents(rows)))
    return found


def _facts(name: str, value: Any) -> Iterator[list[str]]:  # noqa: ANN401 - a field of any document
    if isinstance(value, Estimate):
        label, scale = _label(name)
        low, typical, high = (
            views.number(v * scale) for v in (value.low, value.typical, value.high)
        )
        yield [label, f"{typical} ({low} to {high}, {value.source})"]
    elif isinstance(value, Document):
        for part in type(value).model_fields:
            for label, text in _facts(part, getattr(value, part)):
                yield [f"{name.replace('_', ' ')}: {label}", text]
    elif isinstance(value, str):
        yield [name.replace("_", " "), value]
    elif isinstance(value, int | float):
        label, scale = _label(name)
        if name.endswith("_bytes") and value * scale < _LITTLE:
            label, scale = label.replace("GiB", "MiB"), scale * 1024
        exact = isinstance(value, int) and scale == 1
        yield [label, f"{value:,}" if exact else views.number(value * scale)]


def _documents(rows: tuple[Document, ...]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of documents of one kind; a tuple of parts becomes one cell."""
    names = [n for n in type(rows[0]).model_fields if any(getattr(r, n) for r in rows)]
    cells = [[_cell(name, getattr(row, name)) for name in names] for row in rows]
    return [_label(name)[0] for name in names], cells


def _cell(name: str, value: Any) -> str:  # noqa: ANN401 - a field of any document
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(" ".join(text for _, text in _cells(part)) for part in value)
    return value if isinstance(value, str) else views.number(value * _label(name)[1])


def _cells(part: Document) -> Iterator[tuple[str, str]]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        unit = " s" if name == "seconds_s" else ""
        text = value if isinstance(value, str) else views.number(value) + unit
        yield name, text


def _label(name: str) -> tuple[str, float]:
    """What a figure is called and the factor to its display unit."""
    if name.endswith(("per_s", "per_rank")):
        return name.replace("_per_s", "/s").replace("_per_rank", "/rank").replace("_", " "), 1.0
    if name in _SECONDS:
        return name.removesuffix("_s").replace("_", " ") + " s", 1.0
    for suffix, (unit, scale) in _UNITS.items():
        if name.endswith(suffix):
            stem = name.removesuffix(suffix).replace("_", " ")
            return ("time" if stem == "seconds" else stem) + unit, scale
    return name.replace("_", " "), 1.0
