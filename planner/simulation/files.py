"""Simulation questions read from files, and tables written to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from hwprofiles.files import apply_overrides, read_document
from planner.scenario import inline_files
from planner.simulation.question import SimulationQuestion


def read_question(path: Path, overrides: tuple[str, ...] = ()) -> SimulationQuestion:
    """Read a question with `--set` overrides; files it names count from its own folder.

    Raises:
        MoesaicError: `invalid` for a malformed question, `unknown_name` for a model or cluster.
    """
    data = read_document(path)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{path} holds no simulation; it needs model and load", "/")
    data = apply_overrides(data, overrides)
    _from_folder(data.get("load"), path.parent)
    if isinstance(data.get("load"), dict):
        _from_folder(data["load"].get("lengths"), path.parent)
    return SimulationQuestion.parse(inline_files(data, path.parent), what="simulation")


def _from_folder(holder: Any, folder: Path) -> None:  # noqa: ANN401 - plain data
    if isinstance(holder, dict) and isinstance(holder.get("file"), str):
        holder["file"] = str(folder / holder["file"])


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table as CSV or Parquet, by the path's ending.

    Raises:
        MoesaicError: `invalid` for another ending or a place that cannot be written.
    """
    try:
        if path.suffix == ".csv":
            table.write_csv(path)
        elif path.suffix == ".parquet":
            table.write_parquet(path)
        else:
            raise MoesaicError("invalid", f"cannot write a table to {path}; known: .csv, .parquet")
    except OSError as error:
        raise MoesaicError("invalid", f"cannot write {path}: {error.strerror}") from error
