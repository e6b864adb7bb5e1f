"""Copies that must stand somewhere: pins to devices or nodes, and what contradicts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
FREE = -1


class Pin(Document):
    """One copy of an expert must stand on a device, or anywhere on a node."""

    expert: Annotated[int, Field(ge=0)]
    device: Annotated[int, Field(ge=0)] | None = None
    node: Annotated[int, Field(ge=0)] | None = None
    layer: Annotated[int, Field(ge=0)] | None = None
    """Row of the loads; none: every layer."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.device is None) == (self.node is None):
            raise ValueError("a pin names a device or a node, one of them")
        return self

    def text(self) -> str:
        """Say it in a few words."""
        where = f"device {self.device}" if self.node is None else f"node {self.node}"
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return f"expert {self.expert}{layer} on {where}"


@dataclass(frozen=True)
class Pins:
    """The pins of one layer.

    Args:
        experts: pinned expert, [pins].
        allowed: devices each may stand on, [pins, devices].
        places: a device for each that lets all be kept, [pins].
    """

    experts: Ints
    allowed: Mask
    places: Ints

    def least_copies(self, experts: int) -> Ints:
        """Copies that each expert needs at least, [experts]."""
        return np.maximum(np.bincount(self.experts, minlength=experts), 1)

    def masks(self) -> Mask:
        """Allowed devices by pin; the last row, index -1, is free: [pins + 1, devices]."""
        return np.vstack([self.allowed, np.ones(self.allowed.shape[1], dtype=bool)])

    def tags(self, layout: Ints) -> Ints | None:
        """The pin that each slot keeps, -1 for none, [devices, slots]; none: a pin is broken."""
        found = np.full(layout.shape, FREE)
        for pin in np.argsort(self.allowed.sum(axis=1), kind="stable"):
            here = (layout == self.experts[pin]) & self.allowed[pin][:, None] & (found == FREE)
            if not here.any():
                return None
            found.flat[int(here.argmax())] = pin
        return found


def no_pins(devices: int) -> Pins:
    """Pin nothing."""
    nothing = np.zeros(0, dtype=np.int64)
    return Pins(nothing, np.zeros((0, devices), dtype=bool), nothing)


def resolve(pins: tuple[Pin, ...], layer: int, node_of: Ints, width: int, copies: int) -> Pins:
    """Turn pins into allowed devices, and find places that keep all of them.

    Args:
        pins: those of all layers.
        layer: row of the loads.
        node_of: node of each device.
        width: slots of a device.
        copies: slots beyond one an expert.

    Raises:
        MoesaicError: `infeasible`, naming pins that contradict each other.
    """
    mine = [pin for pin in pins if pin.layer in (None, layer)]
    if not mine:
        return no_pins(len(node_of))
    experts = np.array([pin.expert for pin in mine])
    allowed = np.stack([
        node_of == pin.node if pin.device is None else np.arange(len(node_of)) == pin.device
        for pin in mine
    ])  # fmt: skip
    wanted = int((np.bincount(experts) - 1).clip(0).sum())
    if wanted > copies:
        twice = [p.text() for p in mine if int((experts == p.expert).sum()) > 1]
        raise MoesaicError(
            "infeasible",
            f"pins contradict: {' and '.join(twice[:6])} need {wanted} copies beyond one an "
            f"expert, there are {copies}", "/pins",
        )  # fmt: skip
    return Pins(experts, allowed, _places(mine, experts, allowed, width))


def _places(pins: list[Pin], experts: Ints, allowed: Mask, width: int) -> Ints:
    """A device for each pin: a flow, one copy of an expert and `width` pins a device at most."""
    graph: nx.DiGraph[object] = nx.DiGraph()
    for pin, expert in enumerate(experts.tolist()):
        graph.add_edge("from", ("pin", pin), capacity=1)
        for device in np.flatnonzero(allowed[pin]).tolist():
            graph.add_edge(("pin", pin), ("copy", expert, device), capacity=1)
            graph.add_edge(("copy", expert, device), ("device", device), capacity=1)
            graph.add_edge(("device", device), "to", capacity=width)
    kept, flow = nx.maximum_flow(graph, "from", "to")
    if kept < len(pins):
        _, (reached, _) = nx.minimum_cut(graph, "from", "to")
        rivals = [pin.text() for i, pin in enumerate(pins) if ("pin", i) in reached]
        raise MoesaicError(
            "infeasible",
            f"pins contradict: {' and '.join(rivals[:8])} cannot all be kept with {width} slots a "
            "device and no two copies of one expert on it", "/pins",
        )  # fmt: skip
    return np.array([
        next(copy[2] for copy, used in flow[("pin", pin)].items() if used)
        for pin in range(len(pins))
    ])  # fmt: skip
