"""Published serving figures as questions this project can answer, each with its measured value.

Columns of a table of figures: id, model, hardware, n_devices, interconnect, parallelism, precision,
framework, phase, isl, osl, batch_or_concurrency, metric, value, unit, source, certainty, notes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_text
from planner.validation.layout_text import Reading, read_layout
from planner.validation.naming import device_name, engine_name, model_name, precision_name

COLUMNS = ("id", "model", "hardware", "n_devices", "interconnect", "parallelism", "precision",
           "framework", "phase", "isl", "osl", "batch_or_concurrency", "metric", "value", "unit",
           "source", "certainty", "notes")  # fmt: skip
MTP_ACCEPTANCE = 0.7
"""Share of first drafts that DeepSeek's MTP module gets right, lower end of published 70-90 %
(xDeepServe, arXiv:2508.02520; CloudMatrix384, arXiv:2506.12708)."""
DEVICES_PER_NODE = 8
Point = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One measured number and the question that it answers."""

    id: str
    point: Point
    target: str
    """Field of an estimate: ttft_s, tpot_s, output_tokens_per_s_per_device, …"""
    value: float
    """SI."""
    source: str
    setting: str
    """closed_loop, open_loop or offline."""
    notes: tuple[str, ...] = ()
    statistic: str = "mean"
    """mean or median over requests."""
    tags: dict[str, str] = field(default_factory=dict)
    """What errors are grouped by: source, engine, machine, family, model, precision."""


@dataclass(frozen=True)
class Refusal:
    """A row that cannot be asked, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What tables hold: figures to compare with, and rows left out."""

    figures: tuple[Figure, ...]
    refused: tuple[Refusal, ...]

    @property
    def parsed_share(self) -> float:
        """Share of rows that became figures."""
        return len(self.figures) / max(len(self.figures) + len(self.refused), 1)


def read_evidence(paths: Iterable[Path]) -> Evidence:
    """Read tables of published figures.

    Raises:
        MoesaicError: `invalid` when a file is missing or lacks a column.
    """
    figures: list[Figure] = []
    refused: list[Refusal] = []
    for path in paths:
        for row in _rows(path):
            try:
                figures.append(read_figure(row))
            except MoesaicError as error:
                refused.append(Refusal(row["id"], error.message))
    return Evidence(tuple(figures), tuple(refused))


