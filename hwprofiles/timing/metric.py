"""How far apart two shapes are: doublings of their sizes, and a jump between shapes of two kinds.

Engines choose kernels and tune tiles model by model, so two layouts of one model have more in
common than their sizes say. As a covariance this is the sum of two: one that falls with distance,
and one that only shapes of a kind share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprofiles.timing.kriging import Points
from hwprofiles.timing.rows import Array


@dataclass(frozen=True)
class Metric:
    """Distance between shapes of one table.

    `steps` says how many doublings of each shape coordinate count as one unit, `kind` which sums of
    coordinates two shapes of a kind share, `jump` how many units lie between two kinds.
    """

    steps: tuple[float, ...]
    kind: tuple[tuple[float, ...], ...] = ()
    jump: float = 0.0

    def points(self, shapes: Array) -> Points:
        """Shapes [n, d] as points of this distance."""
        sums = np.array(self.kind, dtype=float).reshape(-1, shapes.shape[1])
        if self.jump <= 0:
            sums = sums[:0]
        return Points(shapes / np.array(self.steps), shapes @ sums.T, self.jump)
