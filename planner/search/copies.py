"""How many copies each layer gets when memory, or a number of them, is shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.search.packing import pack
from planner.search.pins import resolve
from planner.search.placement_question import PlacementQuestion
from planner.search.solver import Expression, Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
TIME_LIMIT_S = 20.0
MOST_OPTIONS = 12
"""Numbers of copies tried in a layer."""


@dataclass(frozen=True)
class Option:
    """One number of slots a device for one layer: busiest over mean, and its bound."""

    width: int
    value: float
    bound: float


def choose_copies(question: PlacementQuestion, shares: Array, layers: Ints) -> list[int]:
    """Copies of each layer beyond one an expert, the sum of busiest over mean least.

    Args:
        question: what is asked; `copies` says by layer or one number for all.
        shares: [traces, layers, experts].
        layers: rows that are MoE layers.

    Raises:
        MoesaicError: `infeasible` when one copy of each expert does not fit, or pins need more.
    """
    widths = allowed_widths(question, layers)
    options = [[_option(question, shares[:, i], int(i), width) for width in row]
               for i, row in zip(layers, widths, strict=True)]  # fmt: skip
    sizes = question.layer_bytes()[layers]
    room = _room(question, len(layers))
    if question.copies == "uniform":
        fits = [w for w in widths[0] if _fits(float(sizes.sum()) * w, room)]
        value = {w: sum(row[k].value for row in options) for k, w in enumerate(widths[0])}
        best = min(fits, key=value.__getitem__)
        return [best * question.devices - question.experts] * len(layers)
    programme, picks = state_copies(options, sizes, room)
    values = programme.solve_guarded(time_limit_s=TIME_LIMIT_S).values
    chosen = [int(np.argmax([values[str(x)] for x in row])) for row in picks]
    return [options[i][k].width * question.devices - question.experts
            for i, k in enumerate(chosen)]  # fmt: skip


def allowed_widths(question: PlacementQuestion, layers: Ints) -> list[list[int]]:
    """Slots a device that each layer may have: pins find places, and the fewest fit.

    Raises:
        MoesaicError: `infeasible` when there are none.
    """
    widths = _widths(question, len(layers))
    pinned = [_pinned(question, int(i), widths) for i in layers]
    if question.copies == "uniform":
        every = [w for w in widths if all(w in row for row in pinned)]
        pinned = [every] * len(layers)
    sizes, room = question.layer_bytes()[layers], _room(question, len(layers))
    least = sum(size * row[0] for size, row in zip(sizes.tolist(), pinned, strict=True))
    if not _fits(least, room):
        raise _too_small(least, room)
    return pinned


def _pinned(question: PlacementQuestion, layer: int, widths: list[int]) -> list[int]:
    """Those of the widths at which the pins of a layer find places: all from the first that does.

    Raises:
        MoesaicError: as `resolve`, when the widest does not.
    """
    if not any(pin.layer in (None, layer) for pin in question.pins):
        return widths
    node_of = question.node_of()
    for k, width in enumerate(widths):
        try:
            resolve(question.pins, layer, node_of, width,
                    width * question.devices - question.experts)  # fmt: skip
        except MoesaicError:
            if k == len(widths) - 1:
                raise
        else:
            return widths[k:]
    return []


def _fits(needed: float, room: float) -> bool:
    return needed <= room * (1 + 1e-9)


def state_copies(
    options: list[list[Option]], sizes: Array, room: float
) -> tuple[Programme, list[list[Expression]]]:
    """Write the programme: one width a layer within the memory of a device.

    Args:
        options: of each layer.
        sizes: bytes of one slot of each layer.
        room: bytes of a device for all layers.
    """
    programme = Programme("copies", maximise=False)
    picks = [
        [programme.binary(f"width_{i}_{option.width}") for option in row]
        for i, row in enumerate(options)
    ]
    pairs = [(pick, option, float(sizes[i])) for i, row in enumerate(options)
             for pick, option in zip(picks[i], row, strict=True)]  # fmt: skip
    for i, row in enumerate(picks):
        programme.require(f"one_{i}", programme.total([(pick, 1) for pick in row]) == 1)
    memory = programme.total([(pick, o.width * size / room) for pick, o, size in pairs])
    programme.require("memory", memory <= 1 + 1e-9)
    programme.objective(programme.total([(pick, o.value) for pick, o, _ in pairs]))
    return programme, picks


def _widths(question: PlacementQuestion, layers: int) -> list[int]:
    """Slots a device that hold every expert once, and more, up to what limits allow."""
    least = -(-question.experts // question.devices)
    most = min(least + MOST_OPTIONS - 1, question.experts)
    if question.experts_per_device_max is not None:
        most = min(most, question.experts_per_device_max)
    if question.device_bytes is None:
        spare = question.redundant * layers // question.devices
        most = min(most, least + spare)
    if most < least:
        raise MoesaicError(
            "infeasible", f"{question.experts} experts on {question.devices} devices take {least} "
            f"slots a device; experts_per_device_max is {question.experts_per_device_max}",
            "/experts_per_device_max",
        )  # fmt: skip
    return list(range(least, most + 1))


def _option(question: PlacementQuestion, rows: Array, layer: int, width: int) -> Option:
    slots = width * question.devices
    pins = resolve(question.pins, layer, question.node_of(), width, slots - question.experts)
    packing = pack(rows, slots, question.relative_speeds(), pins=pins)
    return Option(width, packing.max_over_mean, packing.bound)


def _room(question: PlacementQuestion, layers: int) -> float:
    """Bytes of a device; where none are given, slots: one an expert and `redundant` a layer."""
    if question.device_bytes is not None:
        return question.device_bytes
    slots = (question.experts + question.redundant) * layers / question.devices
    return slots * float(question.layer_bytes().mean())


def _too_small(needed: float, room: float) -> MoesaicError:
    return MoesaicError(
        "infeasible",
        f"one copy of each expert, and those that pins need, take {needed / 2**30:.3g} GiB a "
        f"device, there are {room / 2**30:.3g} GiB", "/device_bytes",
    )  # fmt: skip
