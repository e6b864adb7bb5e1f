"""Copies onto devices: largest first, then swaps on the fullest device, with a proven bound.

All loads are shares of one layer, [traces, …]; several traces are balanced at once, by the worst.
A monolithic min-max programme of this size is worse than this after half a minute; the bound shows
how far from any solution, over all copy counts, the packing can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.eplb import replicate
from planner.search.pins import FREE, Pins, no_pins

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
ROUNDS = 400
"""Swaps tried on one layer at most."""
WORTH_RATIO = 5e-3
"""A packing farther from its bound is tried again with other copy counts."""
TRIED = 5
"""Experts that give up, and that take, a copy in these trials."""
ENOUGH_RATIO = 1e-4
"""A packing this close to its bound is left alone."""


@dataclass(frozen=True)
class Packing:
    """Slots of one layer, [devices, slots]: the expert in each; and its busiest over mean."""

    experts: Ints
    max_over_mean: float
    bound: float


def lower_bound(weights: Array, slots: int, speeds: Array) -> float:
    """No placement of any copy counts has a busiest over mean below this.

    The mean itself; and the largest copy when copies are spread best (greedy copies minimise it:
    every other choice leaves some expert with fewer), on a device whose other slots hold the
    smallest copies there can be. Without copies, also: of the j·devices + 1 largest experts some
    device holds j + 1 (pigeonhole).

    Args:
        weights: [traces, experts], rows sum to one.
        slots: copies in all.
        speeds: relative speed of each device, mean one.
    """
    devices, experts = len(speeds), weights.shape[1]
    scale = devices / float(speeds.max())
    width = slots // devices
    most_copies = min(slots - experts + 1, devices)
    found = 1.0
    for row in weights:
        rising = np.concatenate([[0.0], np.cumsum(np.sort(row) / most_copies)])
        copies = replicate(row, slots, devices)
        found = max(found, (float((row / copies).max()) + rising[width - 1]) * scale)
        if slots == experts:
            falling = np.sort(row)[::-1]
            for j in range(1, width):
                together = (j + 1) * falling[j * devices] + rising[width - j - 1]
                found = max(found, float(together) * scale)
    return found


def busiest(experts: Ints, weights: Array, speeds: Array) -> float:
    """Busiest over mean of a layout, worst trace; copies share an expert's load equally."""
    return float(device_loads(experts, weights, speeds).max())


def device_loads(experts: Ints, weights: Array, speeds: Array) -> Array:
    """Load over the mean of each device and trace, [traces, devices]."""
    copies = np.bincount(experts.ravel(), minlength=weights.shape[1])
    each = weights / np.maximum(copies, 1)
    loads: Array = each[:, experts].sum(axis=2) * len(speeds) / speeds
    return loads


def pack(
    weights: Array, slots: int, speeds: Array, start: Ints | None = None,
    pins: Pins | None = None, tried: int = TRIED,
) -> Packing:  # fmt: skip
    """Place every copy of one layer.

    Args:
        weights: [traces, experts], rows sum to one.
        slots: copies in all, a multiple of the devices.
        speeds: relative speed of each device, mean one.
        start: another layout that the answer must not be worse than, unless it breaks a pin.
        pins: copies that must stand somewhere.
        tried: experts that give up, and that take, a copy in further trials.
    """
    pins = no_pins(len(speeds)) if pins is None else pins
    least = pins.least_copies(weights.shape[1])
    bound = lower_bound(weights, slots, speeds)
    copies = replicate(weights.max(axis=0), slots, len(speeds), least)
    first = largest_first(weights, copies, speeds, pins)
    if first is None:
        first = _filled(weights, slots, speeds, pins)
    best = improved(first, weights, speeds, bound, pins)
    value = busiest(best, weights, speeds)
    fit = start is not None and not doubled(start) and pins.tags(start) is not None
    if start is not None and fit and value > bound * (1 + ENOUGH_RATIO):
        other = improved(start, weights, speeds, bound, pins)
        other_value = busiest(other, weights, speeds)
        if other_value < value:
            best, value = other, other_value
    for counts in _other_copies(weights.max(axis=0), copies, (len(speeds), tried), least):
        if value <= bound * (1 + WORTH_RATIO):
            break
        changed = largest_first(weights, counts, speeds, pins)
        if changed is None:
            continue
        other = improved(changed, weights, speeds, bound, pins)
        if (other_value := busiest(other, weights, speeds)) < value:
            best, value = other, other_value
    return Packing(best, value, bound)


