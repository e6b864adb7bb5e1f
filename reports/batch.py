"""A folder of scenarios or plans becomes pages with an index; a bad one stops nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document, write_text
from planner.design_plan import DesignPlan
from planner.fleet_plan import FleetPlan
from planner.pipeline import Answer, answer, read_question
from planner.plan import Plan
from reports.pages import IndexEntry, headline_of, render_answer, render_index

SUFFIXES = (".yaml", ".yml", ".json")


def read_plan(source: Path) -> Answer:
    """Read a finished plan, or make one from a scenario, a fleet or a design."""
    data = read_document(source)
    if isinstance(data, dict) and "design_digest" in data:
        return parse_as(DesignPlan, data, what=f"plan {source.name}")
    if isinstance(data, dict) and "fleet_digest" in data:
        return parse_as(FleetPlan, data, what=f"plan {source.name}")
    if isinstance(data, dict) and "scenario_digest" in data:
        return parse_as(Plan, data, what=f"plan {source.name}")
    return answer(read_question(source))


def report_file(source: Path, page: Path) -> Answer:
    """Render one scenario or plan to one page."""
    plan = read_plan(source)
    write_text(page, render_answer(plan))
    return plan


def report_folder(source: Path, out: Path, *, show_progress: bool) -> int:
    """Render every scenario or plan of a folder; each page is written when it is done.

    Returns:
        How many could not be answered; the index says why.
    """
    from rich.progress import track

    files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if not files:
        raise MoesaicError("invalid", f"{source} holds no {', '.join(SUFFIXES)} file")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoesaicError("invalid", f"cannot make {out}: {error.strerror}") from error
    hidden = not show_progress or not sys.stderr.isatty()
    entries = [_entry(path, out) for path in track(files, "pages", disable=hidden)]
    write_text(out / "index.html", render_index(entries))
    return sum(entry.failed for entry in entries)


def _entry(path: Path, out: Path) -> IndexEntry:
    page = f"{path.stem}.html"
    try:
        plan = report_file(path, out / page)
    except MoesaicError as error:
        return IndexEntry(path.name, "", f"{error.kind}: {error}", failed=True)
    return IndexEntry(path.name, page, headline_of(plan), failed=False)
