"""Simulation questions read from files, and tables written to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.files import apply_overrides, read_document
from planner.scenario import inline_files
from planner.simulation.kinds import Kind
from planner.simulation.question import SimulationQuestion


def read_data(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a question of any kind as plain data, `--set` overrides applied.

    Raises:
        MoesaicError: `invalid` for a file that holds no document.
    """
    data = read_document(path)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", f"{path} holds no simulation; it needs model and load", "/")
    return apply_overrides(data, overrides)


def read_question(path: Path, overrides: tuple[str, ...] = ()) -> SimulationQuestion:
    """Read a serving question with `--set` overrides; files it names count from its own folder.

    Raises:
        MoesaicError: `invalid` for a malformed question, `unknown_name` for a model or cluster.
    """
    return serving_question(read_data(path, overrides), path.parent)


def serving_question(data: dict[str, Any], folder: Path) -> SimulationQuestion:
    """A serving question from plain data; files count from a folder."""
    _from_folder(data.get("load"), "file", folder)
    if isinstance(data.get("load"), dict):
        _from_folder(data["load"].get("lengths"), "file", folder)
    return SimulationQuestion.parse(inline_files(data, folder), what="simulation")


def question_of_kind(kind: Kind, data: dict[str, Any], folder: Path) -> Document:
    """A question of another kind from plain data; files count from a folder."""
    for field in kind.files:
        _from_folder(data, field, folder)
    return kind.question.parse(inline_files(data, folder), what="simulation")


def _from_folder(holder: Any, field: str, folder: Path) -> None:  # noqa: ANN401 - plain data
    if isinstance(holder, dict) and isinstance(holder.get(field), str):
        holder[field] = str(folder / holder[field])


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