def _other_copies(row: Array, copies: Ints, given: tuple[int, int], least: Ints) -> Iterator[Ints]:
    """Copy counts one step from the greedy ones: a copy of one expert goes to another.

    `given` says how many devices there are, and how many givers and takers are tried.
    """
    devices, tried = given
    givers = [int(e) for e in np.argsort(row / copies, kind="stable") if copies[e] > least[e]]
    takers = [int(e) for e in np.argsort(-row / (copies + 1), kind="stable") if copies[e] < devices]
    for giver in givers[:tried]:
        for taker in takers[:tried]:
            if giver != taker:
                changed = copies.copy()
                changed[giver] -= 1
                changed[taker] += 1
                yield changed


def largest_first(weights: Array, copies: Ints, speeds: Array, pins: Pins) -> Ints | None:
    """Copies onto the device that is least full after it, largest first; pinned ones before all.

    Args:
        weights: [traces, experts].
        copies: of each expert, as many in all as there are slots.
        speeds: relative speed of each device.
        pins: copies that must stand somewhere.

    Returns:
        [devices, slots]; none: these copies found no place apart from each other.
    """
    devices, traces = len(speeds), len(weights)
    slots = int(copies.sum()) // devices
    each = weights / copies * devices
    load = np.zeros((traces, devices))
    filled = np.zeros(devices, dtype=np.int64)
    experts = np.full((devices, slots), -1, dtype=np.int64)
    for expert, device in zip(pins.experts.tolist(), pins.places.tolist(), strict=True):
        experts[device, filled[device]] = expert
        load[:, device] += each[:, expert]
        filled[device] += 1
    fixed = filled.copy()
    left = copies - np.bincount(pins.experts, minlength=len(copies))
    for expert in np.argsort(-each.max(axis=0), kind="stable"):
        for _ in range(left[expert]):
            after = ((load + each[:, expert, None]) / speeds).max(axis=0)
            held = (experts == expert).any(axis=1)
            after[(filled == slots) | held] = np.inf
            if not np.isfinite(after).any():
                if not _make_room(experts, (filled, fixed), load, each, int(expert)):
                    return None
                continue
            device = int(np.argmin(after))
            experts[device, filled[device]] = expert
            load[:, device] += each[:, expert]
            filled[device] += 1
    return experts


def _make_room(
    experts: Ints, room: tuple[Ints, Ints], load: Array, each: Array, expert: int
) -> bool:
    """Every device with room holds the expert already: pass it one that another device gives up.

    `room` says how many slots of each device are filled, and how many of them are pinned.
    """
    filled, fixed = room
    device = int(np.argmin(filled))
    free = ~(experts == expert).any(axis=1)
    mine = set(experts[device, : filled[device]].tolist())
    for other in np.flatnonzero(free):
        for slot in range(int(fixed[other]), experts.shape[1]):
            given = int(experts[other, slot])
            if given >= 0 and given not in mine:
                experts[device, filled[device]], experts[other, slot] = given, expert
                filled[device] += 1
                load[:, device] += each[:, given]
                load[:, other] += each[:, expert] - each[:, given]
                return True
    return False


