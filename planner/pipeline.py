"""The whole story on one screen: scenario → candidates → work → seconds → choice → plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from hwprofiles.errors import MoesaicError
from hwprofiles.files import apply_overrides, read_document
from planner.answer import build_plan
from planner.machines import price_machines
from planner.plan import Plan
from planner.scenario import Scenario, inline_files
from planner.search.assignment import choose, within_limits
from planner.search.explanation import why_infeasible

if TYPE_CHECKING:
    from planner.design import Design
    from planner.design_plan import DesignPlan
    from planner.fleet import Fleet
    from planner.fleet_plan import FleetPlan


def make_plan(scenario: Scenario) -> Plan:
    """Choose how to serve a scenario, with a proof, reasons and intervals.

    Raises:
        MoesaicError: `infeasible`, naming the limit that could not be met and by how much.
    """
    candidates, priced = price_machines(scenario)
    table = within_limits(candidates, scenario)
    choice = choose(table, scenario)
    if choice is None:
        raise why_infeasible(table, scenario)
    return build_plan(scenario, table, priced, choice)


def parse_scenario(data: object) -> Scenario:
    """Read a scenario from plain data; names are resolved here."""
    return Scenario.parse(data, what="scenario")


def read_scenario(path: Path, overrides: tuple[str, ...] = ()) -> Scenario:
    """Read a scenario file with `--set` overrides; files it names count from its own folder."""
    return parse_scenario(inline_files(_read(path, overrides), path.parent))


def _read(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    data = read_document(path)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{path} holds no scenario; see tests/scenarios", "/")
    return apply_overrides(data, overrides)


Question = Union[Scenario, "Fleet", "Design"]
Answer = Union[Plan, "FleetPlan", "DesignPlan"]


def read_question(path: Path, overrides: tuple[str, ...] = ()) -> Question:
    """Read any question that `answer` takes, as `read_scenario` does."""
    from planner.fleet import inline_class_files

    data = _read(path, overrides)
    inline = inline_class_files if "classes" in data else inline_files
    return parse_question(inline(data, path.parent))


def parse_question(data: object) -> Question:
    """Read a scenario; a fleet where the document has `classes`; a design where it has `design`."""
    if isinstance(data, dict) and "classes" in data:
        from planner.fleet import Fleet

        return Fleet.parse(data, what="fleet")
    if isinstance(data, dict) and "design" in data:
        from planner.design import Design

        return Design.parse(data, what="design")
    return parse_scenario(data)


def answer(question: Question, seen: Callable[[int, int], None] | None = None) -> Answer:
    """Answer a question by its kind; `seen` hears how much of a long one is done."""
    if isinstance(question, Scenario):
        return make_plan(question)
    from planner.design import Design

    if isinstance(question, Design):
        from planner.design_answer import plan_design

        return plan_design(question, seen)
    from planner.fleet_answer import plan_fleet

    return plan_fleet(question)
