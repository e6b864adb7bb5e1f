"""`moesaic calibrate`: measure this machine, or take measurements of others, and fit a profile."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from api.output import FORMS, Output
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import COLLECTIVES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hwprofiles.calibration.runners.base import Runner
    from hwprofiles.calibration.session import CalibrationReport

FPGA = "fpga"
RUNNERS = ("auto", "numpy", "torch-cuda", "torch-cpu", "torch-npu")


@click.command()
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Catalogue name of what is measured; auto: what is found here; fpga: the MAC-array "
    "kernel, simulated and placed.",
)
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="auto",
    show_default=True,
    help="What runs the kernels; auto: the strongest that works here.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("calibration"),
    show_default=True,
    help="Folder for measurements, profile and report; a killed run goes on there.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    help="Measure only this kernel family; may be given again.",
)
@click.option("--quick", is_flag=True, help="Every third row, for a first look.")
@click.option(
    "--row-seconds",
    type=click.FloatRange(0.1, 600),
    default=1.5,
    show_default=True,
    help="Longest time one row may take.",
)
@click.option("--keep-disturbed", is_flag=True, help="Fit rows during which other load ran, too.")
@click.option(
    "--from",
    "source",
    metavar="PACKAGE",
    help="Fit from tables others measured instead: aiconfigurator, infersim, llmservingsim, "
    "simllm; serving fits the engine layer on tables of serving figures.",
)
@click.option(
    "--tables",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --from: folder of tables, where the package is not installed.",
)
@click.option("--system", help="With --from: system folder of the tables, such as h200_sxm.")
@click.option(
    "--import",
    "imported",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Read a file of nccl-tests, HCCL test, vLLM, SGLang, AIPerf or llama-bench "
    "instead of measuring; may be given again.",
)
@click.option("--kernel", help="With --import: the collective, where the file does not say.")
@click.option(
    "--network",
    is_flag=True,
    help="Measure exchanges between processes in network namespaces, joined by links of limited "
    "rate, and both orders of an expert layer against their prediction (Linux, torch).",
)
@click.option("--near", help="With --network: rate inside a node.  [default: 500 Mbit/s]")
@click.option("--far", help="With --network: rate across nodes.  [default: 200 Mbit/s]")
@click.option(
    "--devices",
    type=click.IntRange(1, 1_000_000),
    help="With --import: ranks, where the file does not say. Measuring with torch and with "
    "--network: processes that exchange.  [default: every accelerator, 4 on a CPU]",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 100_000),
    help="With --import: nodes, where the file does not say. With --network: nodes (2).",
)
@click.option(
    "-o",
    "form",
    type=click.Choice(FORMS),
    default="table",
    show_default=True,
    help="How the report is written to standard output.",
)
@click.option("--quiet", is_flag=True, help="No notes and no progress bar.")
def command(folder: Path, form: str, *, quiet: bool, **choices: Any) -> None:  # fmt: skip # noqa: ANN401
    """Measure this machine's kernels and fit a profile, with its error on shapes it has not seen.

    Rows during which other processes or the hypervisor took the cores are dropped and tried again.
    Every finished row is on disk before the next begins.

    \b
    moesaic calibrate --device auto --out calibration
    moesaic calibrate --out calibration --family gemm --family copy --quick
    moesaic calibrate --from aiconfigurator --system h200_sxm --out profiles
    moesaic calibrate --from serving --tables measured --out fitted
    moesaic calibrate --device fpga --out fpga
    moesaic calibrate --import all_reduce.txt --device h100-sxm --out calibration
    moesaic calibrate --network --far "100 Mbit/s" --out network
    """
    output = Output(form, None, quiet)
    if choices["source"] is not None:
        from api.refit import refit

        refit(choices["source"], choices["system"], folder, output, choices["tables"])
    elif choices["imported"]:
        _import(choices, folder, output)
    elif choices["device"] == FPGA:
        _simulate(folder, output, quick=choices["quick"])
    elif choices["network"]:
        from api.network import measure_network

        measure_network(choices, folder, output, _progress(quiet=output.quiet))
    else:
        _measure(choices, folder, output)


def _simulate(folder: Path, output: Output, *, quick: bool) -> None:
    from hwprofiles.calibration.fpga.session import calibrate_fpga

    report = calibrate_fpga(folder, quick=quick, progress=output.note)
    columns = (
        "array",
        "calls",
        "cycles a tile",
        "held-out error",
        "clock",
        "DSP",
        "LUT",
        "memories",
    )
    rows = [
        {
            "array": f"{fit.size_count} x {fit.size_count}",
            "calls": fit.calls_count,
            "cycles a tile": f"K + {fit.fill_cycles_count:g}",
            "held-out error": f"{fit.error_held_out_ratio:.2%}",
            "clock": f"{fit.clock_hz / 1e6:.0f} MHz",
            "DSP": fit.dsp_count,
            "LUT": fit.luts_count,
            "memories": fit.memory_blocks_count,
        }
        for fit in report.arrays
    ]
    output.show(report.model_dump(mode="json"), lambda: _table(columns, rows))


def _measure(choices: dict[str, Any], folder: Path, output: Output) -> None:
    from hwprofiles.calibration.harness import Limits
    from hwprofiles.calibration.runners import COLLECTIVE_LIBRARIES, choose, ranks_here
    from hwprofiles.calibration.session import Plan, run_calibration

    runner, cluster, forms = choose(choices["device"], choices["runner"], folder)
    plan = Plan(
        forms=forms,
        families=_families(choices["families"], runner),
        quick=choices["quick"],
        limits=Limits(row_s=choices["row_seconds"]),
        keep_disturbed=choices["keep_disturbed"],
        ranks=choices["devices"] or ranks_here(runner),
        collective_library=COLLECTIVE_LIBRARIES.get(runner.name, "gloo"),
    )
    output.note(f"measuring with {runner.name} {runner.version} into {folder}")
    report = run_calibration(runner, folder, plan, cluster, _progress(quiet=output.quiet))
    output.show(report.model_dump(mode="json"), lambda: report_table(report))


def _import(choices: dict[str, Any], folder: Path, output: Output) -> None:
    from hwprofiles.calibration.imports import Facts, import_files

    if choices["device"] == "auto":
        raise MoesaicError("invalid", "--import needs --device: what was measured", "/device")
    facts = Facts(choices["device"], choices["kernel"], choices["devices"], choices["nodes"])
    rows = import_files(choices["imported"], facts, folder)
    columns = ("file", "format", "kernel_rows", "serving_rows", "set_apart")
    output.show(rows, lambda: _table(columns, rows))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    from reports.text import text_table

    def cell(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return text_table(columns, [[cell(row.get(name)) for name in columns] for row in rows])


def _families(names: tuple[str, ...], runner: Runner) -> frozenset[str] | None:
    together = frozenset(COLLECTIVES) if runner.name.startswith("torch") else frozenset()
    known = runner.families | together
    for name in names:
        if name not in known:
            raise unknown_name(f"kernel family of the {runner.name} runner", name, known)
    return frozenset(names) or None


def _progress(*, quiet: bool) -> Callable[[Mapping[str, Any]], None]:
    """Show the current row on a terminal; a log file gets nothing."""
    counter = itertools.count(1)

    def show(record: Mapping[str, Any]) -> None:
        count = next(counter)
        if not quiet and sys.stderr.isatty():
            state = "disturbed" if record["disturbed"] else f"{record['median_s']:.3g} s"
            sys.stderr.write(f"\r\x1b[K{count} rows, {record['kernel']}: {state}")
            sys.stderr.flush()

    return show


def report_table(report: CalibrationReport) -> str:
    """The report as plain text: counts, error by family, what was set apart."""
    head = (
        f"{report.device}, {report.backend} {report.backend_version}: "
        f"{report.measured_count} rows measured, {report.resumed_count} found from before, "
        f"{len(report.quarantined)} set apart, {len(report.refused)} not possible"
    )
    rows = [
        {
            "family": fit.family,
            "format": fit.dtype or "-",
            "rows": fit.rows_count,
            "shapes": fit.shapes_count,
            "median error": f"{fit.error_median_ratio:.1%}",
            "p90": f"{fit.error_p90_ratio:.1%}",
            "in the interval": f"{fit.coverage_ratio:.0%}",
        }
        for fit in report.families
    ]
    parts = [head, _table(tuple(rows[0]), rows) if rows else f"nothing fitted: {report.unfitted}"]
    if report.quarantined:
        apart = [item.model_dump() for item in report.quarantined[:20]]
        parts.append("set apart:\n" + _table(("kernel", "id", "reason"), apart))
        if len(report.quarantined) > len(apart):
            parts.append(f"... and {len(report.quarantined) - len(apart)} more in quarantine.jsonl")
    return "\n\n".join(parts)
