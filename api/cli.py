"""The shell's way in: one lazily loaded command a verb, one place where errors become exits."""

from __future__ import annotations

import importlib
import sys

import click

from api.problems import exit_status
from hwprofiles.errors import MoesaicError

VERBS: dict[str, tuple[str, str]] = {
    "plan": ("api.commands.plan", "Which layout, parallelism and pools serve a scenario best."),
    "estimate": ("api.commands.estimate", "What one given configuration does, or a file of them."),
    "validate": ("api.commands.validate", "How far off the estimates are; exit 1 if a gate fails."),
    "time": ("api.commands.time", "How long kernels and collectives take, a file at a time."),
    "simulate": ("api.commands.simulate", "Percentiles under load, request by request."),
    "compress": (
        "api.commands.compress",
        "Bits, pruning, merging of experts, with their costs.",
    ),
    "place": ("api.commands.place", "Experts onto devices, with copies, balanced and proven."),
    "models": ("api.commands.models", "What is known of a model: parameters, memory, structure."),
    "hardware": ("api.commands.hardware", "What is known of devices and clusters, with sources."),
    "calibrate": ("api.commands.calibrate", "Measure this machine; a profile with its own error."),
    "report": ("api.commands.report", "Plans as self-contained HTML pages, a folder at a time."),
    "serve": ("api.commands.serve", "The REST service on this machine."),
    "doctor": ("api.commands.doctor", "Is this installation whole, and what can it do here."),
}
"""Verb: module that holds its `command`, one line of help."""


class Verbs(click.Group):
    """A group that imports a verb's module only when that verb runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the verbs in the order of `VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List verbs without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.command(cls=Verbs)
@click.version_option(package_name="moesaic", prog_name="moesaic")
def group() -> None:
    """Plan Mixture-of-Experts models on the machines you have, each number sourced and bounded.

    \b
    Exit status: 0 done, 1 our fault, 2 invalid question, 3 no feasible answer,
    4 outside the evidence.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every `MoesaicError` ends as one line on standard error."""
    try:
        group.main(args=arguments, prog_name="moesaic", standalone_mode=False)
    except MoesaicError as error:
        click.echo(f"moesaic: {error.kind}: {error}", err=True)
        sys.exit(exit_status(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("moesaic: stopped", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
