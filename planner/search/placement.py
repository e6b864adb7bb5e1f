"""Experts onto devices and nodes, layer by layer: question, answer, and how it is solved."""

from __future__ import annotations

import time
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.search.churn import aligned, limit_moves, moved
from planner.search.eplb import eplb
from planner.search.packing import Packing, busiest, lower_bound, pack
from planner.search.solver import Programme

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Load = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Matrix = tuple[tuple[Load, ...], ...]
Map = tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]


class PlacementQuestion(Document):
    """Expert loads and the devices that are to hold them."""

    loads: Annotated[tuple[Matrix, ...], Field(min_length=1)]
    """One or more traces, each layers x experts; rows of zeros are dense layers. Several are
    balanced at once, by `robust`."""
    robust: Literal["worst", "mean"] = "worst"
    """Of several traces: the worst busiest device counts, or the mean load is balanced."""
    devices: Annotated[int, Field(ge=1, le=65_536)]
    nodes: Annotated[int, Field(ge=1)] = 1
    redundant: Annotated[int, Field(ge=0)] = 0
    """Copies of a layer beyond one an expert."""
    experts_per_device_max: Annotated[int, Field(ge=1)] | None = None
    groups: Annotated[int, Field(ge=1)] = 1
    """Groups of consecutive experts that must stay on one node (group-limited routing, MoGE)."""
    speeds: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None
    """Relative speed of each device; none: equal."""
    current: Map | None = None
    """Layers x slots: the expert in each slot today."""
    max_moves: Annotated[int, Field(ge=0)] | None = None
    """Slots that may change against `current`, all layers together."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shapes = {(len(load), *{len(row) for row in load}) for load in self.loads}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:  # noqa: PLR2004 - layers, one width
            raise ValueError(f"every load must name the same layers and experts, not {shapes}")
        slots, devices = self.experts + self.redundant, self.devices
        if slots % devices:
            raise ValueError(
                f"{self.experts} experts and {self.redundant} copies are {slots} slots, which "
                f"{devices} devices do not share equally; {-slots % devices} more copies would do"
            )
        if devices % self.nodes:
            raise ValueError(f"{self.nodes} nodes do not share {devices} devices equally")
        self._check_room(slots // devices)
        self._check_groups()
        if self.max_moves is not None and self.current is None:
            raise ValueError("max_moves needs current")
        if self.speeds is not None and len(self.speeds) != devices:
            raise ValueError(f"{len(self.speeds)} speeds for {devices} devices")
        return self

    def _check_room(self, width: int) -> None:
        if self.experts_per_device_max is not None and width > self.experts_per_device_max:
            raise ValueError(
                f"{width} slots a device are more than experts_per_device_max "
                f"{self.experts_per_device_max}; {self.devices} devices are too few"
            )
        if self.redundant > self.experts * (self.devices - 1):
            raise ValueError(f"{self.redundant} copies would put an expert twice on a device")

    def _check_groups(self) -> None:
        if self.groups > 1 and (self.experts % self.groups or self.groups % self.nodes):
            raise ValueError(
                f"{self.groups} groups must divide {self.experts} experts and be shared by "
                f"{self.nodes} nodes equally"
            )

    @property
    def experts(self) -> int:
        """Logical experts of a layer."""
        return len(self.loads[0][0])

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


class LayerPlacement(Document):
    """How one layer is balanced: on the worst trace, or on the mean load where that was asked."""

    layer: int
    max_over_mean_before: float  # unit: ratio
    max_over_mean: float  # unit: ratio
    bound: float  # unit: ratio
    gap_ratio: float


class Greedy(Document):
    """The published balancing on the same question, for comparison."""

    max_over_mean: tuple[float, ...]


class Placement(Document):
    """The layout and how good it can be at best."""

    physical_to_logical_map: tuple[tuple[int, ...], ...]
    """Layers x slots; device d has slots d·width … (d + 1)·width - 1. Dense layers are in order."""
    layers: tuple[LayerPlacement, ...]
    cross_node_share: float
    """Token-expert pairs that leave their node when a copy in the node is preferred."""
    moves: int
    """Slots whose expert is not yet on that device, against `current` or experts in order."""
    solve_s: float
    greedy: Greedy
    scored: tuple[LayerPlacement, ...] = ()
    """The same layout on another load, beside `scored_greedy`."""
    scored_greedy: Greedy | None = None


def place(question: PlacementQuestion, score: Matrix | None = None) -> Placement:
    """Place the experts of every layer.

    Args:
        question: loads and devices.
        score: another load, layers x experts, on which the layout is judged.

    Raises:
        MoesaicError: `invalid` for loads or maps that do not match.
    """
    started = time.perf_counter()
    shares = question.shares()
    if question.robust == "mean":
        shares = shares.mean(axis=0, keepdims=True)
    layers = np.flatnonzero(shares[0].sum(axis=1) > 0)
    speeds = _speeds(question)
    slots = question.experts + question.redundant
    today = _today(question, layers, slots)
    baseline = [_baseline(question, shares[:, i].mean(axis=0), slots) for i in layers]
    packings = [
        _pack_layer(question, shares[:, i], speeds, start)
        for i, start in zip(layers, baseline, strict=True)
    ]
    if question.current is not None and question.max_moves is None and question.groups == 1:
        packings = [
            Packing(aligned(old, p.experts, speeds), p.max_over_mean, p.bound)
            for old, p in zip(today, packings, strict=True)
        ]
    if question.current is not None and question.max_moves is not None:
        packings = limit_moves(today, packings, shares[:, layers], speeds, question.max_moves)
    solve_s = time.perf_counter() - started
    return Placement(
        physical_to_logical_map=_whole_map(question, layers, packings, len(shares[0])),
        layers=_judged(layers, today, packings, shares, speeds),
        cross_node_share=_cross_node(question, packings, shares[:, layers].mean(axis=0)),
        moves=sum(moved(old, new.experts) for old, new in zip(today, packings, strict=True)),
        solve_s=solve_s,
        greedy=_greedy(baseline, shares[:, layers], speeds),
        **_scored(question, score, layers, today, packings, baseline),
    )


def _speeds(question: PlacementQuestion) -> Array:
    speeds = np.array(question.speeds or [1.0] * question.devices)
    relative: Array = speeds / speeds.mean()
    return relative


def _today(question: PlacementQuestion, layers: Ints, slots: int) -> list[Ints]:
    """Layouts before: the current map, or experts in order with copies left out."""
    if question.current is None:
        order = np.array_split(np.arange(question.experts), question.devices)
        width = max(len(part) for part in order)
        plain = np.stack([np.pad(p, (0, width - len(p)), constant_values=-1) for p in order])
        return [plain for _ in layers]
    current = question.current
    if len(current) != len(question.loads[0]) or {len(row) for row in current} != {slots}:
        raise MoesaicError(
            "invalid",
            f"current must hold {len(question.loads[0])} layers x {slots} slots, it holds "
            f"{len(current)} x {sorted({len(row) for row in current})}", "/current",
        )  # fmt: skip
    found = [np.array(current[i]).reshape(question.devices, -1) for i in layers]
    for i, layout in zip(layers, found, strict=True):
        missing = set(range(question.experts)) - set(layout.ravel().tolist())
        if missing or layout.max() >= question.experts:
            raise MoesaicError(
                "invalid", f"layer {i} of current lacks experts {sorted(missing)[:5]} or names "
                f"one beyond {question.experts - 1}", f"/current/{i}",
            )  # fmt: skip
    return found


def _baseline(question: PlacementQuestion, row: Array, slots: int) -> Ints:
    return eplb(row, slots, question.devices, question.nodes, question.groups)


def _pack_layer(question: PlacementQuestion, rows: Array, speeds: Array, start: Ints) -> Packing:
    slots = question.experts + question.redundant
    if question.groups == 1 or question.nodes == 1:
        return pack(rows, slots, speeds, start)
    return _pack_nodes(question, rows, speeds)


def _pack_nodes(question: PlacementQuestion, rows: Array, speeds: Array) -> Packing:
    """Groups to nodes by a programme, then copies inside each node."""
    nodes, groups = question.nodes, question.groups
    node_of, fullest = assign_groups(rows.reshape(len(rows), groups, -1).sum(axis=2), nodes)
    slots = (question.experts + question.redundant) // nodes
    width = question.devices // nodes
    parts = []
    for node in range(nodes):
        names = np.arange(question.experts).reshape(groups, -1)[node_of == node].ravel()
        local = speeds[node * width : (node + 1) * width]
        part = pack(rows[:, names], slots, local)
        parts.append(names[part.experts])
    experts = np.concatenate(parts)
    bound = max(lower_bound(rows, slots * nodes, speeds), fullest * nodes / float(speeds.max()))
    return Packing(experts, busiest(experts, rows, speeds), bound)


def assign_groups(loads: Array, nodes: int) -> tuple[Ints, float]:
    """Node of each group: equal counts, the fullest node as empty as can be, worst trace.

    Args:
        loads: [traces, groups].
        nodes: how many nodes share the groups equally.

    Returns:
        Node of each group, and the bound on the fullest node's load.
    """
    groups = loads.shape[1]
    solution = state_groups(loads, nodes).solve(time_limit_s=10)
    chosen = np.array(
        [[solution.values[f"on_{g}_{n}"] for n in range(nodes)] for g in range(groups)]
    )
    return chosen.argmax(axis=1), solution.bound


def state_groups(loads: Array, nodes: int) -> Programme:
    """Write the programme of `assign_groups`."""
    traces, groups = loads.shape
    programme = Programme("groups", maximise=False)
    fullest = programme.number("fullest")
    on = [[programme.binary(f"on_{g}_{n}") for n in range(nodes)] for g in range(groups)]
    for g in range(groups):
        programme.require(f"once_{g}", programme.total([(x, 1) for x in on[g]]) == 1)
    for n in range(nodes):
        held = [(on[g][n], 1) for g in range(groups)]
        programme.require(f"equal_{n}", programme.total(held) == groups // nodes)
        for t in range(traces):
            load = [(on[g][n], float(loads[t, g])) for g in range(groups)]
            programme.require(f"load_{n}_{t}", programme.total([*load, (fullest, -1)]) <= 0)
    programme.objective(programme.total([(fullest, 1)]))
    return programme


def _whole_map(
    question: PlacementQuestion, layers: Ints, packings: list[Packing], count: int
) -> tuple[tuple[int, ...], ...]:
    plain = tuple(i % question.experts for i in range(question.experts + question.redundant))
    rows = [plain] * count
    for i, packing in zip(layers, packings, strict=True):
        rows[i] = tuple(packing.experts.ravel().tolist())
    return tuple(rows)


def _judged(
    layers: Ints, today: list[Ints], packings: list[Packing], shares: Array, speeds: Array
) -> tuple[LayerPlacement, ...]:
    return tuple(
        LayerPlacement(
            layer=int(i),
            max_over_mean_before=_before(old, shares[:, i], speeds),
            max_over_mean=packing.max_over_mean,
            bound=packing.bound,
            gap_ratio=packing.max_over_mean / packing.bound - 1,
        )
        for i, old, packing in zip(layers, today, packings, strict=True)
    )


def _before(layout: Ints, rows: Array, speeds: Array) -> float:
    """Busiest over mean of a layout whose empty slots are -1."""
    padded = np.concatenate([rows, np.zeros((len(rows), 1))], axis=1)
    experts = np.where(layout < 0, rows.shape[1], layout)
    return busiest(experts, padded, speeds)


def _cross_node(question: PlacementQuestion, packings: list[Packing], rows: Array) -> float:
    """Tokens start on any node equally often and use a copy in their node where there is one."""
    per_node = question.devices // question.nodes
    leaving = []
    for packing, row in zip(packings, rows, strict=True):
        by_node = packing.experts.reshape(question.nodes, per_node * packing.experts.shape[1])
        present = np.zeros((question.nodes, question.experts), dtype=bool)
        present[np.arange(question.nodes)[:, None], by_node] = True
        leaving.append(1 - float((row * present.sum(axis=0)).sum()) / question.nodes)
    return float(np.mean(leaving))


def _greedy(baseline: list[Ints], shares: Array, speeds: Array) -> Greedy:
    values = [busiest(b, shares[:, i], speeds) for i, b in enumerate(baseline)]
    return Greedy(max_over_mean=tuple(values))


def _scored(
    question: PlacementQuestion, score: Matrix | None, layers: Ints, today: list[Ints],
    packings: list[Packing], baseline: list[Ints],
) -> dict[str, object]:  # fmt: skip
    if score is None:
        return {}
    other = PlacementQuestion.parse(
        question.model_dump() | {"loads": (score,), "current": None, "max_moves": None},
        what="score load",
    ).shares()
    speeds = _speeds(question)
    again = [
        Packing(p.experts, busiest(p.experts, other[:, i], speeds), p.bound)
        for i, p in zip(layers, packings, strict=True)
    ]
    judged = tuple(
        layer.model_copy(update={"bound": 1.0, "gap_ratio": layer.max_over_mean - 1})
        for layer in _judged(layers, today, again, other, speeds)
    )
    return {"scored": judged, "scored_greedy": _greedy(baseline, other[:, layers], speeds)}
