"""Which experts each device holds, as engines write it: vllm-ascend, MindIE, SGLang and ours.

A vllm-ascend or MindIE map is `{"moe_layer_count", "layer_list": [{"layer_id", "device_count",
"device_list": [{"device_id", "device_expert": […]}]}]}`; SGLang's initial expert location and
`moesaic place` write `{"physical_to_logical_map": [[…]]}`, one row a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document, parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document

Expert = Annotated[int, Field(ge=0, lt=65_536)]


class ExpertMap(Document):
    """Logical expert of each slot, layers x slots; slots lie device after device."""

    slots: Annotated[tuple[tuple[Expert, ...], ...], Field(min_length=1)]
    device_count: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _even(self) -> Self:
        widths = {len(row) for row in self.slots}
        if len(widths) != 1:
            raise ValueError(f"layers hold {sorted(widths)} slots; they must hold equally many")
        if not widths.pop() or len(self.slots[0]) % self.device_count:
            raise ValueError(
                f"{self.device_count} devices do not divide {len(self.slots[0])} slots"
            )
        return self

    def device_loads(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Load of each device when copies share an expert's tokens equally, [layers, devices].

        Args:
            counts: tokens of each expert, [layers, experts].

        Raises:
            MoesaicError: `invalid` when layers differ, or an expert with load has no slot.
        """
        slots = np.array(self.slots)
        if len(slots) != len(counts):
            raise MoesaicError(
                "invalid", f"the map has {len(slots)} layers, the load {len(counts)}"
            )
        experts = counts.shape[1]
        if slots.max() >= experts:
            raise MoesaicError(
                "invalid", f"the map names expert {slots.max()}, the load has {experts} experts"
            )
        offset = np.arange(len(slots))[:, None] * experts
        copies = np.bincount((slots + offset).ravel(), minlength=counts.size).reshape(counts.shape)
        if ((copies == 0) & (counts > 0)).any():
            layer, expert = np.argwhere((copies == 0) & (counts > 0))[0]
            raise MoesaicError("invalid", f"layer {layer} has no slot for expert {expert}")
        each = counts / np.maximum(copies, 1)
        placed = np.take_along_axis(each, slots, axis=1)
        summed: NDArray[np.float64] = placed.reshape(len(slots), self.device_count, -1).sum(axis=2)
        return summed


def read_expert_map(path: Path, device_count: int | None = None) -> ExpertMap:
    """Read a map in any of the known forms.

    Args:
        path: JSON or YAML.
        device_count: devices, where the file does not say (`physical_to_logical_map`).

    Raises:
        MoesaicError: `invalid`, naming what is missing.
    """
    data = read_document(path)
    if isinstance(data, dict) and "layer_list" in data:
        return _by_device(data, path)
    if isinstance(data, dict) and "physical_to_logical_map" in data:
        devices = data.get("device_count", device_count)
        if devices is None:
            raise MoesaicError("invalid", f"{path} does not say how many devices; give them")
        found = {"slots": data["physical_to_logical_map"], "device_count": devices}
        return parse_as(ExpertMap, found, what=f"expert map {path.name}")
    raise MoesaicError("invalid", f"{path} holds no layer_list and no physical_to_logical_map")


def _by_device(data: dict[str, Any], path: Path) -> ExpertMap:
    try:
        layers = sorted(data["layer_list"], key=lambda layer: int(layer.get("layer_id", 0)))
        placed = [[list(part["device_expert"]) for part in _devices(layer)] for layer in layers]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MoesaicError(
            "invalid", f"{path}: layers hold device_list, devices hold device_expert ({error!r})"
        ) from error
    stated = data.get("moe_layer_count", len(placed))
    if stated != len(placed):
        raise MoesaicError("invalid", f"{path} states {stated} layers and holds {len(placed)}")
    counts = {(len(layer), len(part)) for layer in placed for part in layer}
    if len(counts) != 1:
        raise MoesaicError(
            "invalid", f"{path}: devices must hold equally many experts in all layers"
        )
    slots = [[expert for part in layer for expert in part] for layer in placed]
    found = {"slots": slots, "device_count": len(placed[0])}
    return parse_as(ExpertMap, found, what=f"expert map {path.name}")


def _devices(layer: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(layer["device_list"], key=lambda part: int(part.get("device_id", 0)))


def ascend_map(layout: ExpertMap) -> dict[str, Any]:
    """The map as vllm-ascend and MindIE read it."""
    per = len(layout.slots[0]) // layout.device_count
    layers = [
        {
            "layer_id": index, "device_count": layout.device_count,
            "device_list": [
                {"device_id": d, "device_expert": list(row[d * per : (d + 1) * per])}
                for d in range(layout.device_count)
            ],
        }
        for index, row in enumerate(layout.slots)
    ]  # fmt: skip
    return {"moe_layer_count": len(layers), "layer_list": layers}
