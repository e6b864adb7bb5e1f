"""What may be asked of a placement: loads, devices, what must hold, and what traffic costs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Bytes
from planner.search.pins import Pin
from planner.search.solver import MEMORY_BYTES

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Load = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Matrix = tuple[tuple[Load, ...], ...]
Map = tuple[tuple[Whole, ...], ...]


class PlacementQuestion(Document):
    """Expert loads and the devices that are to hold them."""

    loads: Annotated[tuple[Matrix, ...], Field(min_length=1)]
    """One or more traces, each layers x experts; rows of zeros are dense layers. Several are
    balanced at once, by `robust`."""
    robust: Literal["worst", "mean"] = "worst"
    """Of several traces: the worst busiest device counts, or the mean load is balanced."""
    devices: Annotated[int, Field(ge=1, le=65_536)]
    nodes: Annotated[int, Field(ge=1)] = 1
    node_devices: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Devices of each node, in order, where nodes differ; none: equally many."""
    redundant: Whole = 0
    """Copies of a layer beyond one an expert."""
    copies: Literal["given", "uniform", "by_layer"] = "given"
    """`redundant` in every layer; or decided, one number for all or one a layer, within
    `device_bytes`, else within `redundant` times the layers in all."""
    experts_per_device_max: Annotated[int, Field(ge=1)] | None = None
    device_bytes: Bytes | None = None
    """Memory of a device for experts, all layers together."""
    expert_bytes: tuple[Bytes, ...] | None = None
    """Bytes of one expert in each layer, or one number for all layers."""
    groups: Annotated[int, Field(ge=1)] = 1
    """Groups of experts that must stay together (group-limited routing, MoGE)."""
    group_of: tuple[Whole, ...] | None = None
    """Group of each expert; none: consecutive experts form a group."""
    groups_on: Literal["node", "device"] = "node"
    """Where a group stays together; a device then holds groups / devices of them (MoGE)."""
    form_groups: bool = False
    """Decide which experts form a group, so that groups carry equal load."""
    speeds: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None
    """Relative speed of each device; none: equal."""
    pins: tuple[Pin, ...] = ()
    """Copies that must stand on a device or node."""
    current: Map | None = None
    """Layers x slots: the expert in each slot today."""
    max_moves: Whole | None = None
    """Slots that may change against `current`, all layers together."""
    max_move_bytes: Bytes | None = None
    """Bytes that may be moved against `current`, all layers together; needs `expert_bytes`."""
    objective: Literal["balance", "lexicographic", "weighted"] = "balance"
    """The busiest device alone; traffic between nodes among layouts whose busiest device is within
    `balance_slack` of the best; or busiest over mean plus `traffic_weight` times traffic."""
    balance_slack: Annotated[float, Field(ge=0, le=10)] = 0.02  # unit: share of the busiest
    traffic_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Worth of a crossing by each token (or by each token-expert pair), in busiest over mean."""
    sources: tuple[Matrix, ...] | None = None
    """Layers x nodes x experts: token-expert pairs by the node where the token is; none: anywhere
    equally."""
    tokens: tuple[tuple[tuple[Whole, ...], ...], ...] | None = None
    """Layers x tokens x top_k: experts of each token. A token then crosses to a node once."""
    token_nodes: tuple[Whole, ...] | None = None
    """Node where each token is; none: on any node equally."""
    time_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Beyond it the best found so far is the answer, and says so."""
    memory_limit_bytes: Annotated[Bytes, Field(gt=0)] = MEMORY_BYTES
    """What the process of a larger programme may take."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shapes = {(len(load), *{len(row) for row in load}) for load in self.loads}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:  # noqa: PLR2004 - layers, one width
            raise ValueError(f"every load must name the same layers and experts, not {shapes}")
        self._check_nodes()
        if self.copies == "given":
            self._check_room()
        self._check_groups()
        self._check_pins()
        self._check_moves()
        self._check_traffic()
        if self.speeds is not None and len(self.speeds) != self.devices:
            raise ValueError(f"{len(self.speeds)} speeds for {self.devices} devices")
        if self.expert_bytes is not None and len(self.expert_bytes) not in (1, self.layers):
            raise ValueError(
                f"{len(self.expert_bytes)} expert_bytes for {self.layers} layers; one for all or "
                "one a layer"
            )
        if self.device_bytes is not None and self.expert_bytes is None:
            raise ValueError("device_bytes needs expert_bytes")
        return self

    def _check_nodes(self) -> None:
        held = self.node_devices
        if held is not None and (len(held), sum(held)) != (self.nodes, self.devices):
            raise ValueError(
                f"node_devices name {len(held)} nodes with {sum(held)} devices, asked are "
                f"{self.nodes} with {self.devices}"
            )
        if held is None and self.devices % self.nodes:
            raise ValueError(
                f"{self.nodes} nodes do not share {self.devices} devices equally; node_devices "
                "may say how"
            )

    def _check_room(self) -> None:
        slots, devices = self.experts + self.redundant, self.devices
        if slots % devices:
            raise ValueError(
                f"{self.experts} experts and {self.redundant} copies are {slots} slots, which "
                f"{devices} devices do not share equally; {-slots % devices} more copies would do"
            )
        if self.redundant > self.experts * (devices - 1):
            raise ValueError(f"{self.redundant} copies would put an expert twice on a device")

    def _check_groups(self) -> None:
        if self.groups == 1 and not self.form_groups and self.group_of is None:
            return
        parts = self.devices if self.groups_on == "device" else self.nodes
        if self.groups > self.experts:
            raise ValueError(f"{self.groups} groups are more than {self.experts} experts")
        if self.experts % self.groups or self.groups % parts:
            raise ValueError(
                f"{self.groups} groups must divide {self.experts} experts and be shared by "
                f"{parts} {self.groups_on}s equally"
            )
        if self.node_devices is not None and len(set(self.node_devices)) > 1:
            raise ValueError("groups need nodes of equally many devices")
        if self.groups_on == "device" and self.redundant % (self.experts // self.groups):
            raise ValueError(
                f"{self.redundant} copies are not whole groups of {self.experts // self.groups}"
            )
        self._check_members()

    def _check_members(self) -> None:
        if self.group_of is None:
            return
        if self.form_groups:
            raise ValueError("group_of says which experts form a group; form_groups asks it")
        held = np.bincount(self.group_of)
        if (
            len(self.group_of) != self.experts
            or held.tolist() != [self.experts // self.groups] * self.groups
        ):
            raise ValueError(
                f"group_of must put {self.experts} experts into {self.groups} groups of equal size"
            )

    def _check_pins(self) -> None:
        limits = {"expert": self.experts, "device": self.devices, "node": self.nodes,
                  "layer": self.layers}  # fmt: skip
        for pin in self.pins:
            for name, limit in limits.items():
                value = getattr(pin, name)
                if value is not None and value >= limit:
                    raise ValueError(f"pin {pin.text()}: {name} {value} is beyond {limit - 1}")
        if self.pins and self.groups > 1:
            raise ValueError("pins and groups together are not modelled; pin without groups")

    def _check_moves(self) -> None:
        if self.current is None and (self.max_moves is not None or self.max_move_bytes is not None):
            raise ValueError("max_moves and max_move_bytes need current")
        if self.max_move_bytes is not None and self.expert_bytes is None:
            raise ValueError("max_move_bytes needs expert_bytes")
        if self.current is not None and self.copies != "given":
            raise ValueError("current fixes the copies of each layer; copies must be given")

    def _check_traffic(self) -> None:
        shape = (self.layers, self.nodes, self.experts)
        if self.sources is not None:
            found = (len(self.sources), *{len(x) for x in self.sources},
                     *{len(row) for x in self.sources for row in x})  # fmt: skip
            if found != shape:
                raise ValueError(f"sources are layers x nodes x experts {shape}, here {found}")
        if self.tokens is not None:
            self._check_tokens(self.tokens)
        if self.token_nodes is not None and self.tokens is None:
            raise ValueError("token_nodes needs tokens")
        limited = self.max_moves is not None or self.max_move_bytes is not None
        if self.objective != "balance" and (limited or self.nodes == 1):
            raise ValueError("traffic between nodes needs more than one node and no limit on moves")

    def _check_tokens(self, tokens: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
        shapes = {(len(layer), len(row)) for layer in tokens for row in layer}
        if len(tokens) != self.layers or len(shapes) != 1:
            raise ValueError(
                f"tokens name {self.layers} layers of equally many tokens and experts, not "
                f"{len(tokens)} of {sorted(shapes)[:3]}"
            )
        count = next(iter(shapes))[0]
        ids = np.array(tokens)
        if ids.max() >= self.experts or (np.diff(np.sort(ids, axis=2), axis=2) == 0).any():
            raise ValueError(f"tokens name experts 0 to {self.experts - 1}, each once a token")
        nodes = self.token_nodes
        if nodes is not None and (len(nodes) != count or max(nodes) >= self.nodes):
            raise ValueError(
                f"token_nodes gives each of {count} tokens a node 0 to {self.nodes - 1}"
            )

    @property
    def experts(self) -> int:
        """Logical experts of a layer."""
        return len(self.loads[0][0])

    @property
    def layers(self) -> int:
        """Rows of the loads, dense layers included."""
        return len(self.loads[0])

    def node_of(self) -> Ints:
        """Node of each device, [devices]."""
        held = self.node_devices or (self.devices // self.nodes,) * self.nodes
        return np.repeat(np.arange(self.nodes), held)

    def members(self) -> Ints:
        """Group of each expert, [experts]."""
        if self.group_of is not None:
            return np.array(self.group_of)
        return np.arange(self.experts) // (self.experts // self.groups)

    def layer_bytes(self) -> Array:
        """Bytes of one expert in each layer, [layers]; one each where nothing is said."""
        return np.broadcast_to(np.array(self.expert_bytes or (1.0,)), (self.layers,)).copy()

    def relative_speeds(self) -> Array:
        """Speed of each device over the mean, [devices]."""
        speeds = np.array(self.speeds or [1.0] * self.devices)
        relative: Array = speeds / speeds.mean()
        return relative

    def shares(self) -> Array:
        """[traces, layers, experts]; rows of MoE layers sum to one.

        Raises:
            MoesaicError: `invalid` when no layer has any load, or a layer only in some traces.
        """
        counts = np.array(self.loads, dtype=float)
        sums = counts.sum(axis=2, keepdims=True)
        if not sums.any() or ((sums > 0).any(axis=0) != (sums > 0).all(axis=0)).any():
            raise MoesaicError(
                "invalid", "a layer must have load in every trace or in none, and one in some",
                "/loads",
            )  # fmt: skip
        shares: Array = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
        return shares
