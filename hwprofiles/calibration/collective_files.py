"""Collective benchmarks as kernel rows: nccl-tests text and JSON, HCCL test tables.

The tools print the mean over their iterations; it stands in `median_s`, as no median is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import COLLECTIVES

Row = dict[str, Any]
_NAMES = {
    "all_reduce": "all_reduce", "allreduce": "all_reduce", "all_gather": "all_gather",
    "allgather": "all_gather", "reduce_scatter": "reduce_scatter",
    "reducescatter": "reduce_scatter", "alltoall": "all_to_all", "all_to_all": "all_to_all",
    "sendrecv": "send_recv", "send_recv": "send_recv",
}  # fmt: skip
_TYPES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "int8": "int8", "fp32": "fp32",
          "fp16": "fp16", "bfp16": "bf16", "fp8_e4m3": "fp8"}  # fmt: skip
_LINE = re.compile(
    r"^\s*(\d+)\s+(\d+)\s+(\w+)\s+(\S+)\s+(-?\d+)\s+([0-9.e+]+)\s+(\S+)\s+(\S+)\s+(\S+)"
    r"(?:\s+([0-9.e+]+)\s+(\S+)\s+(\S+)\s+(\S+))?"
)
"""size count type redop root, then time algbw busbw #wrong out of place and in place."""
_MICRO = 1e-6
_MOST_OFF = 1e-2
"""Before nccl-tests 2.13 the last column is the largest difference of a value, not a count."""


def collective(name: str | None, text: str = "") -> str:
    """Name of the kernel family, from the user or from the program's name in the file.

    Raises:
        MoesaicError: `invalid` when neither says it, `unknown_name` for another operation.
    """
    found = name
    if found is None:
        match = re.search(r"(?:Collective test starting:\s*)?\b(\w+)_(?:perf|test)\b", text)
        found = match[1] if match else None
    if found is None:
        raise MoesaicError(
            "invalid",
            "the file does not say which collective it timed; give --kernel",
            "/kernel",
        )
    if found not in _NAMES:
        raise unknown_name("collective", found, COLLECTIVES, "/kernel")
    return _NAMES[found]


def _ranks(given: int | None, found: int, what: str) -> int:
    if given or found:
        return given or found
    message = f"the file does not say how many {what} took part; give --{what}"
    raise MoesaicError("invalid", message, f"/{what}")


def nccl_text_rows(
    text: str, kernel: str | None, devices: int | None, nodes: int | None
) -> Iterator[Row]:
    """Rows of the table that nccl-tests prints; sizes are a rank's larger buffer, as in our rows.

    Wrong results are no measurement: such rows say so and are set apart. Logs of NCCL between the
    lines and indented copies are read, too.
    """
    places = re.findall(r"^\s*#\s+Rank\s+\d+.*?\bon\s+(\S+)\s+device", text, re.MULTILINE)
    family = collective(kernel, text)
    ranks = _ranks(devices, len(places), "devices")
    hosts = nodes or len(set(places)) or 1
    version = re.search(r"nccl-library=(\d+)", text)
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        times = [float(match[6])] + ([float(match[10])] if match[10] else [])
        row = _row(
            family, ranks, hosts, float(match[1]), _TYPES.get(match[3]), times,
            backend="nccl", version=version[1] if version else None,
        )  # fmt: skip
        yield row | _wrong([match[9], match[13]], counted="#wrong" in text)


def _wrong(cells: list[str | None], *, counted: bool) -> Row:
    """The reason to set a row apart, where its results were wrong."""
    for cell in cells:
        try:
            found = float(cell or 0)
        except ValueError:  # N/A: not checked
            continue
        if found > (0 if counted else _MOST_OFF):
            words = f"{found:.0f} wrong values" if counted else f"values off by {found:g}"
            return {"reason": f"the tool found {words}"}
    return {}


def nccl_json_rows(
    data: Mapping[str, Any], kernel: str | None, devices: int | None, nodes: int | None
) -> Iterator[Row]:
    """Rows of the JSON that nccl-tests writes with `-J`."""
    config = data["config"]
    places = config.get("devices") or []
    product = int(config.get("ngpus") or 0) * int(config.get("nthreads") or 1)
    ranks = _ranks(devices, len(places) or product, "devices")
    hosts = {str(p.get("host") or p.get("hostname") or "") for p in places}
    words = " ".join(str(data.get(key, "")) for key in ("args", "program", "name", "test"))
    family = collective(kernel, words)
    for result in data["results"]:
        parts = [result.get(place) or {} for place in ("out_of_place", "in_place")]
        times = [float(p["time"]) for p in parts if p.get("time") is not None]
        if not times:  # -C reports the processor's time only
            continue
        row = _row(
            family, ranks, nodes or len(hosts) or 1, float(result["size"]),
            _TYPES.get(str(result.get("type"))), times, backend="nccl",
            version=str(data.get("nccl_version") or "") or None,
        )  # fmt: skip
        yield row | _wrong([str(p.get("nwrong") or 0) for p in parts], counted=True)


def hccl_rows(
    text: str, kernel: str | None, devices: int | None, nodes: int | None
) -> Iterator[Row]:
    """Rows of an HCCL test table; it names neither collective nor ranks, so the user does.

    Lines whose check failed say so and are set apart.
    """
    family = collective(kernel, text)
    ranks = _ranks(devices, 0, "devices")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 4 or not cells[0].isdigit():  # noqa: PLR2004 - the table's four columns
            continue
        row = _row(
            family, ranks, nodes or 1, float(cells[0]), None, [float(cells[1])],
            backend="hccl", version=None,
        )  # fmt: skip
        checked = cells[3].lower() in {"success", "null"}
        yield row if checked else row | {"reason": f"the tool's check said {cells[3]}"}


def _row(  # noqa: PLR0913 - one argument a column
    family: str, ranks: int, nodes: int, size: float, form: str | None, times_us: list[float], *,
    backend: str, version: str | None,
) -> Row:  # fmt: skip
    return {
        "kernel": family,
        "devices": float(ranks),
        "nodes": float(nodes),
        "message_bytes": size,
        "dtype": form,
        "library": backend,
        "backend": backend,
        "backend_version": version,
        "median_s": times_us[0] * _MICRO,
        "min_s": min(times_us) * _MICRO,
    }
