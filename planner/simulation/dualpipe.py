"""DualPipe in motion: micro-batches from both ends, forward and backward overlapped in pairs.

Order of work as described with DeepSeek-V3 (arXiv:2412.19437, section 3.2.1) and its repository
(github deepseek-ai/DualPipe): each device holds the stage of its place and the mirrored one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import SLICE


class Part(NamedTuple):
    """A forward or backward pass of one micro-batch of one direction."""

    kind: str  # F forward, B whole backward, I its input gradients only
    direction: int  # 0: from the first device, 1: from the last
    micro: int


class Op(NamedTuple):
    """What a device does next: one part, an overlapped pair, or weight gradients (no part)."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class DualPipeSeconds:
    """Seconds of one stage and micro-batch."""

    forward_s: float
    backward_s: float
    weight_s: float
    """The part of the backward pass that makes weight gradients."""
    pair_s: float
    """A forward and a whole backward pass, each hiding the other's all-to-all."""


@dataclass(frozen=True)
class DualPipeResult:
    """A simulated step."""

    seconds_s: float
    idle_s: tuple[float, ...]
    """Time in which each device waits between the step's start and end."""
    slices: pl.DataFrame
    """Columns `SLICE`, one track a device."""


class _Order:
    """Writes one device's order down."""

    def __init__(self, device: int, stages: int) -> None:
        self._mirrored = device >= stages // 2
        self._next = {"F": [0, 0], "B": [0, 0]}
        self.ops: list[Op] = []

    def _part(self, kind: str, phase: int) -> Part:
        count = self._next["F" if kind == "F" else "B"]
        micro, count[phase] = count[phase], count[phase] + 1
        return Part(kind, phase ^ self._mirrored, micro)

    def forward(self, phase: int) -> None:
        self.ops.append(Op((self._part("F", phase),)))

    def backward(self, phase: int, *, split: bool = False) -> None:
        self.ops.append(Op((self._part("I" if split else "B", phase),)))

    def pair(self, forward: int, backward: int) -> None:
        self.ops.append(Op((self._part("F", forward), self._part("B", backward))))

    def weights(self) -> None:
        self.ops.append(Op(()))


def dualpipe_order(device: int, stages: int, micro_batches: int) -> list[Op]:
    """Work of one device, in order.

    Args:
        device: its place, from 0.
        stages: devices, even.
        micro_batches: of the step, even, at least twice the stages.
    """
    half, near = stages // 2, min(device, stages - 1 - device)
    inner = half - near - 1
    order = _Order(device, stages)
    for _ in range(2 * inner):
        order.forward(0)
    for _ in range(near + 1):
        order.forward(0)
        order.forward(1)
    for _ in range(inner):
        order.backward(1, split=True)
        order.weights()
        order.forward(1)
    _steady(order, micro_batches // 2 - stages + near + 1, middle=inner == 0)
    for _ in range(inner):
        order.backward(1)
        order.pair(1, 0)
    _wind_down(order, near, inner)
    return order.ops


def _steady(order: _Order, rounds: int, *, middle: bool) -> None:
    for number in range(rounds):
        if number == 0 and middle:
            # The middle devices have nothing to overlap with yet; apart they wait less.
            order.forward(0)
            order.backward(1)
        else:
            order.pair(0, 1)
        order.pair(1, 0)


def _wind_down(order: _Order, near: int, inner: int) -> None:
    split = False
    for number in range(near + 1):
        turn = number == (near + 1) // 2
        split = split or (turn and near % 2 == 1)
        order.backward(1, split=split)
        split = split or (turn and near % 2 == 0)
        order.backward(0, split=split)
    for _ in range(inner):
        order.weights()
        order.backward(0, split=True)
    for _ in range(near + 1):
        order.weights()


def simulate_dualpipe(stages: int, micro_batches: int, seconds: DualPipeSeconds) -> DualPipeResult:
    """Play DualPipe.

    Raises:
        MoesaicError: `invalid` for odd stages, too few or odd micro-batches, impossible seconds.
    """
    if stages < 2 or stages % 2 or micro_batches % 2 or micro_batches < 2 * stages:  # noqa: PLR2004
        raise MoesaicError(
            "invalid",
            f"DualPipe needs an even number of stages and of micro-batches, at least two for each "
            f"stage, not {stages} and {micro_batches}",
        )
    if not seconds.weight_s <= seconds.backward_s:
        raise MoesaicError("invalid", "DualPipe: weight gradients are part of the backward pass")
    orders = [deque(dualpipe_order(d, stages, micro_batches)) for d in range(stages)]
    ends: dict[tuple[str, int, int, int], float] = {}
    free, busy = [0.0] * stages, [0.0] * stages
    rows: list[tuple[str, str, str, float, float]] = []
    moved = True
    while moved:
        moved = False
        for device, order in enumerate(orders):
            while order and (start := _start_s(order[0], device, stages, ends)) is not None:
                op = order.popleft()
                took = _took_s(op, seconds)
                free[device] = max(free[device], start) + took
                busy[device] += took
                rows.append(_slice(op, device, free[device], took))
                for part in op.parts:
                    kind = "F" if part.kind == "F" else "B"
                    ends[kind, part.direction, part.micro, device] = free[device]
                moved = True
    if any(orders):
        raise MoesaicError("internal", "the schedule waits for itself")
    total = max(free)
    slices = pl.DataFrame(rows, schema=SLICE, orient="row").filter(
        pl.col("end_s") > pl.col("start_s")
    )
    return DualPipeResult(total, tuple(total - spent for spent in busy), slices)


def _slice(op: Op, device: int, end_s: float, took_s: float) -> tuple[str, str, str, float, float]:
    names = [f"{part.kind}{part.micro}.{part.direction}" for part in op.parts]
    return ("pipeline", f"stage {device:03d}", "+".join(names) or "W", end_s - took_s, end_s)


def _took_s(op: Op, seconds: DualPipeSeconds) -> float:
    if not op.parts:
        return seconds.weight_s
    if len(op.parts) > 1:
        return seconds.pair_s
    return {
        "F": seconds.forward_s,
        "B": seconds.backward_s,
        "I": seconds.backward_s - seconds.weight_s,
    }[op.parts[0].kind]


def _start_s(
    op: Op, device: int, stages: int, ends: dict[tuple[str, int, int, int], float]
) -> float | None:
    """When everything an op needs is there; none while unknown."""
    start = 0.0
    for part in op.parts:
        step = 1 if part.direction == 0 else -1
        last = stages - 1 if part.direction == 0 else 0
        if part.kind == "F":
            source, kind = device - step, "F"
            if not 0 <= source < stages:
                continue
        elif device == last:
            source, kind = device, "F"
        else:
            source, kind = device + step, "B"
        end = ends.get((kind, part.direction, part.micro, source))
        if end is None:
            return None
        start = max(start, end)
    return start
