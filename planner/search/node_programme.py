"""Experts to nodes with the least traffic, as integer programmes.

    pairs:   minimise Σ p_ne (1 - x_en)       p: share of pairs whose token is on node n
    visits:  minimise Σ a_pn y_pn             a: share of tokens of pattern p that are elsewhere
             y_pn >= x_en for each expert e of pattern p: a token crosses to a node once
    subject to the slots of each node, and a load on no node beyond its devices' limit.
Without copies x is the node of an expert. With copies z counts them, and the load of an expert may
be split over its nodes at will: equal shares are one way, so the bound holds for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.solver import Expression, Programme
from planner.search.traffic import Visits

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
NODES = 4000
"""Of the branching tree."""
GAP_RATIO = 1e-5
Grid = list[list[Expression]]


@dataclass(frozen=True)
class Room:
    """What the nodes can hold.

    Args:
        slots: of each node, [nodes].
        devices: of each node, [nodes].
        cap: share of a trace's load that each node may carry, [nodes].
        copy_cap: share of a trace's load that one copy may carry.
        least: copies of each expert that pins put on each node, [experts, nodes].
    """

    slots: Ints
    devices: Ints
    cap: Array
    copy_cap: float
    least: Ints


@dataclass(frozen=True)
class Assigned:
    """Copies of each expert on each node, [experts, nodes]; none: nothing found; and a bound."""

    copies: Ints | None
    bound: float


def state_pairs(share: Array, rows: Array, room: Room) -> tuple[Programme, Grid]:
    """Write the programme of pairs.

    Args:
        share: [nodes, experts], sums to one.
        rows: load shares, [traces, experts].
        room: what the nodes can hold.
    """
    programme = Programme("traffic", maximise=False)
    there, counts = _places(programme, rows, room)
    stays = [(there[e][n], -float(share[n, e])) for e in range(share.shape[1])
             for n in range(len(share)) if share[n, e] > 0]  # fmt: skip
    everything = programme.number("all", float(share.sum()), float(share.sum()))
    programme.objective(programme.total([(everything, 1), *stays]))
    return programme, counts


def state_visits(cost: Visits, rows: Array, room: Room) -> tuple[Programme, Grid]:
    """Write the programme of visits, for experts without copies."""
    programme = Programme("visits", maximise=False)
    there, counts = _places(programme, rows, room)
    away, costs = cost.away, []
    for p, chosen in enumerate(cost.member):
        for n in range(away.shape[1]):
            if away[p, n] <= 0:
                continue
            visit = programme.number(f"visit_{p}_{n}", 0, 1)
            costs.append((visit, float(away[p, n])))
            for e in np.flatnonzero(chosen):
                pair = [(there[e][n], 1), (visit, -1)]
                programme.require(f"visits_{p}_{n}_{e}", programme.total(pair) <= 0)
    programme.objective(programme.total(costs))
    return programme, counts


def solved(stated: tuple[Programme, Grid], time_limit_s: float) -> Assigned:
    """Solve either programme."""
    programme, counts = stated
    solution = programme.attempt(
        most_nodes=NODES, gap_ratio=GAP_RATIO, time_limit_s=max(time_limit_s, 0.1)
    )
    if solution is None:
        return Assigned(None, 0.0)
    if not solution.values:
        return Assigned(None, solution.bound if solution.status == "open" else np.inf)
    found = [[round(solution.values[str(z)]) for z in row] for row in counts]
    return Assigned(np.array(found), solution.bound)


def _places(programme: Programme, rows: Array, room: Room) -> tuple[Grid, Grid]:
    """Which node holds each expert, and how many copies; within slots and load."""
    experts, nodes = rows.shape[1], len(room.slots)
    there = [[programme.binary(f"on_{e}_{n}") for n in range(nodes)] for e in range(experts)]
    copied = int(room.slots.sum()) > experts
    counts = _counted(programme, there, room) if copied else there
    part = _split(programme, there, counts, (rows, room)) if copied else there
    for e in range(experts):
        if not copied:
            programme.require(f"once_{e}", programme.total([(x, 1) for x in there[e]]) == 1)
        for n in np.flatnonzero(room.least[e]).tolist():
            least = int(room.least[e, n])
            programme.require(f"pin_{e}_{n}", programme.total([(counts[e][n], 1)]) >= least)
    for n in range(nodes):
        held = programme.total([(counts[e][n], 1) for e in range(experts)])
        programme.require(f"slots_{n}", held == int(room.slots[n]))
        for t, row in enumerate(rows):
            load = [(part[e][n], float(row[e])) for e in range(experts) if row[e] > 0]
            programme.require(f"load_{n}_{t}", programme.total(load) <= float(room.cap[n]))
    return there, counts


def _counted(programme: Programme, there: Grid, room: Room) -> Grid:
    """Copies of an expert on a node: some where it is there, at most one a device."""
    counts = [
        [programme.integer(f"copies_{e}_{n}", 0, int(room.devices[n])) for n in range(len(row))]
        for e, row in enumerate(there)
    ]
    for e, row in enumerate(counts):
        programme.require(f"once_{e}", programme.total([(z, 1) for z in row]) >= 1)
        for n, z in enumerate(row):
            some = programme.total([(there[e][n], 1), (z, -1)])
            most = programme.total([(z, 1), (there[e][n], -int(room.devices[n]))])
            programme.require(f"some_{e}_{n}", some <= 0)
            programme.require(f"most_{e}_{n}", most <= 0)
    return counts


def _split(programme: Programme, there: Grid, counts: Grid, given: tuple[Array, Room]) -> Grid:
    """Part of an expert's load that each node carries; a copy carries no more than a device may."""
    rows, room = given
    part = [[programme.number(f"part_{e}_{n}", 0, 1) for n in range(len(row))]
            for e, row in enumerate(there)]  # fmt: skip
    for e, row in enumerate(part):
        programme.require(f"whole_{e}", programme.total([(x, 1) for x in row]) == 1)
        load = float(rows[:, e].max())
        for n, x in enumerate(row):
            programme.require(f"part_{e}_{n}", programme.total([(x, 1), (there[e][n], -1)]) <= 0)
            if load > room.copy_cap:
                most = [(x, load), (counts[e][n], -room.copy_cap)]
                programme.require(f"copy_{e}_{n}", programme.total(most) <= 0)
    return part
