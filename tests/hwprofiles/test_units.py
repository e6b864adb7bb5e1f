"""Quantities: every prefix of every dimension, and what is no quantity."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.units import UNITS, format_quantity, parse_quantity

SIZES = [
    ("1 B", 1.0), ("1 kB", 1e3), ("1 KB", 1e3), ("1 MB", 1e6), ("1 GB", 1e9), ("1 TB", 1e12),
    ("1 PB", 1e15), ("1 KiB", 1024.0), ("1 MiB", 1048576.0), ("1 GiB", 1073741824.0),
    ("1 TiB", 1099511627776.0), ("1 bit", 0.125), ("1 kbit", 125.0), ("1 Mbit", 125e3),
    ("1 Gbit", 125e6), ("1 Tbit", 125e9),
]  # fmt: skip
RATES = [(f"{text}/s", value) for text, value in SIZES]
FLOPS = [
    ("1 FLOP/s", 1.0), ("1 kFLOP/s", 1e3), ("1 MFLOP/s", 1e6), ("1 GFLOP/s", 1e9),
    ("1 TFLOP/s", 1e12), ("1 PFLOP/s", 1e15), ("1 TOP/s", 1e12), ("1 POP/s", 1e15),
    ("1 GOPS", 1e9), ("1 TOPS", 1e12), ("1 TFLOPS", 1e12), ("1 TFLOPs", 1e12),
]  # fmt: skip
TIMES = [
    ("1 s", 1.0), ("1 ms", 1e-3), ("1 us", 1e-6), ("1 µs", 1e-6), ("1 μs", 1e-6),
    ("1 ns", 1e-9), ("1 min", 60.0), ("1 h", 3600.0),
]  # fmt: skip
REST = [
    ("watts", "1 W", 1.0), ("watts", "1 kW", 1e3), ("watts", "1 MW", 1e6), ("watts", "1 mW", 1e-3),
    ("hertz", "1 Hz", 1.0), ("hertz", "1 kHz", 1e3), ("hertz", "1 MHz", 1e6),
    ("hertz", "1 GHz", 1e9), ("joules", "1 J", 1.0), ("joules", "1 kJ", 1e3),
    ("joules", "1 mJ", 1e-3), ("joules", "1 Wh", 3600.0), ("joules", "1 kWh", 3.6e6),
]  # fmt: skip
TABLE = [
    *(("bytes", *row) for row in SIZES),
    *(("bytes per second", *row) for row in RATES),
    *(("FLOP/s", *row) for row in FLOPS),
    *(("seconds", *row) for row in TIMES),
    *REST,
]


@pytest.mark.parametrize(("dimension", "text", "value"), TABLE)
def test_every_prefix(dimension: str, text: str, value: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)
    assert parse_quantity(text.replace(" ", ""), dimension) == pytest.approx(value, rel=1e-15)


def test_every_known_unit_is_a_power_of_something() -> None:
    """An untested prefix is how a T of 1e13 slips in: a scale is 10^n, 2^n, an eighth or time."""
    special = {60.0, 3600.0, 3.6e6}
    for units in UNITS.values():
        for unit, scale in units.items():
            whole = scale * 8 if "bit" in unit else scale
            tens, twos = math.log10(whole), math.log2(whole)
            near = min(abs(tens - round(tens)), abs(twos - round(twos)))
            assert near < 1e-9 or scale in special, unit


@pytest.mark.parametrize(
    ("text", "dimension", "other"),
    [
        ("3.35 TB/s", "bytes", "bytes per second"),
        ("80 GiB", "bytes per second", "bytes"),
        ("80 GiB", "seconds", "bytes"),
        ("25 us", "bytes", "seconds"),
        ("700 W", "joules", "watts"),
        ("989 TFLOP/s", "bytes per second", "FLOP/s"),
    ],
)
def test_a_wrong_dimension_names_the_right_one(text: str, dimension: str, other: str) -> None:
    with pytest.raises(ValueError, match=f"is in {other}, not in {dimension}"):
        parse_quantity(text, dimension)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), -1, -0.5, "-3 GB", "nan", "inf GB", "1e400 B", 10**400, "",
        " ", "GB", "80 gib", "80 GBs", "8o GB", "80 GB 20 MB", "0x10 B", "1,5 GB", "٣ GB", None,
        True, [80], {"value": 80}, b"80 GB", "80 GB/s/s", "1e", "1e5e5 B",
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"bytes|number"):
        parse_quantity(value, "bytes")


@given(
    st.sampled_from(sorted(UNITS)),
    st.floats(min_value=0, max_value=1e17, allow_subnormal=False),
)
def test_what_is_shown_can_be_read_back(dimension: str, value: float) -> None:
    again = parse_quantity(format_quantity(value, dimension), dimension)
    assert again == pytest.approx(value, rel=5.1e-4)


def test_binary_sizes_are_shown_as_such() -> None:
    assert format_quantity(64 * 2.0**30, "bytes") == "64 GiB"
    assert format_quantity(80e9, "bytes") == "80 GB"
    assert format_quantity(0.0, "seconds") == "0 s"
