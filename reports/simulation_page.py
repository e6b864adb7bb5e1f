"""A simulation as one self-contained HTML page: figures, tables, timeline, what was assumed."""

from __future__ import annotations

import polars as pl
from markupsafe import Markup

from hwprofiles.document import Document
from planner.simulation.question import SimulationAnswer
from reports import charts
from reports.pages import template
from reports.simulation_text import event_text, fact_rows, figure_rows, tables

WORDS = {
    "F": "forward (F)", "B": "backward (B)", "F+B": "forward beside backward (F+B)",
    "I": "gradients of inputs (I)", "W": "gradients of weights (W)",
}  # fmt: skip
"""What the letters of a schedule mean."""
MOST_TRACKS, MOST_SLICES = 24, 1500
"""Drawn on the page; a trace viewer shows the rest."""


def render_simulation(answer: Document, slices: pl.DataFrame | None) -> str:
    """One page of an answer of any kind and the first part of its timeline.

    Args:
        answer: of `moesaic simulate`.
        slices: columns `SLICE`, or none where there is no timeline.
    """
    serving = isinstance(answer, SimulationAnswer)
    return template("simulation.html").render(
        title=str(getattr(answer, "name", "simulation")),
        headers=["figure", "typical", "low", "high"] if serving else ["figure", "value"],
        rows=figure_rows(answer) if isinstance(answer, SimulationAnswer) else fact_rows(answer),
        events=[event_text(event) for event in getattr(answer, "events", ())] if serving else [],
        tables=[] if serving else tables(answer),
        timeline=Markup(_timeline(slices)),  # noqa: S704 - our own SVG; every text is escaped
        assumptions=getattr(answer, "assumptions", ()),
    )


def _timeline(slices: pl.DataFrame | None) -> str:
    if slices is None or slices.is_empty():
        return ""
    tracks = slices["track"].unique().sort()[:MOST_TRACKS]
    drawn = slices.filter(pl.col("track").is_in(tracks.implode())).sort("start_s")
    drawn = drawn.head(MOST_SLICES)
    label = f"{drawn.height:,} pieces of work"
    if drawn.height < slices.height:
        label = f"The first {drawn.height:,} of {slices.height:,} pieces of work"
    rows = drawn.select("track", "name", "start_s", "end_s").rows()
    return charts.gantt(rows, label, WORDS)
