"""One layer: balanced, within pins and groups, then with little traffic where that was asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.search.contents import counted
from planner.search.crossing import Layer, greedy_copies, least_crossing
from planner.search.eplb import eplb
from planner.search.exact import small, tightened
from planner.search.grouping import Groups, expanded, formed, inside, on_devices, on_nodes
from planner.search.packing import TRIED, Packing, busiest, pack
from planner.search.pins import Pins, no_pins, resolve
from planner.search.placement_answer import LayerTraffic
from planner.search.placement_question import PlacementQuestion
from planner.search.traffic import Cost, Pairs, patterns

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
WORTH_RATIO = 1e-6
"""A small layer farther from its bound is solved as one programme."""
MOST_SLOTS = 64
"""Of a layer whose devices' contents are counted."""
PROGRAMME_S = 120.0
"""Most that one programme may take; its nodes end long before."""
SLACKS = (0.0, 0.02, 0.1, 0.3, 1.0)
"""Limits on the busiest device, over the best found, between which a weighted sum is searched."""


@dataclass
class Clock:
    """Seconds left of a question."""

    limit_s: float
    started_s: float
    late: bool = False

    def left_s(self) -> float:
        """Seconds left; none left is remembered."""
        left = self.limit_s - (time.perf_counter() - self.started_s)
        self.late = self.late or left <= 0
        return max(left, 0.0)


@dataclass(frozen=True)
class Solved:
    """One layer's layout, the published balancing of it, its traffic and groups."""

    packing: Packing
    baseline: Ints
    crossing: LayerTraffic | None
    member: Ints


def solve_layer(
    question: PlacementQuestion, index: int, rows: Array, slots: int, clock: Clock,
    known: Ints | None = None,
) -> Solved:  # fmt: skip
    """Place the experts of one layer.

    Args:
        question: what is asked.
        index: row of the loads.
        rows: load shares of each trace to balance, [traces, experts].
        slots: of the layer.
        clock: when its time is over only the first packing is made.
        known: slots of a layout from which swaps start; a quick answer, without larger programmes.
    """
    speeds, node_of = question.relative_speeds(), question.node_of()
    groups = Groups(_members(question, rows), question.groups)
    base = baseline(question, rows.mean(axis=0), slots, groups)
    pins = resolve(question.pins, index, node_of, slots // question.devices,
                   slots - question.experts)  # fmt: skip
    tried = TRIED if known is None and clock.left_s() else 0
    packing = _balanced(question, groups, (rows, slots, speeds), base, (pins, tried))
    if question.groups == 1 and small(packing) and _loose(packing) and clock.left_s():
        packing = tightened(packing, rows, speeds, pins)
    if _countable(question, packing, pins) and clock.left_s():
        packing = counted(packing, rows)
    traffic = None
    if question.objective != "balance" and clock.left_s():
        packing, traffic = _crossing(question, index, (groups, rows, pins), packing, (clock, known))
    return Solved(packing, base, traffic, groups.member)


def baseline(question: PlacementQuestion, row: Array, slots: int, groups: Groups) -> Ints:
    """The published balancing; hierarchical where groups stay on nodes."""
    order = groups.experts().ravel()
    count = groups.count if question.groups_on == "node" else 1
    layout = eplb(row[order], slots, question.devices, question.nodes, count)
    return np.asarray(order[layout], dtype=np.int64)


def _members(question: PlacementQuestion, rows: Array) -> Ints:
    return formed(rows, question.groups) if question.form_groups else question.members()


def _loose(packing: Packing) -> bool:
    return packing.max_over_mean > packing.bound * (1 + WORTH_RATIO)


def _countable(question: PlacementQuestion, packing: Packing, pins: Pins) -> bool:
    """Whether a layer with a gap is small, on devices that nothing tells apart."""
    alike = question.speeds is None or len(set(question.speeds)) == 1
    free = question.groups == 1 and alike and not len(pins.experts)
    return free and packing.experts.size <= MOST_SLOTS and _loose(packing)


def _balanced(
    question: PlacementQuestion, groups: Groups, given: tuple[Array, int, Array],
    start: Ints, kept: tuple[Pins, int],
) -> Packing:  # fmt: skip
    (rows, slots, speeds), (pins, tried) = given, kept
    if question.groups > 1 and question.groups_on == "device":
        return on_devices(groups, rows, slots, speeds)
    if question.groups > 1 and question.nodes > 1:
        return on_nodes(groups, rows, slots, speeds, question.nodes)
    return pack(rows, slots, speeds, start, pins, tried)


