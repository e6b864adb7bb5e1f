"""Most probable terms of a sum of weighed parts, given figures some of which are far off.

Levenberg-Marquardt (Marquardt, SIAM J. 11, 1963) on log(measured) - log(estimated) with a Cauchy
loss, whose weight falls with the square of an error: runs with draft tokens that their table does
not mention are twice as fast and must not pull the rest. Each term has a normal prior around 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.timing.parts import ALL, Parts
from planner.validation.terms import Candidate

Array = NDArray[np.float64]
NOISE, SCALE = 0.5, 0.3
"""Prior weight of one row; the error at which a row's weight has fallen to a half."""
ROUNDS, TRIES, FIRST_DAMPING, ENOUGH = 18, 8, 1.0, 1e-3


@dataclass(frozen=True)
class Rows:
    """Figures that share their labels, with the parts their quantity is made of."""

    parts: Parts
    labels: frozenset[str]
    measured: Array
    weight: Array
    """How much each row counts; 1 on average."""


@dataclass(frozen=True)
class _Problem:
    """All rows stacked: parts (rows x parts), design (rows x terms), where each term acts."""

    parts: Array
    design: Array
    acts: NDArray[np.int64]  # index of the part, -1: the whole
    precision: Array
    target: Array
    weight: Array
    noise: float

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Logarithm of the estimate, and each part's share of it."""
        count = self.parts.shape[1]
        logs = np.stack(
            [self.design[:, self.acts == j] @ theta[self.acts == j] for j in range(count)], 1
        )
        weighed = self.parts * np.exp(np.clip(logs, -4, 4))
        total = weighed.sum(1)
        whole = self.design[:, self.acts < 0] @ theta[self.acts < 0]
        return np.log(total) + whole, weighed / total[:, None]

    def loss(self, theta: Array) -> float:
        """Negative logarithm of the posterior."""
        off = (self.target - self.predict(theta)[0]) / SCALE
        rows = float(np.sum(self.weight * np.log1p(off**2))) * (SCALE / self.noise) ** 2
        return (rows + float(np.sum(self.precision * theta**2))) / 2

    def system(self, theta: Array) -> tuple[Array, Array]:
        """Curvature and slope of the loss around theta."""
        estimate, shares = self.predict(theta)
        whole = np.concatenate([shares, np.ones((len(shares), 1))], 1)
        slope = self.design * whole[:, self.acts]
        residual = self.target - estimate
        weight = self.weight / (1 + (residual / SCALE) ** 2) / self.noise**2
        curved = (slope * weight[:, None]).T @ slope + np.diag(self.precision)
        return curved, (slope * weight[:, None]).T @ residual - self.precision * theta


def solve(found: Sequence[Rows], candidates: Sequence[Candidate], noise: float = NOISE) -> Array:
    """The most probable value of every candidate, rows as certain as `noise` says."""
    problem = _stack(found, candidates, noise)
    theta, damping = np.zeros(len(candidates)), FIRST_DAMPING
    least = problem.loss(theta)
    for _ in range(ROUNDS):
        curved, slope = problem.system(theta)
        step, loss, damping = _step(problem, theta, (curved, slope), (least, damping))
        if step is None:
            break
        theta, least = theta + step, loss
        if np.abs(step).max() < ENOUGH:
            break
    return theta


def _step(
    problem: _Problem, theta: Array, system: tuple[Array, Array], state: tuple[float, float]
) -> tuple[Array | None, float, float]:
    """A step that lowers the loss, the loss there, and the damping for the next; or none."""
    (curved, slope), (least, damping) = system, state
    for _ in range(TRIES):
        step = np.linalg.solve(curved + damping * np.diag(np.diag(curved)), slope).astype(
            np.float64
        )
        loss = problem.loss(theta + step)
        if loss < least:
            return step, loss, max(damping / 3, 1e-4)
        damping *= 4
    return None, least, damping


def _stack(found: Sequence[Rows], candidates: Sequence[Candidate], noise: float) -> _Problem:
    names = list(found[0].parts.seconds)
    design = np.concatenate([
        np.stack(
            [block.parts.features[by] * float(where in block.labels)
             for _, by, where, _ in candidates], 1,
        )
        for block in found
    ])  # fmt: skip
    weight = np.concatenate([block.weight for block in found])
    return _Problem(
        np.concatenate([np.stack(list(b.parts.seconds.values()), 1) for b in found]),
        design,
        np.array([-1 if on == ALL else names.index(on) for on, *_ in candidates]),
        np.array([1 / deviation**2 for *_, deviation in candidates]),
        np.log(np.concatenate([block.measured for block in found])),
        weight / weight.mean(),
        noise,
    )
