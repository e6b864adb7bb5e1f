"""Task patterns: which experts each task keeps, found again from the first layer, and their change.

PreMoe (arXiv:2505.17639) stores the importance of every layer for each task and retrieves the
nearest by the first MoE layer alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwprofiles.errors import MoesaicError, unknown_name
from planner.compression.experts import BITS_PER_BYTE, ExpertTable
from planner.compression.importance import Floats
from planner.compression.transforms import keep_highest


@dataclass(frozen=True)
class TaskPatterns:
    """Importance of every expert by task: name -> scores, shape [layers, experts]."""

    scores: dict[str, Floats]

    def __post_init__(self) -> None:
        """Every task must describe the same experts."""
        shapes = {values.shape for values in self.scores.values()}
        if len(shapes) != 1:
            raise MoesaicError("invalid", f"tasks describe experts of shapes {sorted(shapes)}")

    def nearest(self, first_layer: npt.ArrayLike) -> tuple[str, float]:
        """The stored task whose first-layer importance is nearest, and the distance between them.

        Args:
            first_layer: importance of the first MoE layer, shape [experts].

        Raises:
            MoesaicError: `invalid` for another number of experts.
        """
        query = np.asarray(first_layer, dtype=float)
        experts = next(iter(self.scores.values())).shape[1]
        if query.shape != (experts,):
            raise MoesaicError("invalid", f"a query of shape {query.shape}; known: ({experts},)")
        distance = {n: float(np.linalg.norm(v[0] - query)) for n, v in self.scores.items()}
        best = min(distance, key=lambda name: (distance[name], name))
        return best, distance[best]

    def mask(self, task: str, kept: int) -> npt.NDArray[np.bool_]:
        """Experts that a task keeps, `kept` in each layer."""
        if task not in self.scores:
            raise unknown_name("task", task, self.scores)
        return keep_highest(self.scores[task], kept)

    def to_load(self, table: ExpertTable, old: str, new: str, kept: int) -> tuple[int, float]:
        """Experts that must be loaded when the task changes, and their bytes."""
        missing = self.mask(new, kept) & ~self.mask(old, kept)
        size = table.parameters() * table.bits / BITS_PER_BYTE
        return int(missing.sum()), float((size * missing).sum())
