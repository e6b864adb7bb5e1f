"""`moesaic doctor`: is this installation whole, and what can it do here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import version

import click

from api.output import Output, output_options
from hwprofiles.errors import MoesaicError


def _catalogue() -> str:
    from hwprofiles import library

    for name in library.names("devices"):
        library.load_device(name)
    for name in library.names("clusters"):
        library.load_cluster(name)
    return f"{len(library.names('devices'))} devices, {len(library.names('clusters'))} clusters"


def _solver() -> str:
    from planner.search.solver import Programme

    programme = Programme("check", maximise=True)
    most, best = 7, 3  # the largest whole x with 2x <= 7
    whole = programme.integer("x", 0, most)
    programme.require("half", programme.total([(whole, 2)]) <= most)
    programme.objective(programme.total([(whole, 1)]))
    found = programme.solve().objective
    if found != best:
        raise MoesaicError("internal", f"the solver answers {found} where {best} is right")
    return "HiGHS solves a test programme"


def _extra(package: str, use: str) -> str:
    found = importlib.util.find_spec(package) is not None
    return f"{'installed' if found else 'absent'} ({use})"


CHECKS: dict[str, Callable[[], str]] = {
    "python": lambda: sys.version.split()[0],
    "moesaic": lambda: version("moesaic"),
    "catalogue": _catalogue,
    "solver": _solver,
    "torch": lambda: _extra("torch", "measuring with torch; pip install moesaic[torch]"),
    "aiconfigurator": lambda: _extra(
        "aiconfigurator_core", "fitting profiles; pip install moesaic[aiconfigurator]"
    ),
}
"""What is checked: a function that says what it found, or raises."""


@click.command()
@output_options
def command(form: str, out: object, overrides: tuple[str, ...], quiet: bool) -> None:
    """Check the installation; exit 1 when something needed fails.

    \b
    Example:
        moesaic doctor
    """
    from pathlib import Path

    from reports.text import text_table

    del overrides
    rows, failed = {}, []
    for name, check in CHECKS.items():
        try:
            rows[name] = check()
        except (MoesaicError, ImportError) as error:
            rows[name] = f"FAILED: {error}"
            failed.append(name)
    output = Output(form, Path(str(out)) if out else None, quiet)
    output.show(rows, lambda: text_table(["check", "found"], [[k, v] for k, v in rows.items()]))
    if failed:
        raise MoesaicError("internal", f"doctor: {', '.join(failed)} failed")
