"""The whole story on one screen: scenario → candidates → work → seconds → choice → plan."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.errors import MoesaicError
from hwprofiles.files import apply_overrides, read_document
from planner.answer import build_plan
from planner.machines import price_machines
from planner.plan import Plan
from planner.scenario import Scenario, inline_files
from planner.search.assignment import choose, within_limits
from planner.search.explanation import why_infeasible


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
    data = read_document(path)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{path} holds no scenario; see tests/scenarios", "/")
    return parse_scenario(inline_files(apply_overrides(data, overrides), path.parent))
