"""A network's measurements as small tables: written from a run's folder, read again for replay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.measurement import MEASUREMENT, Journal
from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump, write_text

SHIPPED = Path(__file__).parents[1] / "evidence" / "network"
"""The run that the page shows."""
ROLES = {"fit": "measurements.jsonl", "held out": "held-out.jsonl", "layer": "layers.jsonl"}
COLUMNS = (
    "role", "device", "backend", "backend_version", "kernel", "library", "dtype", "devices",
    "nodes", "message_bytes", "m", "n", "k", "bytes", "tokens", "hidden", "inter", "top_k",
    "median_s", "min_s", "spread_ratio", "samples_count", "dropped_count", "rounds_count",
    "steal_ratio", "foreign_ratio", "disturbed", "measured_at",
)  # fmt: skip
"""What a row of the table says; "role" tells what is fitted from what is only predicted."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """Measured rows: those the profile is fitted to, those held out, and layers in both orders."""

    environment: Environment
    fitted: Sequence[Record]
    held_out: Sequence[Record]
    layers: Sequence[Record]


def of_run(folder: Path) -> Records:
    """The records of a run; disturbed ones are left out.

    Raises:
        MoesaicError: `invalid` when a file cannot be read.
    """
    path = folder / "environment.json"
    if not path.exists():
        raise MoesaicError("invalid", f"{folder} holds no network calibration", "/network")
    environment = parse_as(Environment, json.loads(path.read_text(encoding="utf-8")))
    found = {
        role: _middle([Journal(path / name).read() for path in rounds_of(folder)])
        for role, name in ROLES.items()
    }
    return Records(environment, found["fit"], found["held out"], found["layer"])


def rounds_of(folder: Path, count: int = 9) -> list[Path]:
    """Folders of the rounds in which everything was measured once."""
    return [folder / f"round-{number}" for number in range(1, count + 1)]


def _middle(rounds: Iterable[Iterable[Record]]) -> list[Record]:
    """Of each row the round with the middle median; its minimum and counts are those of all.

    Disturbed records are left out.
    """
    by_row: dict[str, list[Record]] = {}
    for records in rounds:
        for record in records:
            if not record.get("disturbed"):
                by_row.setdefault(str(record["id"]), []).append(record)
    return [_merged(sorted(found, key=lambda r: float(r["median_s"]))) for found in by_row.values()]


def _merged(found: Sequence[Record]) -> Record:
    middle = found[(len(found) - 1) // 2]
    sums = {name: sum(r[name] for r in found) for name in ("samples_count", "dropped_count")}
    return {**middle, **sums, "min_s": min(r["min_s"] for r in found), "rounds_count": len(found)}


def write_evidence(run: Records, folder: Path) -> None:
    """Write `rows.csv` and `environment.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"role": role, **{name: record.get(name) for name in COLUMNS[1:]}}
        for role, records in zip(ROLES, (run.fitted, run.held_out, run.layers), strict=True)
        for record in records
    ]
    table = pl.DataFrame(rows, schema=_kinds(), strict=False)
    short = pl.col("^.*_(s|ratio)$").round_sig_figs(5)
    table.with_columns(short).write_csv(folder / "rows.csv")
    text = dump(run.environment.model_dump(mode="json"), "json")
    write_text(folder / "environment.json", text)


def read_evidence(folder: Path = SHIPPED) -> Records:
    """Read what `write_evidence` wrote."""
    table = pl.read_csv(folder / "rows.csv", schema=_kinds())
    by_role = {role: list(_records(table, role)) for role in ROLES}
    text = (folder / "environment.json").read_text(encoding="utf-8")
    environment = parse_as(Environment, json.loads(text))
    return Records(environment, by_role["fit"], by_role["held out"], by_role["layer"])


def _kinds() -> dict[str, type[pl.DataType]]:
    return {name: MEASUREMENT.get(name, pl.String) for name in COLUMNS}


def _records(table: pl.DataFrame, role: str) -> Iterable[Record]:
    for number, row in enumerate(table.filter(pl.col("role") == role).to_dicts()):
        known = {name: value for name, value in row.items() if value is not None}
        yield {"id": f"{role}-{number}", **{k: v for k, v in known.items() if k != "role"}}
