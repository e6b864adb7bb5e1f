"""Fit profiles from tables that others measured, and say how far off they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from api.output import Output
from hwprofiles.errors import MoesaicError, unknown_name

SOURCES = ("aiconfigurator", "infersim", "llmservingsim", "simllm", "serving")
"""What `moesaic calibrate --from` can read."""


def refit(
    source: str, system: str | None, folder: Path, output: Output, tables: Path | None = None
) -> None:
    """Fit every engine of a system, write the profiles and show their error on held-out shapes.

    Args:
        source: a name of `SOURCES`.
        system: system folder of the tables, such as `h200_sxm`.
        folder: where the profiles go.
        output: where the report goes.
        tables: folder of tables to read instead of the installed package's.

    Raises:
        MoesaicError: `unknown_name` for a source or system, `invalid` when the tables are absent.
    """
    if source not in SOURCES:
        raise unknown_name("source of measurements", source, SOURCES)
    if source == "serving":
        refit_serving(tables, folder, output)
        return
    systems, fit = _reader(source, tables)
    if system is None:
        raise MoesaicError(
            "invalid", f"--from {source} needs --system; known: {', '.join(systems)}", "/system"
        )
    if system not in systems:
        raise unknown_name("system", system, systems)
    folder.mkdir(parents=True, exist_ok=True)
    output.note(f"fitting {system} into {folder}")
    cards = fit(system, folder)
    output.show(report_of(cards), lambda: report_table(cards))


CHECKOUTS = {
    "infersim": "the folder bench_data of a checkout of github alibaba/InferSim",
    "llmservingsim": "the folder profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1 of a "
    "checkout of github casys-kaist/LLMServingSim",
    "simllm": "the folder of collectives.csv, made from github openfabric-systems/simllm",
}
"""Sources that are no package: what --tables has to name."""


def refit_serving(tables: Path | None, folder: Path, output: Output) -> None:
    """Fit the engine layer on tables of serving figures and write it as `serving.yaml`.

    Raises:
        MoesaicError: `invalid` without tables.
    """
    from planner.validation.evidence import read_evidence
    from planner.validation.fit_file import write_fit
    from planner.validation.fitting import fit_engine_layer

    paths = sorted(tables.glob("serving*.csv")) if tables is not None else []
    if not paths:
        raise MoesaicError(
            "invalid", "--from serving needs --tables: a folder of serving*.csv, the columns as in "
            "planner/validation/published/serving.csv", "/tables",
        )  # fmt: skip
    output.note(f"fitting the engine layer on {', '.join(path.name for path in paths)}")
    fit = fit_engine_layer(read_evidence(paths))
    folder.mkdir(parents=True, exist_ok=True)
    write_fit(fit, folder / "serving.yaml")
    card = fit.model_dump(mode="json", exclude={"tpot": {"terms"}, "ttft": {"terms"}})
    output.show(card, lambda: _fit_text(card))


def _fit_text(card: dict[str, Any]) -> str:
    lines = [f"engine layer fitted {card['date']} on {card['rule']}", ""]
    lines += [
        f"{name}_s: {card[name]['rows_count']} rows, median error "
        f"{card[name]['held_out_median_ratio']:.1%} on {card[name]['held_out_count']} held out"
        for name in ("tpot", "ttft")
    ]
    return "\n".join([*lines, *(f"{k}: {v:.1%}" for k, v in card["left_out_ratio"].items())])


Fit = Callable[[str, Path], list[dict[str, Any]]]


def _reader(source: str, tables: Path | None) -> tuple[dict[str, str], Fit]:
    """Systems a source knows, and what fits one of them into a folder."""
    if source in CHECKOUTS:
        from hwprofiles.calibration import infersim, simllm, vllm_layers

        if tables is None:
            raise MoesaicError(
                "invalid", f"--from {source} needs --tables: {CHECKOUTS[source]}", "/tables"
            )
        readers = {"infersim": infersim, "llmservingsim": vllm_layers, "simllm": simllm}
        root, reader = tables, readers[source]
        return reader.SYSTEMS, lambda system, folder: reader.fit_all(root, system, folder)
    from hwprofiles.calibration.aiconfigurator import SYSTEMS, data_root
    from hwprofiles.calibration.profiles import fit_all

    return SYSTEMS, lambda system, folder: fit_all(data_root(tables), system, folder)


def report_of(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object a profile: where it comes from, and each table's error on what was held out."""
    from hwprofiles.calibration.profiles import summary

    return [
        {**{name: value for name, value in card.items() if name != "tables"},
         "tables": summary(card)}
        for card in cards
    ]  # fmt: skip


def report_table(cards: list[dict[str, Any]]) -> str:
    """The report as a plain table, one line a fitted table."""
    from reports.text import text_table

    rows = [
        [
            card["backend"], table["kernel"], table["keys"], str(table["rows"]),
            str(table["shapes"]), f"{table['median']:.1%}", f"{table['p90']:.1%}",
            f"{table['coverage']:.0%}",
        ]
        for card in report_of(cards)
        for table in card["tables"]
    ]  # fmt: skip
    head = f"{cards[0]['device']} from {cards[0]['source']}"
    columns = ["engine", "kernel", "formats", "rows", "shapes", "median error", "p90",
               "in the interval"]  # fmt: skip
    return f"{head}\n\n{text_table(columns, rows)}"
