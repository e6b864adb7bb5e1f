"""Plans rendered as self-contained HTML: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from planner.design_plan import DesignPlan
from planner.fleet_plan import FleetPlan
from planner.plan import Plan, Pool
from reports import charts, design_views, fleet_views, views


@dataclass(frozen=True)
class IndexEntry:
    """One line of the index: a page, or why there is none."""

    name: str
    page: str
    text: str
    failed: bool


TEMPLATES = Path(__file__).parent / "templates"


@cache
def template(name: str) -> Template:
    """A page's template; every text put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def render_answer(plan: Plan | FleetPlan | DesignPlan) -> str:
    """The page of any answer of `plan`."""
    if isinstance(plan, DesignPlan):
        return render_design(plan)
    return render_fleet(plan) if isinstance(plan, FleetPlan) else render_plan(plan)


def headline_of(plan: Plan | FleetPlan | DesignPlan) -> str:
    """Any answer in one sentence."""
    if isinstance(plan, DesignPlan):
        return design_views.headline(plan)
    return fleet_views.headline(plan) if isinstance(plan, FleetPlan) else views.headline(plan)


def render_design(plan: DesignPlan) -> str:
    """One page: the base beside its rival, the frontier as a plot and a table."""
    plot = charts.scatter(design_views.marks(plan), "active parameters, billions",
                          "output tokens/s/device")  # fmt: skip
    return template("design.html").render(
        plan=plan, views=design_views, title=design_views.title(plan),
        plot=Markup(plot),  # noqa: S704 - our own SVG; every text in it is escaped
    )  # fmt: skip


def render_fleet(plan: FleetPlan) -> str:
    """One page: classes, their workers, who uses which machine, what bound."""
    return template("fleet.html").render(
        plan=plan, views=fleet_views, bar=_fleet_bar, title=fleet_views.title(plan)
    )


def _fleet_bar(plan: FleetPlan, number: int) -> Markup:
    label, parts = fleet_views.machine_bar(plan.machines[number])
    names = [one.name for one in plan.classes]
    colours = [names.index(name) for name, _, _ in parts]
    return Markup(charts.stacked_bar(parts, label, colours))  # noqa: S704 - our own SVG


def render_plan(plan: Plan) -> str:
    """One page: the answer, the ranking, memory, time, frontier, what bound and what lost."""
    return template("plan.html").render(
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
    return template("index.html").render(entries=entries, title=f"{len(entries)} questions")
