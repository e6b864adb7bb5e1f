"""Which experts share weights: dominant experts by use, the others to the most alike of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError

Array = NDArray[np.float64]
Whole = NDArray[np.int64]


def choose_owners(frequency: Array, logits: Array, groups: int) -> Whole:
    """Owner of each expert (M-SMoE, arXiv:2310.01334, section 3.2).

    Use is normalised so that a layer's busiest expert is 1; the `groups` highest over all layers
    stay. Every other expert joins the dominant one of its layer whose router logits are most alike
    (cosine over the trace). The busiest expert of every layer stays always; the first layer, which
    loses most when merged, is left alone.

    Args:
        frequency: use of each expert, [layers, experts].
        logits: router logits, [tokens, layers, experts].
        groups: dominant experts over all layers, those of the first layer included.

    Raises:
        MoesaicError: `invalid` for shapes that differ, `infeasible` for too few groups.
    """
    layers, experts = frequency.shape
    if logits.shape[1:] != frequency.shape:
        raise MoesaicError("invalid", f"use is {frequency.shape}, logits {logits.shape[1:]}")
    if not experts + layers - 1 <= groups <= layers * experts:
        raise MoesaicError(
            "infeasible",
            f"{groups} groups; the first layer keeps its {experts} experts and each of the other "
            f"{layers - 1} layers one, so {experts + layers - 1} to {layers * experts} work",
            "/groups",
        )
    use = frequency / np.maximum(frequency.max(axis=1, keepdims=True), 1e-300)
    rank = use.copy()
    rank[0] = np.inf
    rank[np.arange(layers), use.argmax(axis=1)] = np.inf
    stays = np.zeros(rank.size, dtype=bool)
    stays[np.argsort(-rank, axis=None, kind="stable")[:groups]] = True
    dominant = stays.reshape(rank.shape)
    return np.stack([_joined(logits[:, i], dominant[i]) for i in range(layers)])


def _joined(logits: Array, dominant: NDArray[np.bool_]) -> Whole:
    """Owner of each expert of one layer."""
    unit = logits / np.maximum(np.linalg.norm(logits, axis=0), 1e-300)
    alike = unit.T @ unit
    alike[:, ~dominant] = -np.inf
    owners = alike.argmax(axis=1)
    owners[dominant] = np.flatnonzero(dominant)
    return np.asarray(owners, dtype=np.int64)