def _filled(weights: Array, slots: int, speeds: Array, pins: Pins) -> Ints:
    """Pinned copies, one of each other expert, then copies of the most loaded: always possible."""
    devices, width = len(speeds), slots // len(speeds)
    held: list[list[int]] = [[] for _ in range(devices)]
    for expert, device in zip(pins.experts.tolist(), pins.places.tolist(), strict=True):
        held[device].append(expert)
    row = weights.max(axis=0)
    copies = np.bincount(pins.experts, minlength=len(row))
    for expert in np.argsort(-row, kind="stable").tolist():
        if copies[expert] == 0:
            min((h for h in held if len(h) < width), key=lambda h: row[h].sum()).append(expert)
            copies[expert] = 1
    for there in held:
        while len(there) < width:
            each = row / copies
            each[there] = -1.0
            there.append(int(each.argmax()))
            copies[there[-1]] += 1
    return np.array(held)


def doubled(experts: Ints) -> bool:
    """Whether any device holds two copies of one expert."""
    ordered = np.sort(experts, axis=1)
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


def improved(experts: Ints, weights: Array, speeds: Array, bound: float, pins: Pins) -> Ints:
    """Swap one copy of the fullest device for one of another while the worse of both falls.

    Ends at `bound`; pins that the layout keeps stay kept.
    """
    experts = experts.copy()
    tags, masks = pins.tags(experts), pins.masks()
    tags = np.full(experts.shape, FREE) if tags is None else tags
    copies = np.bincount(experts.ravel(), minlength=weights.shape[1])
    each = weights / np.maximum(copies, 1) * len(speeds)
    loads = each[:, experts].sum(axis=2) / speeds
    for _ in range(ROUNDS):
        worst = loads.max(axis=0)
        fullest = int(worst.argmax())
        if worst[fullest] <= bound * (1 + ENOUGH_RATIO):
            break
        allowed = None if len(masks) == 1 else (masks[tags[fullest]], masks[:, fullest][tags])
        swap = best_swap(experts, each, (loads, speeds), fullest, allowed)
        if swap is None:
            break
        mine, device, theirs = swap
        for held in (experts, tags):
            held[fullest, mine], held[device, theirs] = held[device, theirs], held[fullest, mine]
        for changed in (fullest, device):
            loads[:, changed] = each[:, experts[changed]].sum(axis=1) / speeds[changed]
    return experts


def best_swap(
    experts: Ints, each: Array, state: tuple[Array, Array], fullest: int,
    allowed: tuple[Mask, Mask] | None = None,
) -> tuple[int, int, int] | None:  # fmt: skip
    """The swap that lowers the worse of both devices most, and never doubles a copy.

    Args:
        experts: [devices, slots].
        each: load of one copy over the mean device, [traces, experts].
        state: load over the mean of each device and trace, and relative speeds.
        fullest: the device that gives.
        allowed: where its slots may go, [slots, devices], and which slots may come to it,
            [devices, slots].

    Returns:
        Slot of the fullest, the other device and its slot; none when no swap helps.
    """
    loads, speeds = state
    own = each[:, experts[fullest]]
    other = each[:, experts]
    delta = other[:, None, :, :] - own[:, :, None, None]
    mine = loads[:, fullest, None, None, None] + delta / speeds[fullest]
    theirs = loads[:, None, :, None] - delta / speeds[None, None, :, None]
    after = np.maximum(mine, theirs).max(axis=0)
    twice = (experts[None, :, :] == experts[fullest][:, None, None]).any(axis=2)
    after[np.broadcast_to(twice[:, :, None], after.shape)] = np.inf
    there = (experts[:, :, None] == experts[fullest][None, None, :]).any(axis=2)
    after[np.broadcast_to(there[None], after.shape)] = np.inf
    after[:, fullest] = np.inf
    if allowed is not None:
        after[np.broadcast_to(~allowed[0][:, :, None], after.shape)] = np.inf
        after[np.broadcast_to(~allowed[1][None], after.shape)] = np.inf
    best = int(after.argmin())
    slot, device, place = np.unravel_index(best, after.shape)
    before = loads[:, fullest].max()
    if after.flat[best] >= before * (1 - 1e-9):
        return None
    return int(slot), int(device), int(place)
