"""Lines of `time --batch`: plain kernel rows in, seconds or an error a line out, in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.kernels import DTYPES, KERNEL_ROW, KERNELS
from hwprofiles.library import load_device
from hwprofiles.timing.answer import NUMBERS
from hwprofiles.timing.mixed import time_mixed

Line = Mapping[str, Any]
ABOUT = {"id", "device", "backend", "skew"}
FORMATS = {"dtype", "kv_dtype"}
MAY_BE_ZERO = {"past", "busy_ratio", "active_experts"}
SCHEMA: dict[str, type[pl.DataType]] = KERNEL_ROW | {
    "skew_alpha": pl.Float64, "device": pl.String, "backend": pl.String,
}  # fmt: skip


def time_lines(lines: Iterable[object], *, extrapolate: bool = False) -> list[str]:
    """Answer lines as JSON text, one each, in the order they came.

    Args:
        lines: plain data of one kernel row each, or the error that reading it raised.
        extrapolate: answer far outside what was measured, with wider intervals.
    """
    answers: list[str] = []
    numbers, rows = [], []
    for number, line in enumerate(lines):
        try:
            rows.append(checked(line))
        except MoesaicError as error:
            answers.append(failed(line.get("id") if isinstance(line, dict) else None, error))
        else:
            answers.append("")
            numbers.append(number)
    if rows:
        for number, text in zip(numbers, _answered(rows, extrapolate=extrapolate), strict=True):
            answers[number] = text
    return answers


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
    _check_values(line)
    return {**line, "skew_alpha": exponent(line.get("skew"))}


def _check_values(row: Line) -> None:
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


def _answered(rows: list[dict[str, Any]], *, extrapolate: bool) -> Iterator[str]:
    frame = pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in SCHEMA}, schema=SCHEMA, strict=False
    )
    timed, refused = time_mixed(frame, extrapolate=extrapolate)
    columns = [column.to_list() for column in timed]
    for number, (row, *values) in enumerate(zip(rows, *columns, strict=True)):
        name = row.get("id")
        error = refused.get(number)
        yield failed(name, error) if error else ANSWER.format(json.dumps(name), *values)


ANSWER = (
    '{{"id": {}, "low_s": {!r}, "typical_s": {!r}, "high_s": {!r}, "bound_by": "{}", '
    '"source": "{}", "error": null}}'
)


def failed(name: object, error: MoesaicError) -> str:
    """A line that cannot be answered, and why."""
    return json.dumps({"id": name, "error": {"kind": error.kind, "message": str(error)}})
