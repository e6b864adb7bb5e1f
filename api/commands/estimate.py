"""`moesaic estimate`: what given configurations do, one or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from api.output import Output, output_options, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.point import Estimated

CHUNK = 2000
"""Lines answered together; finished ones are written before the next are read."""


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--batch", type=click.Path(path_type=Path),
              help="JSON lines, one configuration each; answers in the same order.")  # fmt: skip
@output_options
def command(
    file: Path | None, batch: Path | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,
) -> None:  # fmt: skip
    r"""Estimate TTFT, TPOT, throughput and memory of the configuration in FILE.

    \b
    Examples:
        moesaic estimate tests/scenarios/points/qwen3-30b-h100.yaml -o json
        moesaic estimate --batch points.jsonl --out answers.jsonl
    """
    require((file is None) != (batch is None), "give FILE or --batch, one of them")
    output = Output(form, out, quiet)
    if batch is not None:
        _batch(batch, output)
    elif file is not None:
        _one(file, overrides, output)


def _one(file: Path, overrides: tuple[str, ...], output: Output) -> None:
    from hwprofiles.errors import MoesaicError
    from hwprofiles.files import apply_overrides, read_document
    from planner.estimate import estimate_one
    from planner.model_library import load_model
    from reports.text import estimate_text

    data = read_document(file)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{file} holds no configuration", "/")
    answer = estimate_one(apply_overrides(data, overrides), load_model)
    output.show(answer.model_dump(mode="json", exclude_none=True), lambda: estimate_text(answer))


def _batch(batch: Path, output: Output) -> None:
    """Stream: a killed run leaves the lines it has answered."""
    import sys

    from rich.progress import Progress

    stream = output.path.open("w", encoding="utf-8") if output.path else sys.stdout
    shown = not output.quiet and sys.stderr.isatty()
    try:
        with Progress(disable=not shown) as progress:
            task = progress.add_task("points", total=None)
            for answers in _answers(batch):
                stream.writelines(
                    answer.model_dump_json(exclude_none=True) + "\n" for answer in answers
                )
                stream.flush()
                progress.advance(task, len(answers))
    finally:
        if output.path:
            stream.close()


def _answers(batch: Path) -> Iterator[list[Estimated]]:
    from hwprofiles.errors import MoesaicError
    from hwprofiles.files import parse_text
    from planner.estimate import estimate_many
    from planner.model_library import load_model

    def read(text: str, number: int) -> object:
        try:
            return parse_text(text, f"line {number}", as_json=True)
        except MoesaicError as error:
            return error

    chunk: list[object] = []
    try:
        with batch.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    chunk.append(read(line, number))
                if len(chunk) == CHUNK:
                    yield estimate_many(chunk, load_model)
                    chunk = []
    except OSError as error:
        raise MoesaicError("invalid", f"cannot read {batch}: {error.strerror}") from error
    if chunk:
        yield estimate_many(chunk, load_model)
