"""Experts after a failure: what survivors must fetch, and a layout for them from `place`.

Slots of the devices that are left stay as they are. Experts whose last copy is gone come from disk,
others that `place` moves come from a device that holds them; both count against the move limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.search.churn import moved
from planner.search.packing import busiest
from planner.search.placement import PlacementQuestion, place

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Relayout:
    """A layout of fewer devices and what it takes to get there."""

    layout: Ints
    """Expert of each slot, [layers, devices, slots]."""
    lost_count: int
    """Experts, over all layers, whose last copy went with the lost devices."""
    moves: int
    """Slots that change, lost experts included."""
    disk_experts: int
    """Most experts that one device reads from disk."""
    peer_experts: int
    """Most experts that one device gets from others."""
    max_over_mean_kept: float  # unit: ratio
    """Busiest device when survivors only took the lost experts in; mean over layers."""
    max_over_mean: float  # unit: ratio
    """Busiest device of the new layout; mean over layers."""


def first_layout(loads: Array, devices: int, redundant: int) -> Ints:
    """Layout before anything is lost, as `place` balances it.

    Args:
        loads: [layers, experts].
        devices: that share the experts.
        redundant: copies of a layer beyond one an expert; slots must divide among the devices.

    Returns:
        [layers, devices, slots].
    """
    asked = {"loads": [loads.tolist()], "devices": devices, "redundant": redundant}
    answer = place(PlacementQuestion.parse(asked, what="placement"))
    return np.array(answer.physical_to_logical_map).reshape(len(loads), devices, -1)


def relayout(
    loads: Array, before: Ints, lost: tuple[int, ...], redundant: int, max_moves: int | None
) -> Relayout:
    """Lay experts out on the devices that are left.

    Args:
        loads: [layers, experts].
        before: layout with all devices, [layers, devices, slots].
        lost: devices that are gone.
        redundant: copies of a layer afterwards; slots must divide among the survivors, and a device
            has at least as many as before.
        max_moves: slots of all layers that may change, lost experts included; none: any.

    Raises:
        MoesaicError: `infeasible` when the limit does not even let lost experts come back,
            `invalid` for fewer slots a device than before.
    """
    layers, experts = loads.shape
    left = np.delete(before, list(lost), axis=1)
    devices = left.shape[1]
    width = (experts + redundant) // devices
    if width < left.shape[2]:
        raise MoesaicError(
            "invalid", f"{width} slots a device hold less than the {left.shape[2]} of today"
        )
    missing = [sorted(set(range(experts)) - set(layer.ravel().tolist())) for layer in left]
    lost_count = sum(map(len, missing))
    if max_moves is not None and lost_count > max_moves:
        raise MoesaicError(
            "infeasible",
            f"{lost_count} experts lost their last copy; at most {max_moves} moves cannot bring "
            f"them back. {lost_count} moves, or redundant copies from the start, would work",
            "/events",
        )
    kept = np.stack([
        _take_in(layer, gone, row, width) for layer, gone, row in zip(left, missing, loads,
                                                                      strict=True)
    ])  # fmt: skip
    spare = None if max_moves is None else max_moves - lost_count
    asked = {
        "loads": [loads.tolist()], "devices": devices, "redundant": redundant,
        "current": kept.reshape(layers, -1).tolist(), "max_moves": spare,
    }  # fmt: skip
    answer = place(PlacementQuestion.parse(asked, what="placement"))
    after = np.array(answer.physical_to_logical_map).reshape(layers, devices, -1)
    disk, peers = _fetched(left, after, missing)
    return Relayout(
        layout=after,
        lost_count=lost_count,
        moves=sum(moved(old, new) for old, new in zip(left, after, strict=True)),
        disk_experts=int(disk.max(initial=0)),
        peer_experts=int(peers.max(initial=0)),
        max_over_mean_kept=balance(kept, loads),
        max_over_mean=balance(after, loads),
    )


def balance(layout: Ints, loads: Array) -> float:
    """Busiest device over mean, mean over layers with load; copies share a load equally."""
    speeds = np.ones(layout.shape[1])
    found = [busiest(layer, row[None] / row.sum(), speeds)
             for layer, row in zip(layout, loads, strict=True) if row.sum()]  # fmt: skip
    return float(np.mean(found))


def in_order(loads: Array, devices: int, redundant: int) -> Ints:
    """Experts in order with copies of the first ones behind, as engines start: all layers alike."""
    layers, experts = loads.shape
    slots = np.arange(experts + redundant) % experts
    return np.broadcast_to(slots.reshape(devices, -1), (layers, devices, len(slots) // devices))


def _take_in(left: Ints, missing: list[int], row: Array, width: int) -> Ints:
    """Give the heaviest missing expert to the lightest device with room, and so on.

    Slots that stay free hold an expert of their device again: nothing needs to move for that.
    """
    devices, held = left.shape
    result = np.concatenate([left, np.broadcast_to(left[:, :1], (devices, width - held))], axis=1)
    room = np.full(devices, width - held)
    copies = np.maximum(np.bincount(left.ravel(), minlength=len(row)), 1)
    loads = (row / copies)[left].sum(axis=1)
    for expert in sorted(missing, key=lambda e: -row[e]):
        device = int(np.argmin(np.where(room > 0, loads, np.inf)))
        result[device, width - room[device]] = expert
        room[device] -= 1
        loads[device] += row[expert]
    return result


def _fetched(left: Ints, after: Ints, missing: list[list[int]]) -> tuple[Ints, Ints]:
    """Experts that each device reads from disk and gets from others, all layers together."""
    devices = left.shape[1]
    disk, peers = np.zeros(devices, dtype=np.int64), np.zeros(devices, dtype=np.int64)
    for old, new, gone in zip(left, after, missing, strict=True):
        read: set[int] = set()
        for device in range(devices):
            for expert in set(new[device].tolist()) - set(old[device].tolist()):
                # The first reader takes a lost expert from disk, others get it from there.
                first = expert in gone and expert not in read
                read.add(expert)
                (disk if first else peers)[device] += 1
    return disk, peers
