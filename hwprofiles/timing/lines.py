"""Lines of `time --batch`: plain kernel rows in, seconds or an error a line out, in order."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import COLLECTIVES, DTYPES, EXCHANGES, KERNEL_ROW, KERNELS
from hwprofiles.library import cluster_for, load_device
from hwprofiles.timing.answer import time_kernels
from hwprofiles.timing.rows import TIMES

Line = Mapping[str, Any]
ABOUT = {"id", "device", "backend", "skew"}
FORMATS = {"dtype", "kv_dtype"}
NUMBERS = {name for name, kind in KERNEL_ROW.items() if kind == pl.Float64}
MAY_BE_ZERO = {"past", "busy_ratio", "active_experts"}
SCHEMA: dict[str, type[pl.DataType]] = KERNEL_ROW | {"skew_alpha": pl.Float64}


def time_lines(lines: Iterable[object], *, extrapolate: bool = False) -> list[str]:
    """Answer lines as JSON text, one each, in the order they came.

    Args:
        lines: plain data of one kernel row each, or the error that reading it raised.
        extrapolate: answer far outside what was measured, with wider intervals.
    """
    answers: dict[int, str] = {}
    groups: dict[tuple[str, str | None], list[tuple[int, Line, dict[str, Any]]]] = defaultdict(list)
    for number, line in enumerate(lines):
        try:
            row = checked(line)
        except MoesaicError as error:
            answers[number] = _failed(line, error)
        else:
            about = line if isinstance(line, dict) else {}
            groups[about["device"], about.get("backend")].append((number, about, row))
    for (device, backend), members in groups.items():
        answers.update(_answered(device, backend, members, extrapolate=extrapolate))
    return [answers[number] for number in range(len(answers))]


def checked(line: object) -> dict[str, Any]:
    """Read one line as the columns of a kernel row.

    Raises:
        MoesaicError: `invalid` for unknown fields, missing sizes or numbers that are no sizes;
            `unknown_name` for a kernel, device or format.
    """
    if isinstance(line, MoesaicError):
        raise line
    if not isinstance(line, dict):
        raise MoesaicError("invalid", "a line holds one object", "/")
    unknown = set(line) - set(KERNEL_ROW) - ABOUT
    if unknown:
        raise MoesaicError("invalid", "no such field of a kernel row", f"/{min(unknown)}")
    kernel = line.get("kernel")
    if kernel not in KERNELS:
        raise unknown_name("kernel", str(kernel), KERNELS, "/kernel")
    if not isinstance(line.get("device"), str):
        raise MoesaicError("invalid", "a line needs a device", "/device")
    load_device(line["device"])
    row = {name: value for name, value in line.items() if name not in ABOUT}
    _check_values(row)
    row["skew_alpha"] = exponent(line.get("skew"))
    return row


def _check_values(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if value is None:
            continue
        if name in NUMBERS:
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            least = 0 if name in MAY_BE_ZERO else 1e-300
            if not plain or not math.isfinite(value) or value < least:
                raise MoesaicError("invalid", f"{value!r} is no size", f"/{name}")
        elif name in FORMATS and value not in DTYPES:
            raise unknown_name("dtype", str(value), DTYPES, f"/{name}")


def exponent(skew: object) -> float | None:
    """Exponent of a stated load: 0 for a balanced one, none where nothing is said.

    Raises:
        MoesaicError: `invalid` for anything else than "balanced" or a power law.
    """
    if skew is None:
        return None
    if skew == "balanced":
        return 0.0
    alpha = skew.get("power_law") if isinstance(skew, dict) and len(skew) == 1 else None
    if isinstance(alpha, int | float) and 0 <= alpha <= 10:  # noqa: PLR2004 - beyond any load
        return float(alpha)
    raise MoesaicError("invalid", 'skew is "balanced" or {"power_law": 1.2}', "/skew")


Member = tuple[int, Line, dict[str, Any]]


def _answered(
    device: str, backend: str | None, members: list[Member], *, extrapolate: bool
) -> Iterator[tuple[int, str]]:
    """Time a group at once; where that fails, halves of it, so that only bad lines fail."""
    rows = [row for _, _, row in members]
    try:
        frame = pl.DataFrame(
            {name: [row.get(name) for row in rows] for name in SCHEMA}, schema=SCHEMA, strict=False
        )
        cluster = cluster_for(device, *_largest_group(rows))
        timed = time_kernels(frame, cluster, backend, extrapolate=extrapolate)
    except MoesaicError as error:
        if len(members) == 1:
            yield members[0][0], _failed(members[0][1], error)
            return
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            yield from _answered(device, backend, half, extrapolate=extrapolate)
        return
    columns = [timed[name].to_list() for name in (*TIMES, "bound_by", "source")]
    for (number, line, _), *values in zip(members, *columns, strict=True):
        yield number, ANSWER.format(json.dumps(line.get("id")), *values)


ANSWER = (
    '{{"id": {}, "low_s": {!r}, "typical_s": {!r}, "high_s": {!r}, "bound_by": "{}", '
    '"source": "{}", "error": null}}'
)


def _largest_group(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Ranks and nodes of the largest group, which the cluster must hold."""
    ranks = nodes = 1
    for row in rows:
        if row["kernel"] in COLLECTIVES or row["kernel"] in EXCHANGES:
            ranks = max(ranks, int(row.get("devices") or 1))
            nodes = max(nodes, int(row.get("nodes") or 1))
    return ranks, nodes


def _failed(line: object, error: MoesaicError) -> str:
    name = line.get("id") if isinstance(line, dict) else None
    return json.dumps({"id": name, "error": {"kind": error.kind, "message": str(error)}})
