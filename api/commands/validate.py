"""`moesaic validate`: how far off the estimates are, by source, engine, machine and model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from api.output import Output, output_options


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A folder of more tables of figures, or one table, of the same columns.",
)
@click.option(
    "--page",
    "page_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report as a Markdown page.",
)
@output_options
def command(
    data: Path | None, page_path: Path | None, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,  # noqa: ARG001 - one signature for all verbs
) -> None:  # fmt: skip
    """Compare estimates with published figures; exit 1 when a gate is missed.

    Example: moesaic validate -o json --out accuracy.json
    """
    from hwprofiles.errors import MoesaicError
    from hwprofiles.files import write_text
    from planner.validation.accuracy import assess, page, shipped

    paths = shipped()
    if data is not None:
        paths = [data] if data.is_file() else sorted(data.glob("serving*.csv"))
    if not paths:
        raise MoesaicError(
            "invalid", f"{data} holds no table of figures; tables are named serving*.csv", "/data"
        )
    report = assess(paths)
    output = Output(form, out, quiet)
    output.show(report, lambda: page(report))
    if page_path is not None:
        write_text(page_path, page(report))
        output.note(f"wrote {page_path}")
    for text in report["missed"]:
        output.note(f"missed: {text}")
    if report["missed"]:
        sys.exit(1)
