"""How few nodes a token can visit: a bound from the spectrum of what tokens choose together.

Nodes of equally many experts hold at most so many pairs that one token chooses (Donath and Hoffman,
IBM Journal 17, 1973; projected onto equal sizes and loads as Rendl and Wolkowicz, Mathematical
Programming 62, 1994). A token with s pairs in common nodes visits at least as many nodes as the
convex curve through (2, …, 2, 1, …) parts says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.traffic import Visits

Array = NDArray[np.float64]
STEPS = 80
"""Of the subgradient method on the diagonal."""
SLOWING = 0.05


def least_visits(cost: Visits, nodes: int, load: tuple[Array, float], home: float) -> float:
    """No split of the experts onto `nodes` equal nodes has fewer visits a token.

    Args:
        cost: tokens of one size, experts without copies.
        nodes: how many.
        load: load shares, [experts], and the share of the load that a node may carry.
        home: most of the pairs that can be in their token's node.
    """
    row, cap = load
    sizes = cost.member.sum(axis=1)
    experts = cost.member.shape[1]
    if experts % nodes or sizes.min() != sizes.max():
        return 0.0
    inside, size = most_inside(cost, nodes, row, cap), int(sizes[0])
    if np.allclose(cost.weight, cost.weight[:, :1]):
        return least_distinct(inside, size) * (1 - 1 / nodes)
    # The token itself is one more member of the set, fixed to the node where it is.
    return least_distinct(inside + size * home, size + 1) - 1.0


def least_distinct(pairs: float, size: int) -> float:
    """Fewest nodes, on the mean, of tokens that have so many pairs in common nodes."""
    corners = []
    for parts in range(size, 0, -1):
        held = [size // parts + (i < size % parts) for i in range(parts)]
        corners.append((sum(h * (h - 1) / 2 for h in held), parts))
    found, nodes = zip(*corners, strict=True)
    return float(np.interp(pairs, found, nodes))


def most_inside(cost: Visits, nodes: int, row: Array, cap: float) -> float:
    """Most pairs of a token in common nodes, on the mean, over splits into equal nodes."""
    member = cost.member.astype(float)
    together = (member * cost.weight.sum(axis=1)[:, None]).T @ member
    np.fill_diagonal(together, 0.0)
    ones = np.full(len(row), len(row) ** -0.5)
    load = row - row.mean()
    size = float(np.linalg.norm(load))
    found = _inside(together, ones[:, None], nodes, (np.zeros_like(row), 0.0))
    if size > 1e-12:  # noqa: PLR2004 - loads that are all alike
        # Loads of nodes stray by at most `cap`; so little of the load's direction is left.
        stray = max(cap - 1 / nodes, 0.0) * (nodes * (nodes - 1)) ** 0.5 / size
        both = np.stack([ones, load / size], axis=1)
        found = min(found, _inside(together, both, nodes, (load / size, stray)))
    return found


def _inside(together: Array, fixed: Array, nodes: int, direction: tuple[Array, float]) -> float:
    experts = len(together)
    basis = np.linalg.svd(np.eye(experts) - fixed @ fixed.T)[0][:, : experts - fixed.shape[1]]
    along, stray = direction
    size = experts / nodes
    diagonal, best = np.zeros(experts), np.inf
    step = float(together.max()) * 0.2
    for turn in range(STEPS):
        matrix = together + np.diag(diagonal)
        values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
        top = vectors[:, -(nodes - 1) :]
        rest = matrix @ along
        across = 2 * (size * (nodes - 1)) ** 0.5 * stray * float(np.linalg.norm(basis.T @ rest))
        beside = stray**2 * max(float(along @ rest), 0.0)
        inside = size * float(values[-(nodes - 1) :].clip(0).sum())
        best = min(best, (float(together.sum()) / nodes + inside + across + beside) / 2)
        slope = ((basis @ top) ** 2).sum(axis=1)
        diagonal = diagonal - step / (1 + SLOWING * turn) * size * (slope - slope.mean())
    return best