def cost_of(question: PlacementQuestion, index: int, row: Array, unit_of: Ints) -> Cost:
    """What traffic is in a layer: visits of tokens, pairs by source, or pairs from anywhere.

    Args:
        question: what is asked.
        index: row of the loads.
        row: mean load shares, [experts].
        unit_of: what moves as one, [experts].
    """
    if question.tokens is not None:
        where = None if question.token_nodes is None else np.array(question.token_nodes)
        cost = patterns(np.array(question.tokens[index]), where, question.nodes, unit_of)
        return replace(cost, copied=question.redundant > 0 or question.copies != "given")
    if question.sources is not None:
        share = np.array(question.sources[index])
    else:
        share = np.tile(row / question.nodes, (question.nodes, 1))
    units = np.zeros((question.nodes, int(unit_of.max()) + 1))
    np.add.at(units.T, unit_of, share.T)
    return Pairs(units / max(float(units.sum()), 1e-300))


def _crossing(
    question: PlacementQuestion, index: int, given: tuple[Groups, Array, Pins],
    packing: Packing, search: tuple[Clock, Ints | None],
) -> tuple[Packing, LayerTraffic]:  # fmt: skip
    """Layouts within one limit on the busiest device, or the best of several by weight."""
    (groups, rows, pins), (clock, known) = given, search
    speeds, node_of = question.relative_speeds(), question.node_of()
    grouped = question.groups > 1
    unit_of = groups.member if grouped else np.arange(question.experts)
    cost = cost_of(question, index, rows.mean(axis=0), unit_of)
    loads = groups.loads(rows) if grouped else rows
    layer, start = Layer(loads, speeds, node_of, pins, cost), packing
    if grouped:
        pins = no_pins(question.devices)
        layer, start = _units(question, groups, layer, packing)
    weighted = question.objective == "weighted"
    before = cost.value(start.experts.ravel(), np.repeat(layer.node_of, start.experts.shape[1]))
    found = []
    for slack in SLACKS if weighted else (question.balance_slack,):
        cap = start.max_over_mean * (1 + slack)
        limit_s = min(clock.left_s(), PROGRAMME_S)
        crossing = least_crossing(layer, start, cap, limit_s, None if grouped else known)
        if grouped:
            limit = packing.max_over_mean * (1 + slack)
            whole = _whole(question, groups, rows, packing, crossing.packing.experts)
            crossing = replace(crossing, packing=whole)
            if whole.max_over_mean > limit * (1 + 1e-9):
                crossing = replace(crossing, packing=packing, value=before)
        found.append(crossing)
    best = min(found, key=lambda c: (
        c.packing.max_over_mean + question.traffic_weight * c.value))  # fmt: skip
    bound = min(best.bound, best.value)
    return best.packing, LayerTraffic(
        layer=index, crossing=best.value, crossing_before=before, bound=bound,
        gap_ratio=1 - bound / best.value if best.value > 0 else 0.0,
        greedy=best.greedy, greedy_max_over_mean=_fullest_node(layer, start.experts.size),
    )  # fmt: skip


def _fullest_node(layer: Layer, slots: int) -> float:
    """Load of the fullest node under the greedy, over what its devices should carry."""
    room = layer.room(slots, 1.0)
    table = greedy_copies(layer, room)
    load = (layer.rows.mean(axis=0) / table.sum(axis=1)) @ table
    return float((load / (room.cap / room.cap.sum())).max())


def _units(
    question: PlacementQuestion, groups: Groups, layer: Layer, packing: Packing
) -> tuple[Layer, Packing]:
    """Groups in place of experts: on devices, or on nodes as if each were one device."""
    size = question.experts // groups.count
    if question.groups_on == "device":
        units = groups.member[packing.experts[:, ::size]]
        value = busiest(units, layer.rows, layer.speeds)
        return layer, Packing(units, value, packing.bound)
    nodes = question.nodes
    speeds = layer.speeds.reshape(nodes, -1).mean(axis=1)
    held = groups.member[packing.experts.reshape(nodes, -1)]
    units = np.stack([np.unique(row) for row in held])
    value = busiest(units, layer.rows, speeds)
    alone = Layer(layer.rows, speeds, np.arange(nodes), no_pins(nodes), layer.cost)
    return alone, Packing(units, value, 1.0)


def _whole(
    question: PlacementQuestion, groups: Groups, rows: Array, packing: Packing, units: Ints
) -> Packing:
    """Experts in place of groups."""
    speeds = question.relative_speeds()
    if question.groups_on == "device":
        return expanded(groups, units, rows, speeds, packing.bound)
    node_of = np.empty(groups.count, dtype=np.int64)
    node_of[units.ravel()] = np.repeat(np.arange(len(units)), units.shape[1])
    whole = inside(groups, node_of, (rows, packing.experts.size, speeds), 0.0)
    return Packing(whole.experts, whole.max_over_mean, packing.bound)
