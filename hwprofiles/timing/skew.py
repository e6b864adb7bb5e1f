"""What a power-law load does to the busiest rank: its token-expert pairs and active experts.

Expert loads are drawn from x^-alpha between two bounds and scaled to the tokens, as the measured
tables do it (aiconfigurator 0.12 collector, power-law workload); the figure here is the mean over
fixed draws, so it repeats exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hwprofiles.timing.rows import Array

_DRAWS = 48
_SEED = 20240601
_FEW, _FEW_MOST = 0.01, 2.0
"""Bounds of one expert's load where there are fewer token-expert pairs than experts."""
_MANY_SHARE = 0.8
"""Most tokens one expert gets, as a share of all, where there are more."""


@lru_cache(maxsize=200_000)
def busiest(alpha: float, tokens: int, top_k: int, experts: int, ranks: int) -> tuple[float, float]:
    """Busiest rank's pairs over the mean, and its active experts.

    Args:
        alpha: exponent of the load; 0 is balanced.
        tokens: tokens of all ranks.
        top_k: experts a token goes to.
        experts: experts of all ranks.
        ranks: ranks the experts are spread over.
    """
    pairs = tokens * top_k
    local = max(experts // ranks, 1)
    mean = pairs / ranks
    if alpha <= 0:
        return max(1.0, 1 / mean), float(min(local, max(1.0, mean)))
    loads = np.round(_loads(alpha, tokens, pairs, local * ranks)).reshape(_DRAWS, ranks, local)
    sums = loads.sum(axis=2)
    top = sums.argmax(axis=1)
    active = (loads[np.arange(_DRAWS), top] > 0).sum(axis=1).mean()
    busy = max(float(sums.max(axis=1).mean()), 1.0)
    return max(busy / mean, 1.0), float(max(active, 1.0))


def _loads(alpha: float, tokens: int, pairs: int, experts: int) -> Array:
    draws = _draws(experts)
    low, high = (1.0, max(tokens * _MANY_SHARE, 1.5)) if pairs > experts else (_FEW, _FEW_MOST)
    power = 1 - alpha if abs(alpha - 1) > 1e-6 else 1e-6  # noqa: PLR2004 - x^-1 has no such inverse
    loads = ((high**power - low**power) * draws + low**power) ** (1 / power)
    scaled: Array = loads / loads.sum(axis=1, keepdims=True) * pairs
    return scaled


@lru_cache(maxsize=64)
def _draws(experts: int) -> Array:
    return np.random.default_rng(_SEED).random((_DRAWS, experts))


TOKENS = np.array(
    [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048,
     3072, 4096, 6144, 8192, 12288, 16384, *(2**i for i in range(15, 41))], dtype=float,
)  # fmt: skip
"""Tokens that loads are drawn for: those of the measured tables, then doublings."""


def busiest_of(columns: Sequence[Array]) -> tuple[Array, Array]:
    """`busiest` for arrays of alpha, tokens, top_k, experts and ranks.

    Skewed loads are drawn at `TOKENS` and interpolated between them.
    """
    alpha, tokens, *rest = (np.asarray(c, dtype=float) for c in columns)
    lower = np.clip(np.searchsorted(TOKENS, tokens, side="right") - 1, 0, len(TOKENS) - 2)
    skewed = alpha > 0
    below = np.where(skewed, TOKENS[lower], tokens)
    above = np.where(skewed, TOKENS[lower + 1], tokens)
    part = np.log(np.maximum(tokens, 1) / TOKENS[lower]) / np.log(TOKENS[lower + 1] / TOKENS[lower])
    part = np.where(skewed, np.clip(part, 0, 1), 0)
    first, second = (_drawn([alpha, at, *rest]) for at in (below, above))
    ratio, active = ((1 - part) * a + part * b for a, b in zip(first, second, strict=True))
    return ratio, active


def _drawn(columns: Sequence[Array]) -> tuple[Array, Array]:
    """`busiest` of each distinct row of the columns; balanced ones in closed form."""
    ratio, active = _balanced(columns)
    skewed = columns[0] > 0
    if skewed.any():
        ratio[skewed], active[skewed] = _each_once([c[skewed] for c in columns])
    return ratio, active


def _balanced(columns: Sequence[Array]) -> tuple[Array, Array]:
    """As `busiest` for an exponent of 0."""
    tokens, top_k, experts, ranks = (np.trunc(c) for c in columns[1:])
    mean = tokens * top_k / ranks
    local = np.maximum(experts // ranks, 1)
    with np.errstate(divide="ignore"):
        return np.maximum(1.0, 1 / mean), np.minimum(local, np.maximum(1.0, mean))


def _each_once(columns: Sequence[Array]) -> tuple[Array, Array]:
    code = np.stack(columns, axis=1) @ np.sqrt(np.array([2.0, 3.0, 5.0, 7.0, 11.0]))
    _, index, back = np.unique(code, return_index=True, return_inverse=True)
    alphas, *sizes = (c[index].tolist() for c in columns)
    whole = ([int(size) for size in column] for column in sizes)
    found = np.array(list(map(busiest, alphas, *whole)))
    return found[back.ravel(), 0], found[back.ravel(), 1]


def alpha_of(busy: Array, columns: Sequence[Array]) -> Array:
    """Exponent of the power law whose busiest rank is as busy as stated.

    Args:
        busy: busiest rank's pairs over the mean.
        columns: tokens, top_k, experts and ranks.
    """
    alpha = np.zeros(len(busy))
    skewed = busy > 1.02  # noqa: PLR2004 - two per cent is balanced
    if skewed.any():
        # Half-octave steps in tokens: the ratio changes slowly with them.
        steps = [np.round(2 ** (np.round(2 * np.log2(np.maximum(columns[0][skewed], 1))) / 2))]
        rest = [c[skewed] for c in columns[1:]]
        most, _ = busiest_of([np.full(int(skewed.sum()), _STEEP), *steps, *rest])
        ratio = np.log(busy[skewed]) / np.log(np.maximum(most, 1.02))
        alpha[skewed] = _STEEP * np.clip(ratio, 0, 1)
    return alpha


_STEEP = 1.2
"""Steepest measured load."""
