"""The baseline to beat: DeepSeek's published expert balancing, written anew from its description.

Copies go one by one to the expert with the most load per copy; copies are packed largest first onto
the emptiest device with room. Hierarchically, groups of experts are first packed onto nodes and
copies are made inside a node (github.com/deepseek-ai/EPLB README, 2025-02).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def replicate(
    weights: Array, slots: int, most_copies: int | None = None, least: Ints | None = None
) -> Ints:
    """Copies of each expert when `slots` copies are made one by one where load per copy is most.

    Args:
        weights: load of each expert, [experts].
        slots: copies in all, at least one an expert.
        most_copies: no expert gets more (devices that can hold one each).
        least: copies that each expert has from the start; none: one.
    """
    copies = np.ones(len(weights), dtype=np.int64) if least is None else least.copy()
    each = weights / copies
    if most_copies is not None:
        each[copies >= most_copies] = -1.0
    for _ in range(slots - int(copies.sum())):
        expert = int(np.argmax(each))
        copies[expert] += 1
        full = most_copies is not None and copies[expert] >= most_copies
        each[expert] = -1.0 if full else weights[expert] / copies[expert]
    return copies


def pack_evenly(weights: Array, packs: int) -> Ints:
    """Pack of each item: largest first into the lightest pack with room; equal counts a pack."""
    room = np.full(packs, len(weights) // packs)
    load = np.zeros(packs)
    chosen = np.empty(len(weights), dtype=np.int64)
    for item in np.argsort(-weights, kind="stable"):
        pack = int(np.argmin(np.where(room > 0, load, np.inf)))
        chosen[item] = pack
        load[pack] += weights[item]
        room[pack] -= 1
    return chosen


def eplb(weights: Array, slots: int, devices: int, nodes: int = 1, groups: int = 1) -> Ints:
    """Logical expert in each slot of each device, [devices, slots / devices].

    With `groups` divisible by `nodes` groups stay on one node (hierarchical), else the whole
    cluster is one domain (global).
    """
    if nodes > 1 and groups % nodes == 0 and groups >= nodes:
        return _hierarchical(weights, slots, devices, nodes, groups)
    return _packed(weights, np.arange(len(weights)), slots, devices)


def _packed(weights: Array, names: Ints, slots: int, devices: int) -> Ints:
    copies = replicate(weights, slots)
    logical = np.repeat(np.arange(len(weights)), copies)
    device = pack_evenly((weights / copies)[logical], devices)
    order = np.argsort(device, kind="stable")
    return names[logical[order]].reshape(devices, -1)


def _hierarchical(weights: Array, slots: int, devices: int, nodes: int, groups: int) -> Ints:
    by_group = weights.reshape(groups, -1)
    node = pack_evenly(by_group.sum(axis=1), nodes)
    parts = []
    for n in range(nodes):
        names = np.arange(len(weights)).reshape(groups, -1)[node == n].ravel()
        parts.append(_packed(weights[names], names, slots // nodes, devices // nodes))
    return np.concatenate(parts)
