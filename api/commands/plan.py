"""`moesaic plan`: which layout, parallelism and pools serve a scenario best."""

from __future__ import annotations

from pathlib import Path

import click

from api.output import Output, output_options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_options
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path),
              help="Also write one self-contained HTML page.")  # fmt: skip
def command(
    file: Path, form: str, out: Path | None, overrides: tuple[str, ...], quiet: bool,
    html: Path | None,
) -> None:  # fmt: skip
    """Choose how to serve the scenario in FILE (YAML or JSON).

    Prints the ranked ways to serve it, the limits that bound, and what lost and why. A FILE with
    `classes` is a fleet: several models and classes of traffic share `machines`, and the answer
    is how many workers of which configuration each class gets. A FILE with `design` asks which
    sizes of a model serve fastest on a machine: a frontier of speed over active parameters.

    \b
    Examples:
        moesaic plan tests/scenarios/deepseek-v3-h200.yaml --html plan.html
        moesaic plan tests/scenarios/shared-fleet.yaml
        moesaic plan tests/scenarios/design-pangu-800i.yaml
    """
    from hwprofiles.files import write_text
    from planner.pipeline import answer, read_question
    from reports.text import answer_text

    output = Output(form, out, quiet)
    question = read_question(file, overrides)
    with output.progress("designs") as seen:
        plan = answer(question, seen)
    if html is not None:
        from reports.pages import render_answer

        write_text(html, render_answer(plan))
        output.note(f"wrote {html}")
    output.show(plan.model_dump(mode="json"), lambda: answer_text(plan))