def _rows(path: Path) -> Iterable[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    missing = set(COLUMNS) - set(reader.fieldnames or ())
    if missing:
        raise MoesaicError("invalid", f"{path} lacks the columns {', '.join(sorted(missing))}")
    return reader


def read_figure(row: dict[str, str]) -> Figure:
    """Turn one row into a figure.

    Raises:
        MoesaicError: with the reason, when the row does not say enough or says what is not served.
    """
    target, convert = _target(row)
    devices = int(row["n_devices"]) if row["n_devices"].isdigit() else None
    layout = _spread(read_layout(row["parallelism"], devices), row)
    setting, load = _load(row)
    engine, version = engine_name(row["framework"])
    point: Point = {
        "id": row["id"], "phase": "serve", "model": model_name(row["model"]),
        "device": device_name(row["hardware"]), "backend": engine,
        "precision": precision_name(row["precision"]),
        **({"backend_version": version} if version else {}),
        **_layout_fields(layout), **_lengths(row), **load,
    }  # fmt: skip
    total = devices or _devices(layout)
    tags = {
        "source": source_family(row["id"]), "engine": engine, "machine": point["device"],
        "model": point["model"], "mode": point["mode"], "precision": point["precision"],
    }  # fmt: skip
    if target == "ttft_s" and "prefix cache hits" in row["notes"]:
        raise MoesaicError("invalid", "prompts hit a prefix cache; how much is not stated")
    value = convert(_number(row), total, point)
    statistic = "median" if row["metric"].startswith("median") else "mean"
    return Figure(
        row["id"], point, target, value, row["source"], setting, layout.notes, statistic, tags
    )


def _spread(read: Reading, row: dict[str, str]) -> Reading:
    """A table of plain TP whose note says that its MoE models ran with data-parallel attention."""
    layout = read.agg
    told = "MoE rows run with attention DP" in row["notes"] and "(dense)" not in row["model"]
    if not told or layout is None or layout.dp > 1:
        return read
    spread = replace(layout, tp=1, dp=layout.tp)
    return replace(read, agg=spread, notes=(*read.notes, "attention data-parallel, by its note"))


def source_family(identifier: str) -> str:
    """The collection a row's id names: "sv-imax-…" is `imax`."""
    parts = identifier.split("-")
    return parts[1] if len(parts) > 1 else identifier


def _number(row: dict[str, str]) -> float:
    try:
        value = float(row["value"])
    except ValueError:
        raise MoesaicError("invalid", f"value {row['value']!r} is no number") from None
    if not value > 0:
        raise MoesaicError("invalid", f"value {value} is not positive")
    return value


def _layout_fields(layout: Reading) -> Point:
    if layout.agg is not None:
        fields: Point = {"mode": "agg", **layout.agg.fields()}
    else:
        fields = {"mode": "disagg", "prefill": layout.prefill, "decode": layout.decode}
    if layout.mtp_tokens:
        fields |= {"mtp_tokens": layout.mtp_tokens, "mtp_acceptance": MTP_ACCEPTANCE}
    return fields


def _devices(layout: Reading) -> int:
    if layout.agg is not None:
        return layout.agg.devices
    pools = [pool for pool in (layout.prefill, layout.decode) if pool]
    return sum(_pool_devices(pool) for pool in pools)


def _pool_devices(pool: dict[str, int]) -> int:
    return pool["tp"] * pool["dp"] * pool["pp"] * pool["workers"]


def _lengths(row: dict[str, str]) -> Point:
    if not (row["isl"].isdigit() and row["osl"].isdigit()):
        raise MoesaicError("invalid", "prompt or answer length not stated")
    return {"isl": int(row["isl"]), "osl": int(row["osl"])}


def _load(row: dict[str, str]) -> tuple[str, Point]:
    """Offered load: requests in flight, requests at once, or requests per second."""
    phase, text = row["phase"], row["batch_or_concurrency"]
    if phase.startswith("MLPerf"):
        raise MoesaicError("invalid", "MLPerf result: neither layout nor load stated")
    if phase in ("decode", "prefill"):
        raise MoesaicError("invalid", f"{phase} alone: compared in tests/published")
    rate = re.search(r"rate ([\d.]+) req/s", text)
    if rate:
        return "open_loop", {"request_rate": float(rate.group(1))}
    once = re.search(r"all (?:\d+-)?(\d+) requests", text)
    if once:
        return "offline", {"concurrency": int(once.group(1))}
    if not text.isdigit():
        raise MoesaicError("invalid", f"load {text!r} is no number of requests")
    return "closed_loop", {"concurrency": int(text)}


Convert = Callable[[float, int, Point], float]


def _identity(value: float, _devices: int, _point: Point) -> float:
    return value


def _per_device(value: float, devices: int, _point: Point) -> float:
    return value / devices


GAPS_PER_TOKEN = 2
"""inference-perf's mean gap is half of (E2E - TTFT) / (tokens - 1) in each of its 22 published runs
(0.496 to 0.500; inference-sim/training): every token counts as two gaps."""


def _twice_counted(value: float, _devices: int, _point: Point) -> float:
    return GAPS_PER_TOKEN * value


def _of_decode(value: float, devices: int, point: Point) -> float:
    """InferenceMAX divides a disaggregated deployment's output by its decode devices."""
    pool = point.get("decode")
    if not pool:
        return value
    return value * _pool_devices(pool) / devices


TARGETS: dict[str, tuple[str, Convert]] = {
    "ttft": ("ttft_s", _identity), "median_ttft": ("ttft_s", _identity),
    "mean_ttft": ("ttft_s", _identity),
    "tpot": ("tpot_s", _identity), "median_tpot": ("tpot_s", _identity),
    "mean_tpot": ("tpot_s", _identity), "mean_itl": ("itl_s", _identity),
    "mean_e2e": ("request_s", _identity), "mean_request_latency": ("request_s", _identity),
    "batch_latency": ("request_s", _identity),
    "output_tput_per_gpu": ("output_tokens_per_s_per_device", _of_decode),
    "output_tokens_per_s_per_gpu": ("output_tokens_per_s_per_device", _identity),
    "tput_per_gpu": ("total_tokens_per_s_per_device", _identity),
    "output_tokens_per_s_total": ("output_tokens_per_s_per_device", _per_device),
    "output_throughput_total": ("output_tokens_per_s_per_device", _per_device),
}  # fmt: skip
"""Published metric: field of an estimate, and how its value becomes that field's."""


def _target(row: dict[str, str]) -> tuple[str, Convert]:
    metric = row["metric"]
    if metric not in TARGETS:
        raise MoesaicError("invalid", f"metric {metric!r} is no serving estimate")
    target, convert = TARGETS[metric]
    if target == "itl_s" and "inference-perf" in row["framework"]:
        return target, _twice_counted
    if row["unit"] == "ms":
        return target, lambda value, devices, point: convert(value, devices, point) / 1000
    if row["unit"] not in ("s", "tok/s", "tok/s/GPU"):
        raise MoesaicError("invalid", f"unit {row['unit']!r} of {metric} is not known")
    return target, convert


def is_training(*names: str, share: float = 0.5) -> bool:
    """Whether whole models or machines of these names belong to the training part.

    The first 8 hex digits of SHA-256 decide, so the split needs no list and never moves.
    """
    digest = hashlib.sha256("|".join(names).encode()).hexdigest()[:8]
    return int(digest, 16) / 16**8 < share
