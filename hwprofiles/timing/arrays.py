"""How long an output-stationary MAC array takes for matrix products, counted in its cycles.

One call loads its operands, one word of each side a cycle, then runs its tiles one after the other:
K + 2N + 3 cycles on an N x N array (K the inner width; 2N - 2 cycles of skew, five registers). What
does not fit the operand memories is cut into several calls, as a host would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles.efficiency import MacArray
from hwprofiles.errors import MoesaicError
from hwprofiles.timing.rows import Array, Rows

Answered = tuple[tuple[Array, Array, Array], NDArray[np.str_], NDArray[np.str_]]
FORMATS = ("int8",)
PLAIN_MATRICES = 2


@dataclass(frozen=True)
class Cycles:
    """Cycles of n products, and the calls each was cut into."""

    load: Array
    tiles: Array
    calls: Array

    def total(self, array: MacArray) -> Array:
        """All cycles from the first operand written to the last row read."""
        every: Array = self.load + self.tiles + self.calls * array.call_cycles_count
        return every


def product_cycles(array: MacArray, m: Array, n: Array, k: Array) -> Cycles:
    """Cycles of products of [m, k] by [k, n]; a call holds as many tiles as memory has words for.

    Raises:
        MoesaicError: `outside_evidence` where one tile alone is deeper than the operand memory.
    """
    deepest = float(k.max(initial=1))
    if deepest > array.words_count:
        raise MoesaicError(
            "outside_evidence",
            f"an inner width of {deepest:.0f} on operand memories of {array.words_count} words; "
            "a kernel with deeper memories or a split inner width would work",
            "/k",
        )
    most = np.minimum(array.words_count // k, array.tiles_count)
    left, right = np.ceil(m / array.size_count), np.ceil(n / array.size_count)
    left_calls, right_calls = np.ceil(left / most), np.ceil(right / most)
    load = np.zeros_like(k)
    # Full blocks and the rest along each side: each pair of blocks is one call with its own load.
    for rows, row_calls in ((most, left_calls - 1), (left - (left_calls - 1) * most, 1)):
        for columns, column_calls in ((most, right_calls - 1),
                                      (right - (right_calls - 1) * most, 1)):  # fmt: skip
            load = load + row_calls * column_calls * np.maximum(rows, columns) * k
    tiles = left * right * (k + array.fill_cycles_count)
    return Cycles(load, tiles, left_calls * right_calls)


def _gemm(rows: Rows, array: MacArray) -> Cycles:
    return product_cycles(array, rows.get("m"), rows.get("n"), rows.get("k"))


def _experts(rows: Rows, array: MacArray) -> Cycles:
    """Two products an active expert (up with ReLU, down), its tokens the mean of the busiest rank.

    Raises:
        MoesaicError: `outside_evidence` for gated experts, whose product of two halves the kernel
            has no unit for.
    """
    get = rows.get
    if (get("matrices", 3) != PLAIN_MATRICES).any():
        raise MoesaicError(
            "outside_evidence",
            "the array multiplies and applies ReLU; gated experts (matrices 3) need an elementwise "
            f"product that it does not have; known: matrices {PLAIN_MATRICES}",
            "/matrices",
        )
    hidden, inter = get("hidden"), get("inter") / get("moe_tp", 1)
    pairs = get("tokens") * get("top_k") / get("moe_ep", 1) * get("busy_ratio", 1)
    local = np.maximum(get("experts") / get("moe_ep", 1), 1)
    stated = get("active_experts", np.nan)
    spread = local * (1 - (1 - 1 / local) ** pairs)
    active = np.maximum(np.ceil(np.where(np.isnan(stated), spread, stated)), 1)
    tokens = np.ceil(pairs / active)
    up = product_cycles(array, tokens, inter, hidden)
    down = product_cycles(array, tokens, hidden, inter)
    return Cycles(
        active * (up.load + down.load), active * (up.tiles + down.tiles),
        active * (up.calls + down.calls),
    )  # fmt: skip


def _timed(count: Callable[[Rows, MacArray], Cycles]) -> Callable[[Rows, MacArray], Answered]:
    def answer(rows: Rows, array: MacArray) -> Answered:
        formats = {name or "bf16" for name in rows.texts("dtype")[0]}
        if formats - set(FORMATS):
            raise MoesaicError(
                "outside_evidence",
                f"the array multiplies {', '.join(FORMATS)}, not {min(formats - set(FORMATS))}",
                "/dtype",
            )
        cycles = count(rows, array)
        total, clock = cycles.total(array), array.clock
        bound = np.where(cycles.tiles >= cycles.load, "compute", "memory")
        source = np.full(len(total), "simulated")
        times = (total / clock.high_hz, total / clock.typical_hz, total / clock.low_hz)
        return times, bound, source

    return answer


PRODUCTS: dict[str, Callable[[Rows, MacArray], Answered]] = {
    "gemm": _timed(_gemm),
    "grouped_gemm": _timed(_experts),
}
"""Families that an array can run."""
