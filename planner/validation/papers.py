"""Figures of papers as whole questions, each beside its estimate, listed one by one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from hwprofiles.document import Document, parse_as
from hwprofiles.files import read_document
from planner.point import Point
from planner.validation.compare import as_data, by, compare
from planner.validation.evidence import Figure

FILE = Path(__file__).parent / "published" / "papers.yaml"
SECONDS = {"s": 1.0, "ms": 1e-3}


class PaperFigure(Document):
    """One published number and the question that it answers."""

    id: str
    family: str
    """The system it is about: what figures are grouped by."""
    target: Literal["tpot_s", "ttft_s", "prefill_tokens_per_s_per_device",
                    "decode_tokens_per_s_per_device"]  # fmt: skip
    value: Annotated[float, Field(gt=0)]  # unit: the field `unit`
    unit: Literal["s", "ms", "tokens/s", "tokens/s/device"]
    source: str
    """A key of `sources`."""
    certainty: Literal["verbatim", "secondary", "derived"]
    fitted: bool = False
    """Whether a shipped number was fitted on it."""
    point: dict[str, Any]

    def measured(self, point: Point) -> float:
        """The published value in the target's own unit.

        Tokens a second of one user are 1/TPOT, of one prompt isl/TTFT.
        """
        if self.unit in SECONDS:
            return self.value * SECONDS[self.unit]
        if self.unit == "tokens/s/device":
            return self.value
        return (1.0 if self.target == "tpot_s" else float(point.isl)) / self.value


class PaperFigures(Document):
    """The curated set."""

    schema_version: Literal[1] = 1
    sources: dict[str, str]
    figures: tuple[PaperFigure, ...]


@cache
def paper_figures() -> dict[str, Figure]:
    """Every shipped figure by its id."""
    found = parse_as(PaperFigures, read_document(FILE), what="figures of papers")
    return {figure.id: _figure(figure, found.sources[figure.source]) for figure in found.figures}


def _figure(figure: PaperFigure, source: str) -> Figure:
    point = parse_as(Point, figure.point, what=f"point of {figure.id}")
    tags = {
        "source": figure.family, "engine": point.backend, "machine": str(point.device),
        "model": str(point.model), "mode": point.mode, "precision": str(point.precision),
    }  # fmt: skip
    asked = point.model_dump(mode="json", exclude_none=True)
    notes = ("fitted on",) if figure.fitted else ()
    return Figure(figure.id, asked, figure.target, figure.measured(point), source, "paper", notes,
                  tags=tags)  # fmt: skip


def assess_papers() -> dict[str, Any]:
    """Each figure beside its estimate, and scores by paper."""
    figures = paper_figures()
    table = compare(list(figures.values()))
    return {
        "by_source": as_data(by(table, "source")),
        "figures": [
            {"id": row["id"], "paper": row["source"], "target": row["target"],
             "measured": row["measured"], "typical": row["typical"],
             "error_ratio": row["typical"] and row["typical"] / row["measured"] - 1,
             "inside": row["typical"] is not None and row["low"] <= row["measured"] <= row["high"],
             "fitted": bool(figures[row["id"]].notes), "error": row["error"]}
            for row in table.sort("source", "id").iter_rows(named=True)
        ],
        "unanswered_count": table.filter(pl.col("typical").is_null()).height,
    }  # fmt: skip


def papers_page(found: dict[str, Any]) -> list[str]:
    """The section of the accuracy page."""
    lines = ["## Figures of papers", "",
             "Each with its citation in `planner/validation/published/papers.yaml`; not counted in "
             "the tables and gates above.", "",
             "| figure | paper | quantity | published | estimated | error | in interval |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found["figures"]:
        name = f"{row['id']} (fitted on)" if row["fitted"] else row["id"]
        if row["typical"] is None:
            lines.append(
                f"| {name} | {row['paper']} | {row['target']} | – | {row['error']} | – | |"
            )
            continue
        lines.append(
            f"| {name} | {row['paper']} | {row['target']} | {_shown(row, 'measured')} | "
            f"{_shown(row, 'typical')} | {row['error_ratio']:+.1%} | "
            f"{'yes' if row['inside'] else 'no'} |"
        )
    return [*lines, ""]


def _shown(row: dict[str, Any], name: str) -> str:
    seconds = row["target"].endswith("_s") and "per_s" not in row["target"]
    return f"{1e3 * row[name]:.4g} ms" if seconds else f"{row[name]:.4g}"
