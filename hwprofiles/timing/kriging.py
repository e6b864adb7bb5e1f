"""Weights of measured neighbours for a shape that was not measured (ordinary kriging).

Local ordinary kriging with an exponential covariance (Cressie, Statistics for Spatial Data, 1993,
section 3.2): weights that sum to one, chosen from the nearest shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.timing.rows import Array

NUGGET = 0.02
"""Share of variance that is noise of one measurement; hold-out is flat between 0.01 and 0.1."""
SAME = 1e-3
"""Closer than this two shapes are the same."""
_CHUNK = 4096


@dataclass(frozen=True)
class Points:
    """Points in units of distance, `at` [n, d]; what those of one kind share, `kind` [n, q]."""

    at: Array
    kind: Array
    jump: float = 0.0
    """Units of distance between points of two kinds, on top of what lies between them."""

    @classmethod
    def plain(cls, at: Array) -> Points:
        """Points all of one kind."""
        return cls(at, np.zeros((len(at), 0)))

    def __len__(self) -> int:
        return len(self.at)

    def part(self, chosen: slice | NDArray[Any]) -> Points:
        """Some of the points."""
        return Points(self.at[chosen], self.kind[chosen], self.jump)

    def differ(self, other: Points) -> NDArray[np.bool_]:
        """[n, m]: true where a point of this and one of the other set are of two kinds."""
        found = np.zeros((len(self), len(other)), dtype=bool)
        for one, two in zip(self.kind.T, other.kind.T, strict=True):
            found |= np.abs(one[:, None] - two) > SAME
        return found

    def between(self, other: Points) -> Array:
        """[n, m] distances, jumps included."""
        # One coordinate after the other: a matrix product's last bit depends on how many are asked.
        squares = np.zeros((len(self), len(other)))
        for one, two in zip(self.at.T, other.at.T, strict=True):
            squares += (one[:, None] - two) ** 2
        distance: Array = np.sqrt(squares) + self.jump * self.differ(other)
        return distance


def neighbours(
    wanted: Points, known: Points, count: int, apart: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.intp], Array, Array]:
    """Nearest known points of each wanted point, their weights, and the nearest distance.

    Args:
        wanted: u points.
        known: s points.
        count: neighbours to use.
        apart: [u, s], true where a known point must not be used (for hold-out).

    Returns:
        Indices [u, count], weights [u, count] that sum to 1, nearest distance [u].
    """
    count = min(count, len(known))
    spans = [slice(i, i + _CHUNK) for i in range(0, len(wanted), _CHUNK)]
    parts = [
        _chunk(wanted.part(span), known, count, None if apart is None else apart[span])
        for span in spans
    ]
    index, weight, nearest = (np.concatenate(column) for column in zip(*parts, strict=True))
    return index, weight, nearest


def _chunk(
    wanted: Points, known: Points, count: int, apart: NDArray[np.bool_] | None
) -> tuple[NDArray[np.intp], Array, Array]:
    distance = wanted.between(known)
    if apart is not None:
        distance = np.where(apart, np.inf, distance)
    index = np.argpartition(distance, count - 1, axis=1)[:, :count]
    near = np.take_along_axis(distance, index, axis=1)
    nearest = near.min(axis=1)
    weight = _weights(known, index, near, _strange(wanted, known, index))
    exact = nearest < SAME
    weight[exact] = near[exact] == nearest[exact, None]
    weight[exact] /= weight[exact].sum(axis=1, keepdims=True)
    return index, weight, nearest


def _strange(wanted: Points, known: Points, index: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[u]: true where no neighbour is of the wanted point's kind."""
    return np.asarray(_jumps(wanted.kind[:, None], known.kind[index]).all(axis=1))


def _jumps(one: Array, other: Array) -> NDArray[np.bool_]:
    return np.asarray((np.abs(one - other) > SAME).any(axis=-1))


def _weights(
    known: Points, index: NDArray[np.intp], near: Array, strange: NDArray[np.bool_]
) -> Array:
    """Solve the kriging system of each row: covariances, and a multiplier for the unit sum.

    Where no neighbour is of the wanted kind, kinds among the neighbours say nothing: without jumps
    hold-out of whole kinds is better.
    """
    at, kind = known.at[index], known.kind[index]
    rows, count, _ = at.shape
    between = np.sqrt(((at[:, :, None] - at[:, None]) ** 2).sum(-1))
    if known.jump > 0:
        jump = known.jump * _jumps(kind[:, :, None], kind[:, None])
        between += np.where(strange[:, None, None], 0.0, jump)
        near = np.where(strange[:, None], near - known.jump, near)
    system = np.ones((rows, count + 1, count + 1))
    system[:, :count, :count] = np.exp(-between) + NUGGET * np.eye(count)
    system[:, count, count] = 0
    right = np.ones((rows, count + 1))
    right[:, :count] = np.exp(-near)
    solved: Array = np.linalg.solve(system, right[:, :, None])[:, :count, 0]
    return solved
