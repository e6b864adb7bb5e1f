"""Simulated cycles and placed clocks as a device with curves and its error on held-out calls."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.calibration.fpga.simulate import held_out
from hwprofiles.device import Device, MemoryTier
from hwprofiles.document import Document
from hwprofiles.efficiency import ClockBand, Curves, MacArray
from hwprofiles.sourced import Sourced
from hwprofiles.timing.arrays import product_cycles
from hwprofiles.units import Hertz, Ratio

WORDS = 2048
"""Words of each operand memory: one DP16KD block a bank (rtl/expert_kernel.v, DEPTH)."""
TILES = 255
"""Tiles along one side that the kernel's counters hold (8 bits)."""
Row = Mapping[str, Any]


class ArrayFit(Document):
    """What was found out about one size of the array."""

    size_count: int
    calls_count: int
    """Simulated calls; each result is the reference's, number for number."""
    held_out_count: int
    fill_cycles_count: float
    """Cycles of a tile beyond its inner width; 2N + 3 is meant."""
    call_cycles_count: float
    error_held_out_ratio: Ratio
    """Largest error of the cycle model on calls that it was not fitted on."""
    clock_low_hz: Hertz
    clock_hz: Hertz
    clock_high_hz: Hertz
    dsp_count: int
    memory_blocks_count: int
    luts_count: int
    flipflops_count: int


@dataclass(frozen=True)
class Fitted:
    """The documents of one size."""

    fit: ArrayFit
    curves: Curves
    device: Device


def fit_cycles(rows: Sequence[Row]) -> tuple[float, float]:
    """Cycles a tile takes beyond its inner width, and a call beyond its tiles and its load."""
    tiles = np.array([r["left_tiles"] * r["right_tiles"] for r in rows], dtype=float)
    rest = np.array([r["all_cycles"] - r["load_cycles"] for r in rows]) - tiles * [
        r["depth"] for r in rows
    ]
    known = np.stack([tiles, np.ones_like(tiles)], axis=1)
    (fill, call), *_ = np.linalg.lstsq(known, rest, rcond=None)
    return float(round(fill, 6)), float(round(call, 6))


def fit_array(rows: Sequence[Row], placements: Sequence[Row], on: datetime.date) -> Fitted:
    """Fit one size of the array.

    Args:
        rows: simulated calls of this size.
        placements: clock and resources of each seed.
        on: day of the run.
    """
    size = int(rows[0]["size"])
    known, apart = ([r for r in rows if held_out(r) is wanted] for wanted in (False, True))
    fill, call = fit_cycles(known)
    clocks = sorted(float(p["clock_hz"]) for p in placements)
    clock = ClockBand(low_hz=clocks[0], typical_hz=float(np.median(clocks)), high_hz=clocks[-1])
    array = MacArray(
        size_count=size, fill_cycles_count=fill, call_cycles_count=call, words_count=WORDS,
        tiles_count=TILES, clock=clock,
    )  # fmt: skip
    resources = {name: int(placements[0][name]) for name in (
        "dsp_count", "memory_blocks_count", "luts_count", "flipflops_count")}  # fmt: skip
    fit = ArrayFit(
        size_count=size, calls_count=len(rows), held_out_count=len(apart),
        fill_cycles_count=fill, call_cycles_count=call,
        error_held_out_ratio=_worst(array, apart),
        clock_low_hz=clock.low_hz, clock_hz=clock.typical_hz, clock_high_hz=clock.high_hz,
        **resources,
    )  # fmt: skip
    curves = Curves(
        name=f"ecp5-mac{size}", source=_source(placements[0], len(rows), len(clocks)), date=on,
        certainty="simulated", families={}, array=array,
    )  # fmt: skip
    return Fitted(fit, curves, _device(fit, curves.source, on))


def _worst(array: MacArray, rows: Sequence[Row]) -> float:
    if not rows:
        return 0.0
    size = array.size_count
    sides = [np.array([float(r[name]) for r in rows]) for name in
             ("left_tiles", "right_tiles", "depth")]  # fmt: skip
    cycles = product_cycles(array, sides[0] * size, sides[1] * size, sides[2]).total(array)
    return float(np.abs(cycles / [r["all_cycles"] for r in rows] - 1).max())


def _source(placement: Row, calls: int, seeds: int) -> str:
    return (
        f"{calls} calls simulated cycle by cycle with Verilator against NumPy, clock of {seeds} "
        f"placements on ECP5 {placement['part']} with nextpnr-ecp5 "
        "(hwprofiles/calibration/fpga/recorded)"
    )


def _device(fit: ArrayFit, source: str, on: datetime.date) -> Device:
    size = fit.size_count

    def simulated(value: float, note: str) -> dict[str, Any]:
        return {
            "value": value,
            "source": source,
            "date": on,
            "certainty": "simulated",
            "note": note,
        }

    clock = fit.clock_hz
    sram = MemoryTier(
        name="sram",
        capacity_bytes=Sourced[float](**simulated(2.0 * size * WORDS, "operand memories")),
        bandwidth_bytes_per_s=Sourced[float](
            **simulated(2 * size * clock, "one word of each side a cycle")
        ),
    )
    return Device(
        name=f"ecp5-mac{size}",
        title=f"Lattice ECP5-45 with an int8 {size} x {size} MAC array (simulated)",
        vendor="Lattice",
        kind="fpga",
        unit="package",
        peak_flop_per_s={
            "int8": Sourced[float](**simulated(2 * size**2 * clock, "2 N^2 operations a cycle"))
        },
        memory=(sram,),
        clock_hz=Sourced[float](**simulated(clock, "median of the placements")),
        macs_per_cycle_count=Sourced[int](**simulated(size**2, "one a cell")),
        curves=f"ecp5-mac{size}",
    )
