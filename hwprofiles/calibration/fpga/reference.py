"""What the kernel has to compute, in NumPy, and how operands lie in its memories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Product:
    """One call: left [left_tiles · size, depth] by right [depth, right_tiles · size], int8."""

    size: int
    depth: int
    left_tiles: int
    right_tiles: int
    shift: int = 0
    relu: bool = False
    clip: bool = True

    def operands(self, seed: int) -> tuple[Integers, Integers]:
        """Random operands over the whole range of int8."""
        draw = np.random.default_rng(seed)
        left = draw.integers(-128, 128, (self.left_tiles * self.size, self.depth))
        right = draw.integers(-128, 128, (self.depth, self.right_tiles * self.size))
        return left, right

    def result(self, left: Integers, right: Integers) -> Integers:
        """The requantised product: shifted, negative numbers cut by ReLU, saturated or wrapped."""
        sums = (left @ right) >> self.shift
        if self.relu:
            sums = np.maximum(sums, 0)
        if self.clip:
            clipped: Integers = np.clip(sums, -128, 127)
            return clipped
        return sums.astype(np.int8).astype(np.int64)

    def words(self, left: Integers, right: Integers) -> str:
        """What the bench reads: the call, then the words of both memories."""
        n, k = self.size, self.depth
        rows = left.reshape(self.left_tiles, n, k).transpose(0, 2, 1).reshape(-1, n)
        columns = right.reshape(k, self.right_tiles, n).transpose(1, 0, 2).reshape(-1, n)
        head = [k, self.left_tiles, self.right_tiles, self.shift, int(self.relu), int(self.clip)]
        lines = [head, *rows.tolist(), *columns.tolist()]
        return "\n".join(" ".join(map(str, line)) for line in lines) + "\n"

    def from_rows(self, numbers: Integers) -> Integers:
        """Rows as they left the kernel, [tiles · size, size], as the whole result."""
        n = self.size
        tiles = numbers.reshape(self.left_tiles, self.right_tiles, n, n)
        return tiles.transpose(0, 2, 1, 3).reshape(self.left_tiles * n, self.right_tiles * n)
