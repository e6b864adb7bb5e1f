"""Plans rendered as self-contained HTML: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from planner.plan import Plan, Pool
from reports import charts, views


@dataclass(frozen=True)
class IndexEntry:
    """One line of the index: a page, or why there is none."""

    name: str
    page: str
    text: str
    failed: bool


TEMPLATES = Path(__file__).parent / "templates"


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def render_plan(plan: Plan) -> str:
    """One page: the answer, the ranking, memory, time, frontier, what bound and what lost."""
    return _template("plan.html").render(
        plan=plan,
        views=views,
        memory_bar=_memory_bar,
        time_bars=_time_bars,
        frontier=Markup(_frontier(plan)),  # noqa: S704 - our own SVG; every text in it is escaped
        title=views.title(plan),
    )


def _memory_bar(pool: Pool) -> Markup:
    used, capacity = views.gib(pool.memory.total_bytes), views.gib(pool.memory.capacity_bytes)
    label = f"{views.ROLE[pool.role]}: {used} of {capacity} on the fullest device"
    return Markup(charts.stacked_bar(views.memory_rows(pool), label))  # noqa: S704


def _time_bars(pool: Pool) -> Markup:
    bars = []
    for phase, stages in pool.breakdown.items():
        total = sum(stage.seconds_s for stage in stages)
        parts = [
            (
                views.STAGE.get(s.stage, s.stage),
                s.share_ratio,
                f"{views.number(s.seconds_s * 1e3)} ms",
            )
            for s in stages
        ]
        label = f"{phase} pass, {views.number(total * 1e3)} ms"
        bars.append(charts.stacked_bar(parts, label))
    return Markup("".join(bars))  # noqa: S704


def _frontier(plan: Plan) -> str:
    points: list[charts.Point] = [
        (p.output_tokens_per_s_per_user, p.output_tokens_per_s_per_device,
         "meets" if p.meets_limits else "misses",
         f"{p.label}: {views.number(p.output_tokens_per_s_per_user)} tokens/s/user, "
         f"{views.number(p.output_tokens_per_s_per_device)} tokens/s/device")
        for p in plan.frontier
    ]  # fmt: skip
    points.append((1 / plan.tpot_s.typical, plan.output_tokens_per_s_per_device.typical, "chosen",
                   f"chosen: {views.headline(plan)}"))  # fmt: skip
    return charts.scatter(points, "tokens/s/user", "output tokens/s/device")


def render_index(entries: Sequence[IndexEntry]) -> str:
    """The index of a folder of pages."""
    return _template("index.html").render(entries=entries, title=f"{len(entries)} questions")
