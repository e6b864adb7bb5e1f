"""`moesaic simulate`: what a service does under load, request by request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import Output, output_options
from hwprofiles.errors import MoesaicError

if TYPE_CHECKING:
    import polars as pl

    from hwprofiles.document import Document
    from planner.simulation.question import SimulationQuestion

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_options
@click.option(
    "--requests",
    "requests_path",
    type=_PATH,
    help="Write one row a request (.csv, .jsonl, .parquet), in parts while it runs.",
)
@click.option(
    "--timeline",
    "timeline_path",
    type=_PATH,
    help="Write queues and KV use over time (.csv, .parquet).",
)
@click.option(
    "--trace",
    "trace_path",
    type=_PATH,
    help="Write a Chrome/Perfetto trace (.json), or its slices as a table (.csv, .parquet).",
)
@click.option("--html", type=_PATH, help="Also write one self-contained HTML page.")
def command(
    file: Path, form: str, out: Path | None, overrides: tuple[str, ...], quiet: bool,
    **paths: Path | None,
) -> None:  # fmt: skip
    """Simulate what FILE describes (YAML or JSON): by default a service under load.

    A service names model, cluster, layout, engine settings and a load: a trace (Mooncake, Azure,
    LLMServingSim), arrivals at a rate (poisson, gamma, ramp) or users in a closed loop; the answer
    are percentiles. With `kind` FILE asks something else:

    \b
    pass          one forward pass, whole and in micro-batches that hide the exchange
    schedule      a training pipeline: gpipe, 1f1b, interleaved, dualpipe
    offload       decoding with experts in storage: cache, prefetch, tokens a second
    expert_queue  experts one at a time on a small device, against token order
    scaling       every way to change a worker's ranks: phases, downtime, memory

    \b
    Example:
    moesaic simulate tests/scenarios/simulate/qwen3-poisson.yaml --requests requests.csv
    moesaic simulate tests/scenarios/simulate/pass-deepseek-prefill.yaml --trace pass.json
    """
    from planner.simulation.files import question_of_kind, read_data, serving_question
    from planner.simulation.kinds import kind_of

    output = Output(form, out, quiet)
    data = read_data(file, overrides)
    kind = kind_of(data)
    if kind is not None:
        if paths["requests_path"] or paths["timeline_path"]:
            raise MoesaicError(
                "invalid", f"a {data['kind']} has no requests or queues; use --trace or --out"
            )
        question = question_of_kind(kind, data, file.parent)
        _other(output, data["kind"], question, paths)
    else:
        _serve(output, serving_question(data, file.parent), paths)


def _serve(output: Output, question: SimulationQuestion, paths: dict[str, Path | None]) -> None:
    """Run a service under load, write the tables that were asked for, show percentiles."""
    from planner.simulation.files import write_table
    from planner.simulation.simulate import simulate
    from reports.simulation_text import simulation_text

    requests_path, timeline_path = paths["requests_path"], paths["timeline_path"]
    quiet = output.quiet
    with _progress(question, quiet=quiet) as tell:
        answer, run, requests = simulate(question, requests_path=requests_path, on_progress=tell)
    if requests_path is not None:
        output.note(f"wrote {requests_path}")
    if timeline_path is not None:
        write_table(timeline_path, run.timeline.table())
        output.note(f"wrote {timeline_path}")
    if paths["trace_path"] is not None or paths["html"] is not None:
        from planner.simulation.slices import load_counters, request_slices

        slices = request_slices(requests)
        counters = load_counters(run.timeline.table())
        _draw(output, answer, paths, (slices, counters))
    output.show(answer.model_dump(mode="json"), lambda: simulation_text(answer))


def _other(output: Output, name: str, question: Document, paths: dict[str, Path | None]) -> None:
    """Answer a question of another kind."""
    from planner.simulation.kinds import KINDS
    from reports.simulation_text import facts_text

    answer, slices = KINDS[name].answer(question)
    if paths["trace_path"] is not None and slices is None:
        raise MoesaicError("invalid", f"{name} has no timeline to trace; --out and --html work")
    _draw(output, answer, paths, (slices, None))
    output.show(answer.model_dump(mode="json"), lambda: facts_text(answer))


def _draw(
    output: Output, answer: Document, paths: dict[str, Path | None],
    drawn: tuple[pl.DataFrame | None, pl.DataFrame | None],
) -> None:  # fmt: skip
    """Write timeline and page where they were asked for."""
    slices, counters = drawn
    trace_path, html = paths["trace_path"], paths["html"]
    if trace_path is not None and slices is not None:
        _timeline(output, trace_path, slices, counters)
    if html is not None:
        from hwprofiles.files import write_text
        from reports.simulation_page import render_simulation

        write_text(html, render_simulation(answer, slices))
        output.note(f"wrote {html}")


def _timeline(
    output: Output, path: Path, slices: pl.DataFrame, counters: pl.DataFrame | None
) -> None:
    """Write slices for a trace viewer, or as a table for a Gantt chart."""
    from planner.formats.perfetto import write_perfetto
    from planner.simulation.files import write_table

    if path.suffix == ".json":
        write_perfetto(path, slices, counters)
    else:
        write_table(path, slices)
    output.note(f"wrote {path}")


@contextmanager
def _progress(
    question: SimulationQuestion, *, quiet: bool
) -> Iterator[Callable[[int, int, float], None] | None]:
    """Show simulated and real time on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns: tuple[Any, ...] = (
        TextColumn("run {task.fields[run]}"), BarColumn(), TextColumn("{task.completed} requests"),
        TextColumn("{task.fields[now]:.1f} s simulated"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=question.requests, run=1, now=0.0)

        def tell(run: int, count: int, now_s: float) -> None:
            bar.update(task, completed=count, run=run + 1, now=now_s)

        yield tell
