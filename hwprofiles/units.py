"""Quantities as people write them, turned once into SI floats; a wrong dimension is refused.

Inside the project every quantity is a float in SI and carries its unit in its name (`_s`, `_bytes`,
`_flop_per_s`). Files may say "80 GiB", "3.35 TB/s", "25 us"; a bare number is taken as SI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field

_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9}
_BITS_PER_BYTE = 8
_LARGEST = 1e300


def _byte_units() -> dict[str, float]:
    units = {f"{prefix}B": scale for prefix, scale in (_PREFIX | _BINARY).items()}
    return units | {f"{prefix}bit": scale / _BITS_PER_BYTE for prefix, scale in _PREFIX.items()}


def _operation_units() -> dict[str, float]:
    return {
        f"{prefix}{word}": scale for prefix, scale in _PREFIX.items() for word in ("FLOP", "OP")
    }


def _with_s(units: dict[str, float]) -> dict[str, float]:
    return {f"{unit}/s": scale for unit, scale in units.items()}


UNITS: dict[str, dict[str, float]] = {
    "bytes": _byte_units(),
    "bytes per second": _with_s(_byte_units()),
    "FLOP/s": _with_s(_operation_units())
    | {f"{p}{word}": s for p, s in _PREFIX.items() for word in ("FLOPS", "OPS", "FLOPs")},
    "seconds": {f"{p}s": s for p, s in ({"": 1.0} | _SMALL).items()} | {"min": 60.0, "h": 3600.0},
    "watts": {"W": 1.0, "kW": 1e3, "MW": 1e6, "mW": 1e-3},
    "hertz": {f"{p}Hz": s for p, s in _PREFIX.items()},
    "joules": {"J": 1.0, "kJ": 1e3, "mJ": 1e-3, "Wh": 3600.0, "kWh": 3.6e6},
}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([^\s0-9].*?)?\s*")


def parse_quantity(value: object, dimension: str) -> float:
    """Read one quantity as SI.

    >>> parse_quantity("80 GiB", "bytes")
    85899345920.0
    >>> parse_quantity("3.35 TB/s", "bytes")
    Traceback (most recent call last):
    ...
    ValueError: '3.35 TB/s' is in bytes per second, not in bytes

    Args:
        value: a number in SI or text with a unit.
        dimension: a key of `UNITS`.

    Raises:
        ValueError: not finite, negative, no number, no such unit, or another dimension's unit.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no quantity in {dimension}")  # noqa: TRY004 - pydantic reads ValueError
    number, unit = _split(value, dimension)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} must be a finite number of {dimension}, zero or more")
    if unit is None:
        return number
    if unit in UNITS[dimension]:
        return number * UNITS[dimension][unit]
    for other, units in UNITS.items():
        if unit in units:
            raise ValueError(f"{value!r} is in {other}, not in {dimension}")
    known = ", ".join(sorted(UNITS[dimension])[:12])
    raise ValueError(f"{value!r} has unit {unit!r}; known for {dimension}: {known}, …")


def _split(value: float | str, dimension: str) -> tuple[float, str | None]:
    if not isinstance(value, str):
        return (float(value) if abs(value) < _LARGEST else math.inf), None
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no quantity in {dimension}; write it like '80 GiB'")
    return float(match[1].replace("_", "")), match[2]


def _reader(dimension: str) -> Callable[[object], float]:
    def read(value: object) -> float:
        return parse_quantity(value, dimension)

    return read


_GIB = 2.0**30
_SHOWN = {
    "bytes": "B",
    "bytes per second": "B/s",
    "FLOP/s": "FLOP/s",
    "seconds": "s",
    "watts": "W",
    "hertz": "Hz",
    "joules": "J",
}
_SHOWN_PREFIX = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SHOWN_SMALL = ((1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


def format_quantity(value: float, dimension: str) -> str:
    """Write an SI number so that people, and `parse_quantity`, can read it.

    >>> format_quantity(3.35e12, "bytes per second")
    '3.35 TB/s'
    >>> format_quantity(2.7e-6, "seconds")
    '2.7 us'
    """
    if dimension == "bytes" and value >= _GIB and value % _GIB == 0 and value % 1e9:
        return f"{value / _GIB:.6g} GiB"
    known = UNITS[dimension]
    steps = (*_SHOWN_PREFIX, *_SHOWN_SMALL)
    usable = [(scale, p) for scale, p in steps if f"{p}{_SHOWN[dimension]}" in known]
    fitting = [(scale, p) for scale, p in usable if value >= scale]
    base = next(item for item in usable if item[0] == 1.0)
    scale, prefix = fitting[0] if fitting else (usable[-1] if value else base)
    return f"{value / scale:.4g} {prefix}{_SHOWN[dimension]}"


Bytes = Annotated[float, BeforeValidator(_reader("bytes"))]
BytesPerS = Annotated[float, BeforeValidator(_reader("bytes per second"))]
FlopPerS = Annotated[float, BeforeValidator(_reader("FLOP/s"))]
Seconds = Annotated[float, BeforeValidator(_reader("seconds"))]
Watts = Annotated[float, BeforeValidator(_reader("watts"))]
Hertz = Annotated[float, BeforeValidator(_reader("hertz"))]
Joules = Annotated[float, BeforeValidator(_reader("joules"))]
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
