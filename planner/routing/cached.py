"""How often a chosen expert is not in a cache of the most recently used ones.

Che's approximation (Che, Tung, Wang, IEEE JSAC 2002): an item stays until the cache has seen as
many distinct others as it holds, a time T that is nearly the same for all items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDS = 80
"""Bisections; each halves the logarithm of what is left."""
LEAST, MOST = 1e-9, 1e12


def use_probability(experts: int, chosen: float, exponent: float) -> Array:
    """Probability that a pass uses each expert, most popular first.

    Experts are weighed by rank**-exponent and used as often as independent arrivals would, so that
    `chosen` distinct ones are expected.

    Args:
        experts: experts of a layer.
        chosen: distinct experts a pass uses in a layer, on average.
        exponent: of the power law; 0: all alike.
    """
    weight = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    if chosen >= experts:
        return np.ones(experts)
    rate = _solve(lambda r: float((1 - np.exp(-r * weight)).sum()), chosen)
    return 1 - np.exp(-rate * weight)


def miss_ratio(used: Array, share: float) -> float:
    """Share of uses that miss a least-recently-used cache.

    >>> round(miss_ratio(np.full(64, 0.1), 0.25), 2)
    0.75
    >>> miss_ratio(np.ones(8), 0.5)  # everything in turn: thrown out before it is needed again
    1.0

    Args:
        used: probability that a pass uses each item.
        share: of the items, that the cache holds.
    """
    if share >= 1:
        return 0.0
    if share <= 0:
        return 1.0
    uses = np.clip(used, 1e-12, 1 - 1e-12)
    log_idle = np.log1p(-uses)
    time = _solve(lambda t: float(-np.expm1(t * log_idle).sum()), share * len(uses))
    if time < 1:
        return 1.0
    return float((uses * np.exp(time * log_idle)).sum() / uses.sum())


def _solve(rising: object, wanted: float) -> float:
    """Where a rising function reaches a value."""
    low, high = LEAST, MOST
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        if rising(middle) < wanted:  # type: ignore[operator]
            low = middle
        else:
            high = middle
    return high
