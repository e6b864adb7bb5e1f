"""Groups of experts that stay together: which experts form one, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.packing import Packing, busiest, lower_bound, pack
from planner.search.solver import Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_STATED = 128
"""Groups times nodes up to which the programme decides; beyond, the packing with its bound."""
NODES = 4000
TIME_LIMIT_S = 10.0


@dataclass(frozen=True)
class Groups:
    """Groups of one layer.

    Args:
        member: group of each expert, [experts].
        count: how many groups, of equal size.
    """

    member: Ints
    count: int

    def experts(self) -> Ints:
        """Experts of each group, [groups, experts of a group]."""
        return np.argsort(self.member, kind="stable").reshape(self.count, -1)

    def loads(self, rows: Array) -> Array:
        """Load of each group, [traces, groups]."""
        summed: Array = rows[:, self.experts()].sum(axis=2)
        return summed


def formed(rows: Array, count: int) -> Ints:
    """Which experts form a group, so that the fullest of `count` equal groups is least full.

    Args:
        rows: load shares, [traces, experts].
        count: how many groups.

    Returns:
        Group of each expert.
    """
    layout = pack(rows, rows.shape[1], np.ones(count)).experts
    member = np.empty(rows.shape[1], dtype=np.int64)
    member[layout.ravel()] = np.repeat(np.arange(count), layout.shape[1])
    return member


def on_devices(groups: Groups, rows: Array, slots: int, speeds: Array) -> Packing:
    """Whole groups, and whole copies of groups, onto devices."""
    size = rows.shape[1] // groups.count
    units = pack(groups.loads(rows), slots // size, speeds)
    return expanded(groups, units.experts, rows, speeds, units.bound)


def expanded(groups: Groups, units: Ints, rows: Array, speeds: Array, bound: float) -> Packing:
    """A layout of groups, [devices, groups], as one of experts."""
    layout = groups.experts()[units].reshape(len(units), -1)
    return Packing(layout, busiest(layout, rows, speeds), bound)


def on_nodes(groups: Groups, rows: Array, slots: int, speeds: Array, nodes: int) -> Packing:
    """Groups to nodes with proof, then copies inside each node."""
    node_of, fullest = assign_groups(groups.loads(rows), nodes)
    return inside(groups, node_of, (rows, slots, speeds), fullest)


def inside(
    groups: Groups, node_of: Ints, given: tuple[Array, int, Array], fullest: float
) -> Packing:
    """Copies inside each node when the node of each group is decided.

    Args:
        groups: the groups.
        node_of: node of each group.
        given: load shares [traces, experts], slots in all, relative speeds.
        fullest: share of the load that some node carries at least.
    """
    rows, slots, speeds = given
    nodes = int(node_of.max()) + 1
    width = len(speeds) // nodes
    parts = []
    for node in range(nodes):
        names = np.sort(groups.experts()[node_of == node].ravel())
        local = speeds[node * width : (node + 1) * width]
        part = pack(rows[:, names], slots // nodes, local)
        parts.append(names[part.experts])
    layout = np.concatenate(parts)
    bound = max(lower_bound(rows, slots, speeds), fullest * nodes / float(speeds.max()))
    return Packing(layout, busiest(layout, rows, speeds), bound)


def assign_groups(loads: Array, nodes: int) -> tuple[Ints, float]:
    """Node of each group: equal counts, the fullest node as empty as can be, worst trace.

    Args:
        loads: [traces, groups].
        nodes: how many nodes share the groups equally.

    Returns:
        Node of each group, and the bound on the fullest node's load.
    """
    groups = loads.shape[1]
    if groups * nodes > MOST_STATED:
        return _packed(loads, nodes)
    programme = state_groups(loads, nodes)
    solution = programme.attempt(time_limit_s=TIME_LIMIT_S, most_nodes=NODES)
    if solution is None or not solution.values:
        return _packed(loads, nodes)
    chosen = np.array(
        [[solution.values[f"on_{g}_{n}"] for n in range(nodes)] for g in range(groups)]
    )
    return chosen.argmax(axis=1), solution.bound


def _packed(loads: Array, nodes: int) -> tuple[Ints, float]:
    groups = loads.shape[1]
    packed = pack(loads, groups, np.ones(nodes))
    node = np.empty(groups, dtype=np.int64)
    node[packed.experts.ravel()] = np.repeat(np.arange(nodes), groups // nodes)
    return node, packed.bound / nodes


def state_groups(loads: Array, nodes: int) -> Programme:
    """Write the programme of `assign_groups`."""
    traces, groups = loads.shape
    programme = Programme("groups", maximise=False)
    fullest = programme.number("fullest")
    on = [[programme.binary(f"on_{g}_{n}") for n in range(nodes)] for g in range(groups)]
    for g in range(groups):
        programme.require(f"once_{g}", programme.total([(x, 1) for x in on[g]]) == 1)
    for n in range(nodes):
        held = [(on[g][n], 1) for g in range(groups)]
        programme.require(f"equal_{n}", programme.total(held) == groups // nodes)
        for t in range(traces):
            load = [(on[g][n], float(loads[t, g])) for g in range(groups)]
            programme.require(f"load_{n}_{t}", programme.total([*load, (fullest, -1)]) <= 0)
    programme.objective(programme.total([(fullest, 1)]))
    return programme
