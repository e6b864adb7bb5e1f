"""Weights of measured neighbours for a shape that was not measured (ordinary kriging).

Local ordinary kriging with an exponential covariance (Cressie, Statistics for Spatial Data, 1993,
section 3.2): weights that sum to one, chosen from the nearest shapes only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwprofiles.timing.rows import Array

NUGGET = 0.02
"""Share of variance that is noise of one measurement; hold-out is flat between 0.01 and 0.1."""
SAME = 1e-3
"""Closer than this two shapes are the same."""
_CHUNK = 4096


def neighbours(
    wanted: Array, known: Array, count: int, apart: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.intp], Array, Array]:
    """Nearest known points of each wanted point, their weights, and the nearest distance.

    Args:
        wanted: [u, d] coordinates in units of distance.
        known: [s, d] coordinates in the same units.
        count: neighbours to use.
        apart: [u, s], true where a known point must not be used (for hold-out).

    Returns:
        Indices [u, count], weights [u, count] that sum to 1, nearest distance [u].
    """
    count = min(count, len(known))
    spans = [slice(i, i + _CHUNK) for i in range(0, len(wanted), _CHUNK)]
    parts = [
        _chunk(wanted[span], known, count, None if apart is None else apart[span]) for span in spans
    ]
    index, weight, nearest = (np.concatenate(column) for column in zip(*parts, strict=True))
    return index, weight, nearest


def _chunk(
    wanted: Array, known: Array, count: int, apart: NDArray[np.bool_] | None
) -> tuple[NDArray[np.intp], Array, Array]:
    # One coordinate after the other: a matrix product's last bit depends on how many are asked.
    squares = np.zeros((len(wanted), len(known)))
    for one, other in zip(wanted.T, known.T, strict=True):
        squares += (one[:, None] - other) ** 2
    distance = np.sqrt(squares)
    if apart is not None:
        distance = np.where(apart, np.inf, distance)
    index = np.argpartition(distance, count - 1, axis=1)[:, :count]
    near = np.take_along_axis(distance, index, axis=1)
    weight = _weights(known[index], near)
    nearest = near.min(axis=1)
    exact = nearest < SAME
    weight[exact] = near[exact] == nearest[exact, None]
    weight[exact] /= weight[exact].sum(axis=1, keepdims=True)
    return index, weight, nearest


def _weights(points: Array, near: Array) -> Array:
    """Solve the kriging system of each row: covariances, and a multiplier for the unit sum."""
    rows, count, _ = points.shape
    between = np.sqrt(((points[:, :, None] - points[:, None]) ** 2).sum(-1))
    system = np.ones((rows, count + 1, count + 1))
    system[:, :count, :count] = np.exp(-between) + NUGGET * np.eye(count)
    system[:, count, count] = 0
    right = np.ones((rows, count + 1))
    right[:, :count] = np.exp(-near)
    solved: Array = np.linalg.solve(system, right[:, :, None])[:, :count, 0]
    return solved
