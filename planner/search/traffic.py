"""What crosses between nodes: by token-expert pairs, or by tokens that visit each node once.

A token is served in its own node where a copy is there, else by the next node in order that holds
one. `value` measures a layout; `change` says by how much each swap of two slots would change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Token-expert pairs by the node where the token is.

    Args:
        share: share of all pairs, [nodes, experts], sums to one.
    """

    share: Array

    def value(self, experts: Ints, nodes: Ints) -> float:
        """Share of pairs that leave their node; `experts` and `nodes` are of each slot."""
        return float(self.share[_count(self, experts, nodes) == 0].sum())

    def change(self, experts: Ints, nodes: Ints) -> Array:
        """What a swap of two slots on different nodes adds, [slots, slots]."""
        held = _count(self, experts, nodes)
        alone = self.share[nodes, experts] * (held[nodes, experts] == 1)
        come = np.where(held == 0, self.share, 0.0)
        gain = come[:, experts].T[:, nodes]
        return _both(alone[:, None] - gain)

    @property
    def exact(self) -> bool:
        """Whether `change` is exact."""
        return True


@dataclass(frozen=True)
class Visits:
    """Tokens by what they choose and where they are.

    Args:
        member: which experts each pattern of tokens chooses, [patterns, experts].
        weight: share of all tokens, by pattern and node, [patterns, nodes].
        copied: whether any expert may have several copies; `change` is a guess then.
    """

    member: Mask
    weight: Array
    copied: bool = False

    @property
    def share(self) -> Array:
        """The pairs in it, as `Pairs.share`."""
        pairs: Array = self.weight.T @ self.member.astype(float)
        pairs /= pairs.sum()
        return pairs

    @property
    def away(self) -> Array:
        """Share of tokens of each pattern that are elsewhere, [patterns, nodes]."""
        elsewhere: Array = self.weight.sum(axis=1, keepdims=True) - self.weight
        return elsewhere

    @property
    def top_k(self) -> float:
        """Experts a token chooses."""
        return float(self.weight.sum(axis=1) @ self.member.sum(axis=1) / self.weight.sum())

    def value(self, experts: Ints, nodes: Ints) -> float:
        """Nodes beside its own that a token visits, mean."""
        held = _count(self, experts, nodes) > 0
        if not (held.sum(axis=0) > 1).any():
            return float((self._reached(held.T) * self.away).sum())
        total = 0.0
        for node in range(len(held)):
            here = self.weight[:, node] > 0
            served = _served(held, node)
            served[:, node] = False
            reached = self.member[here].astype(np.float32) @ served.astype(np.float32) > 0
            total += float(self.weight[here, node] @ reached.sum(axis=1))
        return total

    def _reached(self, where: Array | Mask) -> Mask:
        """Which nodes the tokens of each pattern use; `where` is [experts, nodes]."""
        return np.asarray(self.member.astype(np.float32) @ where.astype(np.float32) > 0)

    def change(self, experts: Ints, nodes: Ints) -> Array:
        """What a swap of two slots on different nodes adds, [slots, slots].

        Two tokens that choose both experts of a swap keep a reason to visit either node.
        """
        member, away = self.member.astype(np.float32), self.away.astype(np.float32)
        held = _count(self, experts, nodes).T
        count = member @ held.astype(np.float32)
        last = member[:, experts] * (count[:, nodes] == 1) * away[:, nodes]
        last *= held[experts, nodes] == 1
        come = (member.T @ ((count == 0) * away))[experts][:, nodes]
        stay = last.T @ member[:, experts]
        return _both((come - last.sum(axis=0)[:, None] + stay).astype(float))

    @property
    def exact(self) -> bool:
        """Whether `change` is exact."""
        return not self.copied


Cost = Pairs | Visits


def patterns(ids: Ints, nodes_of_tokens: Ints | None, nodes: int, unit_of: Ints) -> Visits:
    """Tokens that choose the same units from the same node as one.

    Args:
        ids: experts of each token, [tokens, top_k].
        nodes_of_tokens: node of each token; none: any node equally.
        nodes: how many nodes.
        unit_of: what moves as one, such as the group of each expert, [experts].
    """
    chosen = np.zeros((len(ids), int(unit_of.max()) + 1), dtype=bool)
    chosen[np.arange(len(ids))[:, None], unit_of[ids]] = True
    member, which = np.unique(chosen, axis=0, return_inverse=True)
    weight = np.zeros((len(member), nodes))
    if nodes_of_tokens is None:
        weight += np.bincount(which.ravel())[:, None] / nodes
    else:
        np.add.at(weight, (which.ravel(), nodes_of_tokens), 1.0)
    return Visits(member, weight / len(ids))


def _count(cost: Cost, experts: Ints, nodes: Ints) -> Ints:
    """Copies by node and expert."""
    count = cost.share.shape[1] if isinstance(cost, Pairs) else cost.member.shape[1]
    where = cost.share.shape[0] if isinstance(cost, Pairs) else cost.weight.shape[1]
    flat = np.bincount(nodes * count + experts, minlength=where * count)
    return flat.reshape(where, count)


def _served(held: Mask, node: int) -> Mask:
    """Which node serves each expert for tokens of `node`, [experts, nodes]."""
    order = np.roll(np.arange(len(held)), -node)
    first = order[held[order].argmax(axis=0)]
    where = np.zeros(held.T.shape, dtype=bool)
    where[np.arange(len(where)), first] = True
    return where


def _both(one: Array) -> Array:
    """Sum what either side of a swap adds."""
    both: Array = one + one.T
    return both
