"""Measurements that other tools wrote: each row keeps the file, its digest and the tool."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprofiles.calibration.collective_files import hccl_rows, nccl_json_rows, nccl_text_rows
from hwprofiles.calibration.measurement import Journal, measurement_table, row_id
from hwprofiles.calibration.quarantine import reasons
from hwprofiles.calibration.serving_files import (
    aiperf_rows,
    llama_rows,
    serving_id,
    sglang_rows,
    vllm_rows,
)
from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump, make_folder, parse_text, read_text, write_text
from hwprofiles.library import cluster_for, load_device

Row = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the user says about files that do not say it themselves."""

    device: str
    kernel: str | None = None
    devices: int | None = None
    nodes: int | None = None


def import_files(paths: Sequence[Path], facts: Facts, folder: Path) -> list[Row]:
    """Read files and add their rows to a folder's journals.

    Kernel rows go to `measurements.jsonl`, serving figures to `serving.jsonl`, rows that are wrong
    by their own file or impossible to `quarantine.jsonl` with the reason. Nothing is written when
    a file cannot be read.

    Returns:
        One row a file: file, format, kernel_rows, serving_rows, set_apart.

    Raises:
        MoesaicError: `invalid` for a file of no known format or without a needed fact.
    """
    device = load_device(facts.device).name
    read = [(path, *_read(path, facts, device)) for path in paths]
    make_folder(folder)
    apart: list[Row] = []
    answer = []
    for path, form, kernels, serving in read:
        good, bad = _judged(kernels, device)
        served = [row for row in serving if "reason" not in row]
        bad += [row for row in serving if "reason" in row]
        apart += bad
        for name, rows in (("measurements.jsonl", good), ("serving.jsonl", served)):
            for row in rows:
                Journal(folder / name).append(row)
        answer.append({
            "file": path.name, "format": form, "kernel_rows": len(good),
            "serving_rows": len(served), "set_apart": len(bad),
        })  # fmt: skip
    write_text(folder / "quarantine.jsonl", "".join(dump(row, "jsonl") for row in apart))
    return answer


def _read(path: Path, facts: Facts, device: str) -> tuple[str, list[Row], list[Row]]:
    text = read_text(path)
    form, found = _recognised(path, text, facts)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    origin = {
        "device": device,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": f"{form} file {path.name}, sha256 {digest}",
    }
    rows = [row | origin for row in found]
    if not rows:
        raise MoesaicError("invalid", f"{path.name} looks like {form} but holds no result")
    if all("reason" in row for row in rows):
        raise MoesaicError("invalid", f"{path.name} holds no good result: {rows[0]['reason']}")
    if "kernel" in rows[0]:
        named = [
            row | {"id": row_id(device, row["backend"], row), "disturbed": False} for row in rows
        ]
        return form, named, []
    return form, [], [row | {"id": serving_id(row)} for row in rows]


def _recognised(path: Path, text: str, facts: Facts) -> tuple[str, list[Row]]:
    if "algbw" in text and "busbw" in text and not text.lstrip().startswith(("{", "[")):
        return "nccl-tests", list(nccl_text_rows(text, facts.kernel, facts.devices, facts.nodes))
    if "data_size(Bytes)" in text:
        return "hccl-test", list(hccl_rows(text, facts.kernel, facts.devices, facts.nodes))
    for data in _documents(path, text):
        for form, (fits, rows) in DOCUMENTS.items():
            if fits(data):
                return form, list(rows(data, facts))
    known = ", ".join(("nccl-tests", "hccl-test", *DOCUMENTS))
    raise MoesaicError("invalid", f"{path.name} is in no known format; known: {known}")


def _documents(path: Path, text: str) -> Iterator[Any]:
    """The file as one JSON document, or as lines of them (SGLang appends a line a run)."""
    try:
        yield parse_text(text, path.name, as_json=True)
    except MoesaicError:
        lines = [line for line in text.splitlines() if line.strip()]
        yield [parse_text(line, path.name, as_json=True) for line in lines]


def _judged(kernels: list[Row], device: str) -> tuple[list[Row], list[Row]]:
    if not kernels:
        return [], []
    table = measurement_table({k: v for k, v in row.items() if k != "reason"} for row in kernels)
    ranks, nodes = table["devices"].max() or 1, table["nodes"].max() or 1
    machine = cluster_for(device, int(str(ranks).split(".")[0]), int(str(nodes).split(".")[0]))
    found = [row.get("reason") or reason
             for row, reason in zip(kernels, reasons(table, machine), strict=True)]  # fmt: skip
    good = [row for row, reason in zip(kernels, found, strict=True) if reason is None]
    bad = [row | {"reason": reason} for row, reason in zip(kernels, found, strict=True) if reason]
    return good, bad


def _has(data: object, *names: str) -> bool:
    return isinstance(data, Mapping) and all(name in data for name in names)


def _first(data: object) -> object:
    return data[0] if isinstance(data, list) and data else data


DOCUMENTS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Facts], Iterator[Row]]]] = {
    "nccl-tests json": (
        lambda data: _has(data, "results", "config"),
        lambda data, facts: nccl_json_rows(data, facts.kernel, facts.devices, facts.nodes),
    ),
    "aiperf": (
        lambda data: _has(data, "time_to_first_token", "request_throughput"),
        lambda data, _: aiperf_rows(data),
    ),
    "llama-bench": (
        lambda data: _has(_first(data), "n_prompt", "n_gen", "avg_ts"),
        lambda data, _: llama_rows(data),
    ),
    "sglang": (
        lambda data: _has(_first(data), "random_input_len", "mean_ttft_ms", "output_throughput"),
        lambda data, _: sglang_rows(data),
    ),
    "vllm": (
        lambda data: _has(_first(data), "model_id", "mean_ttft_ms", "output_throughput"),
        lambda data, _: vllm_rows(data),
    ),
}
"""Format of a JSON file: how to tell it, how to read it."""
