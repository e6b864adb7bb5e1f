"""The named limits of a placement: whether they can be kept together, and how each is changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.search.copies import allowed_widths
from planner.search.pins import Pin, resolve
from planner.search.placement_question import PlacementQuestion
from planner.search.reasons import Limit

Wish = Limit[PlacementQuestion]


def check(question: PlacementQuestion) -> None:
    """Refuse a question whose limits contradict each other.

    Raises:
        MoesaicError: `infeasible`, naming the first limit that cannot be kept.
    """
    layers = np.flatnonzero(np.array(question.loads).any(axis=(0, 2)))
    if question.copies != "given":
        allowed_widths(question, layers)
        return
    width = (question.experts + question.redundant) // question.devices
    most = question.experts_per_device_max
    if most is not None and width > most:
        raise MoesaicError(
            "infeasible", f"{width} slots a device are more than experts_per_device_max {most}; "
            f"{question.devices} devices are too few", "/experts_per_device_max",
        )  # fmt: skip
    needed, room = float(question.layer_bytes()[layers].sum()) * width, question.device_bytes
    if room is not None and needed > room * (1 + 1e-9):
        raise MoesaicError(
            "infeasible",
            f"{width} slots a device in {len(layers)} layers take {needed / 2**30:.3g} GiB, "
            f"device_bytes allows {room / 2**30:.3g} GiB; fewer copies, more devices or copies "
            "by_layer would do", "/device_bytes",
        )  # fmt: skip
    for layer in layers.tolist():
        _check_layer(question, layer, width)


def _check_layer(question: PlacementQuestion, layer: int, width: int) -> None:
    pins = resolve(question.pins, layer, question.node_of(), width, question.redundant)
    if question.current is None or not _limits_moves(question):
        return
    old = np.array(question.current[layer]).reshape(question.devices, -1)
    if pins.tags(old) is None:
        raise MoesaicError(
            "infeasible", f"layer {layer} of current breaks a pin; with a limit on moves the map "
            "must keep the pins already", f"/current/{layer}",
        )  # fmt: skip


def _limits_moves(question: PlacementQuestion) -> bool:
    return question.max_moves is not None or question.max_move_bytes is not None


def possible(question: PlacementQuestion) -> bool:
    """Whether any layout keeps every limit."""
    try:
        check(question)
    except MoesaicError:
        return False
    return True


def rivals(question: PlacementQuestion) -> list[Wish]:
    """Limits that may contradict each other; each is eased or dropped on its own."""
    found = [*_room(question), *_moves(question)]
    if question.copies == "given" and question.current is None:
        found.append(_copies(question))
    names = [pin.text() for pin in question.pins]
    for number, pin in enumerate(question.pins):
        again = f" (pin {number})" if names.count(names[number]) > 1 else ""
        found.append(Limit(names[number] + again, None, _without(pin)))
    return found


def _copies(question: PlacementQuestion) -> Wish:
    """Copies: too few for what pins ask, or too many for the slots there are."""
    least = float(-question.experts % question.devices)
    most = float(question.experts * (question.devices - 1))
    short = _pinned_copies(question) > question.redundant
    end = most if short else least
    return Limit("redundant", float(question.redundant), _whole("redundant", end), greater=short,
                 step=_slot_step(question), end=end)  # fmt: skip


def _pinned_copies(question: PlacementQuestion) -> int:
    """Copies beyond one an expert that the pins of some layer ask for."""
    asked = 0
    for layer in range(question.layers):
        held = Counter(pin.expert for pin in question.pins if pin.layer in (None, layer))
        asked = max(asked, held.total() - len(held))
    return asked


def _without(pin: Pin) -> Callable[[PlacementQuestion, float | None], PlacementQuestion]:
    def change(question: PlacementQuestion, _: float | None) -> PlacementQuestion:
        kept = tuple(other for other in question.pins if other is not pin)
        return question.model_copy(update={"pins": kept})

    return change


def limits(question: PlacementQuestion) -> list[Wish]:
    """Limits that may hold an answer back."""
    found = [*_room(question), *_moves(question), *_slots(question)]
    if question.pins:
        found.append(Limit("pins", None, lambda q, _: q.model_copy(update={"pins": ()})))
    if question.groups > 1:
        free = {"groups": 1, "group_of": None, "form_groups": False, "groups_on": "node"}
        found.append(Limit("groups", None, lambda q, _: q.model_copy(update=free)))
    if question.objective == "lexicographic":
        found.append(_limit("balance_slack", question.balance_slack, 10.0))
    return found


def _limit(name: str, value: float, free: float | None) -> Wish:
    """A limit whose greater value eases it."""

    def change(question: PlacementQuestion, to: float | None) -> PlacementQuestion:
        return question.model_copy(update={name: free if to is None else to})

    return Limit(name, value, change)


def _whole(
    name: str, free: float | None
) -> Callable[[PlacementQuestion, float | None], PlacementQuestion]:
    def change(question: PlacementQuestion, to: float | None) -> PlacementQuestion:
        value = free if to is None else to
        return question.model_copy(update={name: None if value is None else round(value)})

    return change


def _room(question: PlacementQuestion) -> list[Wish]:
    found = []
    if question.experts_per_device_max is not None:
        most = float(question.experts_per_device_max)
        change = _whole("experts_per_device_max", None)
        found.append(Limit("experts_per_device_max", most, change, step=1.0))
    if question.device_bytes is not None:
        everything = float(question.layer_bytes().sum()) * question.experts
        free = None if question.copies == "given" else everything
        found.append(_limit("device_bytes", question.device_bytes, free))
    return found


def _moves(question: PlacementQuestion) -> list[Wish]:
    found = []
    if question.max_moves is not None:
        change = _whole("max_moves", None)
        found.append(Limit("max_moves", float(question.max_moves), change, step=1.0))
    if question.max_move_bytes is not None:
        least = float(question.layer_bytes().min())
        limit = _limit("max_move_bytes", question.max_move_bytes, None)
        found.append(Limit(limit.name, limit.value, limit.change, step=least))
    return found


def _slots(question: PlacementQuestion) -> list[Wish]:
    """Copies: they take memory, so they cannot be without end."""
    if question.current is not None or question.device_bytes is not None:
        return []
    most = question.experts * (question.devices - 1)
    plain = _whole("redundant", None)

    def change(asked: PlacementQuestion, to: float | None) -> PlacementQuestion | None:
        if to is None or to > most:
            return None
        eased = plain(asked, to)
        width = (eased.experts + eased.redundant) // eased.devices
        held = eased.experts_per_device_max
        return None if held is not None and width > held else eased

    return [Limit("redundant", float(question.redundant), change, step=_slot_step(question))]


def _slot_step(question: PlacementQuestion) -> float:
    """Copies by which a layer may grow: one slot a device, whole groups where they stay whole."""
    if question.copies != "given":
        layers = int(np.array(question.loads).any(axis=(0, 2)).sum())
        return float(max(-(-question.devices // max(layers, 1)), 1))
    size = question.experts // question.groups if question.groups_on == "device" else 1
    return float(math.lcm(question.devices, size if question.groups > 1 else 1))
