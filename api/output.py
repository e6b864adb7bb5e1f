"""What every verb prints: table, json, yaml or jsonl, to the terminal or a whole file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump, write_text

FORMS = ("table", "json", "yaml", "jsonl")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Output:
    """Where and in which form an answer goes."""

    form: str
    path: Path | None
    quiet: bool

    def show(self, data: object, table: Callable[[], str]) -> None:
        """Write `data`, or the text that `table` makes when the form is `table`."""
        self.write(table() if self.form == "table" else dump(data, self.form))

    def write(self, text: str) -> None:
        """Write text to the chosen place."""
        if self.path is None:
            click.echo(text, nl=not text.endswith("\n"))
        else:
            write_text(self.path, text)
            self.note(f"wrote {self.path}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None] | None]:
        """A bar on a terminal, hidden until it is told of progress; none with `--quiet`."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            bar.add_task(what, total=None, visible=False)
            yield _counted(bar)

    def note(self, text: str) -> None:
        """Say something beside the answer, on standard error, unless `--quiet`."""
        if not self.quiet:
            click.echo(text, err=True)


def _counted(bar: Any) -> Callable[[int, int], None]:  # noqa: ANN401 - rich loads when needed
    """Tell a bar's only task how much is done."""

    def seen(done: int, total: int) -> None:
        bar.update(bar.task_ids[0], completed=done, total=total, visible=True)

    return seen


def output_options(command: Command) -> Command:
    """Add `-o`, `--out`, `--set`, `--quiet`, shared by every verb that answers with a document.

    The command receives `form`, `out`, `overrides` and `quiet`.
    """
    options = (
        click.option("-o", "form", type=click.Choice(FORMS), default="table", show_default=True,
                     help="How the answer is written."),
        click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
                     help="Write the answer to this file, whole or not at all."),
        click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE",
                     help="Change a field of the document: --set workload.isl=4096"),
        click.option("--quiet", is_flag=True, help="No notes and no progress bar."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def require(condition: object, message: str, path: str = "") -> None:
    """Raise `invalid` with a sentence unless the condition holds."""
    if not condition:
        raise MoesaicError("invalid", message, path)
