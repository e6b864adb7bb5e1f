"""`moesaic estimate`: what given configurations do, one or a file of them."""

from __future__ import annotations

from pathlib import Path

import click

from api.output import Output, output_options, require

CHUNK = 10_000
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
    """Estimate TTFT, TPOT, throughput and memory of the configuration in FILE.

    \b
    Examples:
        moesaic estimate tests/scenarios/points/qwen3-30b-h100.yaml -o json
        moesaic estimate tests/scenarios/points/smallthinker-8gib.yaml
        moesaic estimate tests/scenarios/points/pangu-h2p.yaml
        moesaic estimate POINT.yaml --set "lengths={file: trace.jsonl}"
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
    from planner.scenario import inline_lengths
    from reports.text import estimate_text

    data = read_document(file)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{file} holds no configuration", "/")
    asked = inline_lengths(apply_overrides(data, overrides), file.parent)
    answer = estimate_one(asked, load_model)
    output.show(answer.model_dump(mode="json", exclude_none=True), lambda: estimate_text(answer))


def _batch(batch: Path, output: Output) -> None:
    import itertools

    from pydantic_core import to_json

    from api.lines import parsed_lines, written
    from planner.estimate import estimate_rows
    from planner.model_library import load_model

    with written(output) as write:
        lines = parsed_lines(batch)
        while chunk := list(itertools.islice(lines, CHUNK)):
            write([to_json(row).decode() for row in estimate_rows(chunk, load_model)])
