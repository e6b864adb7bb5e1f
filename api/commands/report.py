"""`moesaic report`: plans as self-contained HTML pages, a folder of them with an index."""

from __future__ import annotations

from pathlib import Path

import click

from api.output import Output


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="HTML file for one scenario or plan; folder for a folder of them.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No notes and no progress bar.")
def command(source: Path, out: Path, quiet: bool) -> None:
    """Render SOURCE: a scenario, a finished plan (JSON), or a folder of either.

    A bad file in a folder is named on the index page and does not stop the others.

    \b
    Example:
        moesaic report tests/scenarios --out reports-out
    """
    from reports.batch import report_file, report_folder

    output = Output("table", None, quiet)
    if source.is_dir():
        failed = report_folder(source, out, show_progress=not quiet)
        output.note(
            f"wrote {out}/index.html" + (f"; {failed} could not be answered" * bool(failed))
        )
    else:
        report_file(source, out)
        output.note(f"wrote {out}")
