"""Build the kernel with Verilator and run products on it, cycle by cycle, against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hwprofiles.calibration.fpga.reference import Integers, Product
from hwprofiles.calibration.fpga.tools import RTL, SOURCES, TOP, require, run
from hwprofiles.errors import MoesaicError

DEPTHS = (1, 8, 64, 200)
TILES = ((1, 1), (1, 4), (3, 2), (5, 3))
"""(left, right) tiles of the calls that the cycle model is fitted on."""
HELD_OUT = ((16, 1, 6), (37, 2, 2), (128, 4, 3), (256, 6, 1), (511, 1, 2), (90, 7, 5))
"""(depth, left tiles, right tiles) of calls that it has to predict."""


class Simulation:
    """A kernel of one size, built once."""

    def __init__(self, size: int, folder: Path) -> None:
        require(("verilator",))
        self.size = size
        self.folder = folder / f"simulated{size}"
        self.folder.mkdir(parents=True, exist_ok=True)
        run(
            ["verilator", "--cc", "--exe", "--build", "-O3", "-Wno-fatal", f"-GSIZE={size}",
             "-CFLAGS", f"-DSIZE={size}", "--top-module", TOP, "--Mdir", ".",
             *(str(RTL / name) for name in (*SOURCES, "bench.cpp"))],
            self.folder,
        )  # fmt: skip

    def multiply(
        self, call: Product, left: Integers, right: Integers
    ) -> tuple[Integers, dict[str, int]]:
        """Run one call; returns its result and the cycles it took.

        Raises:
            MoesaicError: `internal` when the kernel does not deliver every row.
        """
        text = run([str(self.folder / f"V{TOP}")], self.folder, call.words(left, right))
        head, *lines = text.splitlines()
        _, load, first, every = head.split()
        numbers = np.array([[int(v) for v in line.split()] for line in lines])
        if numbers.size != call.size**2 * call.left_tiles * call.right_tiles:
            raise MoesaicError("internal", f"the kernel gave {len(numbers)} rows only")
        cycles = {"load_cycles": int(load), "first_cycles": int(first), "all_cycles": int(every)}
        return call.from_rows(numbers), cycles

    def checked(self, call: Product, seed: int = 0) -> dict[str, Any]:
        """Cycles of one call with random operands, as a row; its result is the reference's.

        Raises:
            MoesaicError: `internal` when a number differs.
        """
        left, right = call.operands(seed)
        result, cycles = self.multiply(call, left, right)
        wrong = int(np.count_nonzero(result != call.result(left, right)))
        if wrong:
            raise MoesaicError("internal", f"{wrong} numbers of {call} differ from the reference")
        return asdict(call) | cycles

    def expert(self, tokens: Integers, up: Integers, down: Integers, shifts: tuple[int, int]
               ) -> tuple[Integers, int]:  # fmt: skip
        """One expert: up with ReLU, down; returns its outputs and the cycles of both calls."""
        n = self.size
        first = Product(n, up.shape[0], len(tokens) // n, up.shape[1] // n, shifts[0], relu=True)
        middle, one = self.multiply(first, tokens, up)
        second = Product(n, down.shape[0], len(tokens) // n, down.shape[1] // n, shifts[1])
        result, two = self.multiply(second, middle, down)
        return result, one["all_cycles"] + two["all_cycles"]


def calls(size: int, *, quick: bool = False) -> list[Product]:
    """Calls to simulate: those to fit on, then those held out.

    The shift keeps sums of `depth` products in range; every third call wraps instead of saturating,
    every second applies ReLU.
    """
    fitted = [(depth, *tiles) for depth in DEPTHS for tiles in TILES]
    chosen = [*fitted, *HELD_OUT]
    if quick:
        chosen = [*fitted[::3], *HELD_OUT[:2]]
    return [
        Product(size, depth, left, right, int(np.log2(depth)) + 7, i % 2 == 1, i % 3 != 0)
        for i, (depth, left, right) in enumerate(chosen)
    ]


def held_out(row: Mapping[str, Any]) -> bool:
    """True for a row that the fit must not see."""
    return (row["depth"], row["left_tiles"], row["right_tiles"]) in HELD_OUT
