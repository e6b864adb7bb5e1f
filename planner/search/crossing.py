"""Layouts with little traffic between nodes whose busiest device stays within a limit.

The programme decides nodes by pairs with proof; tokens that visit a node once are hard to bound, so
there swaps start from the programme's answer and from the balanced layout. Inside a node copies
are packed; then slots are swapped as long as traffic falls and every device keeps its limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.eplb import replicate
from planner.search.node_programme import Assigned, Room, solved, state_pairs, state_visits
from planner.search.packing import Packing, busiest, improved, largest_first
from planner.search.pins import FREE, Pins, no_pins
from planner.search.spectral import least_visits
from planner.search.traffic import Cost, Pairs, Visits

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
ROUNDS = 600
"""Swaps of one search at most."""
VERIFIED = 12
"""Swaps whose change is measured where it is only guessed."""
SMALL_VISITS = 400
"""Patterns times nodes up to which visits are minimised by the programme."""
POLISHED = 2
"""Starts, those with least traffic, whose slots are swapped."""
MOST_SLOTS = 2048
"""Slots of a layer up to which swaps are searched."""
EASE = 1 + 1e-9


@dataclass(frozen=True)
class Layer:
    """What is given of one layer.

    Args:
        rows: load shares, [traces, experts].
        speeds: relative speed of each device, mean one.
        node_of: node of each device.
        pins: copies that must stand somewhere.
        cost: what traffic is.
    """

    rows: Array
    speeds: Array
    node_of: Ints
    pins: Pins
    cost: Cost

    def room(self, slots: int, cap: float) -> Room:
        """What nodes can hold when no device carries more than `cap` times the mean."""
        nodes = int(self.node_of.max()) + 1
        devices = np.bincount(self.node_of)
        width = slots // len(self.node_of)
        speed = np.bincount(self.node_of, self.speeds) / len(self.node_of)
        least = np.zeros((self.rows.shape[1], nodes), dtype=np.int64)
        for expert, allowed in zip(self.pins.experts, self.pins.allowed, strict=True):
            least[expert, self.node_of[int(allowed.argmax())]] += 1
        copy_cap = cap * float(self.speeds.max()) / len(self.node_of)
        return Room(devices * width, devices, cap * speed * EASE, copy_cap * EASE, least)


@dataclass(frozen=True)
class Crossing:
    """A layout, what crosses with it, and what must cross at least and crosses under the greedy."""

    packing: Packing
    value: float
    bound: float
    greedy: float


def least_crossing(
    layer: Layer, balanced: Packing, cap: float, time_limit_s: float, known: Ints | None = None
) -> Crossing:
    """Find the layout with least traffic whose busiest device is at most `cap` times the mean.

    Args:
        layer: what is given.
        balanced: a layout that keeps the limit.
        cap: limit on busiest over mean.
        time_limit_s: of each programme.
        known: slots of another layout; swaps start from it too, and no programme is solved.
    """
    slots = balanced.experts.size
    room = layer.room(slots, cap)
    greedy = greedy_copies(layer, room)
    starts = [balanced.experts]
    for copies in (greedy, greedy_copies(layer, room, capped=True)):
        starts += _packed(layer, copies, cap)
    bound = 0.0
    if known is None:
        copied, bound = _by_programme(layer, room, time_limit_s)
        for copies in copied:
            starts += _packed(layer, copies, cap)
    elif known.size == slots:
        starts.append(known.reshape(balanced.experts.shape))
    if isinstance(layer.cost, Visits):
        nearest = sorted(starts, key=lambda s: _measure(layer, s))
        for copies in _by_node(layer, nearest[: POLISHED if layer.cost.copied else None], room):
            starts += _packed(layer, copies, cap)
    best, value = _best_polished(layer, balanced.experts, starts, cap)
    packing = Packing(best, busiest(best, layer.rows, layer.speeds), balanced.bound)
    nodes, experts = np.nonzero(greedy.T)
    return Crossing(packing, value, _below(min(bound, value)), layer.cost.value(experts, nodes))


def _best_polished(
    layer: Layer, balanced: Ints, starts: list[Ints], cap: float
) -> tuple[Ints, float]:
    """The starts with least traffic after swaps, where they keep the limit; and what crosses."""
    best, value = balanced, _measure(layer, balanced)
    kept = [s for s in starts if busiest(s, layer.rows, layer.speeds) <= cap * EASE]
    for start in sorted(kept, key=lambda s: _measure(layer, s))[:POLISHED]:
        layout = _polished(layer, start, cap)
        if (found := _measure(layer, layout)) < value - 1e-12:
            best, value = layout, found
    return best, value


def _by_programme(layer: Layer, room: Room, time_limit_s: float) -> tuple[list[Ints], float]:
    """Copies by node that the programmes find, and the bound on what crosses."""
    pairs = Pairs(layer.cost.share)
    assigned = solved(state_pairs(pairs.share, layer.rows, room), time_limit_s)
    found, bound = [assigned.copies], assigned.bound
    if isinstance(layer.cost, Visits):
        exact = _visits_programme(layer, layer.cost, room, time_limit_s)
        bound = _visits_bound(layer, layer.cost, room, (assigned, exact))
        found.append(None if exact is None else exact.copies)
    return [copies for copies in found if copies is not None], bound


def _below(bound: float) -> float:
    """The bound rounded down, so that the order of sums does not show."""
    return float(np.floor(bound * 1e9) / 1e9)


def _measure(layer: Layer, layout: Ints) -> float:
    return layer.cost.value(layout.ravel(), np.repeat(layer.node_of, layout.shape[1]))


def _visits_programme(
    layer: Layer, cost: Visits, room: Room, time_limit_s: float
) -> Assigned | None:
    """Visits by the programme where it is small and no expert has copies."""
    experts = layer.rows.shape[1]
    if cost.copied or int(room.slots.sum()) > experts or cost.weight.size > SMALL_VISITS:
        return None
    return solved(state_visits(cost, layer.rows, room), time_limit_s)


def _visits_bound(
    layer: Layer, cost: Visits, room: Room, assigned: tuple[Assigned, Assigned | None]
) -> float:
    """The best of three bounds: pairs over the most that a visit serves, spectrum, programme."""
    pairs, exact = assigned
    found = [pairs.bound, 0.0 if exact is None else exact.bound]
    if int(room.slots.sum()) == layer.rows.shape[1] and len(set(room.slots.tolist())) == 1:
        cap = float(room.cap.max())
        found += [least_visits(cost, len(room.slots), (row, cap), 1 - pairs.bound)
                  for row in layer.rows]  # fmt: skip
    return max(found)


def _by_node(layer: Layer, starts: list[Ints], room: Room) -> list[Ints]:
    """Copies by node after swaps between nodes, which need not keep the limit of a device."""
    found = []
    for start in starts:
        experts, nodes = start.ravel(), np.repeat(layer.node_of, start.shape[1])
        if len(experts) > MOST_SLOTS:
            continue
        copies = np.bincount(experts, minlength=layer.rows.shape[1])
        each = layer.rows / copies
        swapped = _swapped(
            layer.cost, (experts, nodes, nodes), each, room.cap, _slot_masks(layer, start)
        )
        table = np.zeros((layer.rows.shape[1], len(room.slots)), dtype=np.int64)
        np.add.at(table, (swapped, nodes), 1)
        found.append(table)
    return found


def _polished(layer: Layer, layout: Ints, cap: float) -> Ints:
    """Swap slots between devices as long as traffic falls and every device keeps its limit."""
    if layout.size > MOST_SLOTS:
        return layout
    experts, width = layout.ravel(), layout.shape[1]
    devices = np.repeat(np.arange(len(layout)), width)
    copies = np.bincount(experts, minlength=layer.rows.shape[1])
    most = cap * layer.speeds / len(layer.speeds) * EASE
    where = (experts, layer.node_of[devices], devices)
    swapped = _swapped(layer.cost, where, layer.rows / copies, most, _slot_masks(layer, layout))
    return swapped.reshape(layout.shape)


def _slot_masks(layer: Layer, layout: Ints) -> NDArray[np.bool_]:
    """Slots that hold a pinned copy stay as they are, [slots]."""
    tags = layer.pins.tags(layout)
    if tags is None:
        return np.ones(layout.size, dtype=bool)
    return np.asarray(tags.ravel() != FREE)


def _swapped(
    cost: Cost, where: tuple[Ints, Ints, Ints], each: Array, most: Array,
    fixed: NDArray[np.bool_],
) -> Ints:  # fmt: skip
    """Experts of the slots after swaps, best first, that lower traffic and keep every limit.

    Args:
        cost: what traffic is.
        where: expert, node and bin of each slot; loads are limited by bin, no copy doubles in one.
        each: load share of one copy, [traces, experts].
        most: share of the load that each bin may carry.
        fixed: slots that stay.
    """
    experts, nodes, bins = where
    experts = experts.copy()
    value = cost.value(experts, nodes)
    for _ in range(ROUNDS):
        change = cost.change(experts, nodes)
        change[(nodes[:, None] == nodes[None, :]) | fixed[:, None] | fixed[None, :]] = np.inf
        change[~_fits(experts, bins, each, most)] = np.inf
        change[np.tril_indices(len(change))] = np.inf
        step = _best(cost, experts, nodes, change, value)
        if step is None:
            break
        value, (one, two) = step
        experts[one], experts[two] = experts[two], experts[one]
    return experts


def _best(
    cost: Cost, experts: Ints, nodes: Ints, change: Array, value: float
) -> tuple[float, tuple[int, int]] | None:
    """The swap that lowers traffic most; a guessed change is measured before it is believed."""
    tried = 1 if cost.exact else VERIFIED
    first = np.argpartition(change, tried, axis=None)[:tried]
    found = None
    for flat in first[np.argsort(change.flat[first], kind="stable")]:
        if not change.flat[flat] < -1e-12:  # noqa: PLR2004 - no gain
            break
        one, two = divmod(int(flat), len(experts))
        after = experts.copy()
        after[one], after[two] = after[two], after[one]
        known = value + float(change.flat[flat]) if cost.exact else cost.value(after, nodes)
        if known < value - 1e-12 and (found is None or known < found[0]):
            found = known, (one, two)
    return found


def _fits(experts: Ints, bins: Ints, each: Array, most: Array) -> NDArray[np.bool_]:
    """Swaps that double no copy in a bin and keep its limit, or make a full one less full."""
    count = each.shape[1]
    held = np.bincount(bins * count + experts, minlength=len(most) * count)
    there = held.reshape(len(most), count)[bins][:, experts] > 0
    fits = ~(there | there.T)
    for row in each:
        load = np.bincount(bins, row[experts], len(most))
        after = load[bins][:, None] + row[experts][None, :] - row[experts][:, None]
        fine = after <= np.maximum(most[bins], load[bins])[:, None]
        fits &= fine & fine.T
    return np.asarray(fits)


def _packed(layer: Layer, copies: Ints, cap: float) -> list[Ints]:
    """Copies of each node onto its devices; swaps across nodes repair what exceeds `cap`.

    Empty where copies find no places apart from each other.
    """
    total = copies.sum(axis=1)
    parts = []
    for node in range(copies.shape[1]):
        here = np.flatnonzero(copies[:, node])
        speeds = layer.speeds[layer.node_of == node]
        rows = layer.rows[:, here] * copies[here, node] / total[here]
        pins = _local(layer, node, here)
        part = largest_first(rows, copies[here, node], speeds, pins)
        if part is None:
            return []
        parts.append(here[improved(part, rows, speeds, 0.0, pins)])
    layout = np.empty((len(layer.node_of), parts[0].shape[1]), dtype=np.int64)
    for node, part in enumerate(parts):
        layout[layer.node_of == node] = part
    return [improved(layout, layer.rows, layer.speeds, cap, layer.pins)]


def _local(layer: Layer, node: int, here: Ints) -> Pins:
    """The pins of one node, experts and devices counted inside it."""
    mine = np.flatnonzero(layer.node_of == node)
    places = [p for p, device in enumerate(layer.pins.places) if layer.node_of[device] == node]
    if not places:
        return no_pins(len(mine))
    return Pins(
        np.searchsorted(here, layer.pins.experts[places]),
        layer.pins.allowed[places][:, mine],
        np.searchsorted(mine, layer.pins.places[places]),
    )


def greedy_copies(layer: Layer, room: Room, *, capped: bool = False) -> Ints:
    """Copies largest first, each onto the node with a free slot where it saves most traffic.

    Args:
        layer: what is given.
        room: what nodes can hold.
        capped: as many copies of each expert as balance best, and no node beyond its load while
            another has room; else load is not looked at.

    Returns:
        Copies of each expert on each node, [experts, nodes].
    """
    rows = layer.rows.mean(axis=0)
    slots, order = int(room.slots.sum()), np.argsort(-rows, kind="stable").tolist()
    copies = room.least.copy()
    if capped:
        wanted = replicate(rows, slots, int(room.devices.sum()), np.maximum(copies.sum(axis=1), 1))
    else:
        wanted = np.maximum(copies.sum(axis=1), 1)
        spare = slots - int(wanted.sum())
        wanted += spare // len(rows)
        wanted[order[: spare % len(rows)]] += 1
    each = rows / wanted if capped else np.zeros(len(rows))
    missing = np.repeat(np.arange(len(rows)), wanted - copies.sum(axis=1))
    for expert in missing[np.argsort(-(rows / wanted)[missing], kind="stable")].tolist():
        _give(layer, room, copies, (expert, order, each))
    return copies


def _give(layer: Layer, room: Room, copies: Ints, item: tuple[int, list[int], Array]) -> None:
    """One more copy of an expert onto the node where it saves most."""
    expert, order, each = item
    free = copies.sum(axis=0) < room.slots
    if not (free & (copies[expert] < room.devices)).any():
        # Its copies fill every node with a free slot: the slot goes to one that may come.
        node = int(free.argmax())
        expert = next(e for e in order if copies[e, node] < room.devices[node])
    free &= copies[expert] < room.devices
    after = (each @ copies + each[expert]) / room.cap
    if (free & (after <= 1)).any():
        free &= after <= 1
    else:
        free &= after <= after[free].min()
    gain = _gains(layer.cost, copies.T > 0, expert)
    gain = np.where(copies[expert] > 0, gain - 1e3, gain)
    copies[expert, int(np.where(free, gain, -np.inf).argmax())] += 1


def _gains(cost: Cost, there: NDArray[np.bool_], expert: int) -> Array:
    """What a copy saves on each node: pairs at home, or visits that others make already."""
    if isinstance(cost, Pairs):
        return cost.share[:, expert]
    mine = cost.member[:, expert]
    reached = cost.member[mine].astype(np.float32) @ there.T.astype(np.float32) > 0
    gains: Array = -(cost.away[mine] * ~reached).sum(axis=0)
    return gains
