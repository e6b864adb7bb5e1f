"""Training pipelines in motion: GPipe, 1F1B and interleaved 1F1B, and their bubbles.

A schedule is an order of work for each device. Work starts when its device is free and what it
needs has arrived; the bubble is the time in which a device waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name
from planner.formats.perfetto import SLICE


class Work(NamedTuple):
    """One micro-batch's forward or backward through one model chunk."""

    kind: str  # F forward, B backward
    micro: int
    chunk: int


@dataclass(frozen=True)
class ChunkSeconds:
    """Seconds of one model chunk and micro-batch, exposed all-to-all included."""

    forward_s: float
    backward_s: float
    send_s: float = 0.0
    """From one stage to the next."""


@dataclass(frozen=True)
class ScheduleResult:
    """A simulated step of forward and backward passes."""

    seconds_s: float
    bubble_ratio: float
    """Waiting over computing on the device that waits most."""
    slices: pl.DataFrame
    """Columns `SLICE`, one track a device."""


def gpipe(stages: int, micro_batches: int, chunks: int) -> list[list[Work]]:
    """All forward passes, then all backward passes (Huang et al. 2019)."""
    _one_chunk("gpipe", chunks)
    micros = range(micro_batches)
    order = [Work("F", m, 0) for m in micros] + [Work("B", m, 0) for m in micros]
    return [order for _ in range(stages)]


def one_f_one_b(stages: int, micro_batches: int, chunks: int) -> list[list[Work]]:
    """Forward and backward in turn after a warm-up (PipeDream-Flush, Narayanan et al. 2021)."""
    _one_chunk("1f1b", chunks)
    orders = []
    for stage in range(stages):
        warm = min(stages - stage - 1, micro_batches)
        order = [Work("F", m, 0) for m in range(warm)]
        for m in range(micro_batches - warm):
            order += [Work("F", warm + m, 0), Work("B", m, 0)]
        order += [Work("B", m, 0) for m in range(micro_batches - warm, micro_batches)]
        orders.append(order)
    return orders


def interleaved(stages: int, micro_batches: int, chunks: int) -> list[list[Work]]:
    """1F1B with several model chunks a device (Narayanan et al. 2021, section 2.2).

    Raises:
        MoesaicError: `invalid` unless micro-batches are a multiple of the stages.
    """
    if micro_batches % stages:
        raise MoesaicError(
            "invalid",
            f"interleaving needs micro-batches in multiples of {stages} stages, not "
            f"{micro_batches}; Megatron refuses it too",
        )
    total = micro_batches * chunks

    def nth(kind: str, number: int) -> Work:
        turn, place = divmod(number, stages * chunks)
        chunk, micro = divmod(place, stages)
        return Work(kind, turn * stages + micro, chunk if kind == "F" else chunks - 1 - chunk)

    orders = []
    for stage in range(stages):
        warm = min((stages - stage - 1) * 2 + (chunks - 1) * stages, total)
        order = [nth("F", i) for i in range(warm)]
        for i in range(total - warm):
            order += [nth("F", warm + i), nth("B", i)]
        order += [nth("B", i) for i in range(total - warm, total)]
        orders.append(order)
    return orders


def _one_chunk(name: str, chunks: int) -> None:
    if chunks != 1:
        raise MoesaicError(
            "invalid", f"{name} has one model chunk a device, not {chunks}; ask for interleaved"
        )


SCHEDULES: dict[str, Callable[[int, int, int], list[list[Work]]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
}
"""Orders of work [device] for (stages, micro-batches, chunks a device)."""


def simulate_schedule(
    name: str, stages: int, micro_batches: int, seconds: ChunkSeconds, chunks: int = 1
) -> ScheduleResult:
    """Play a schedule.

    Args:
        name: a key of `SCHEDULES`.
        stages: pipeline-parallel devices.
        micro_batches: micro-batches of the step.
        seconds: seconds of one chunk.
        chunks: model chunks a device (virtual pipeline stages).

    Raises:
        MoesaicError: `unknown_name` for a schedule, `invalid` for sizes that it does not allow.
    """
    if name not in SCHEDULES:
        raise unknown_name("pipeline schedule", name, SCHEDULES)
    if min(stages, micro_batches, chunks) < 1:
        raise MoesaicError("invalid", "stages, micro_batches and chunks must be 1 or more")
    orders = SCHEDULES[name](stages, micro_batches, chunks)
    ends, rows = _play(orders, stages, chunks, seconds)
    total = max(ends.values())
    busy = chunks * micro_batches * (seconds.forward_s + seconds.backward_s)
    slices = pl.DataFrame(rows, schema=SLICE, orient="row")
    return ScheduleResult(total, total / busy - 1, slices)


_Place = tuple[Work, int]


def _play(
    orders: list[list[Work]], stages: int, chunks: int, seconds: ChunkSeconds
) -> tuple[dict[_Place, float], list[tuple[str, str, str, float, float]]]:
    """Start each device's next work when it can; devices take turns until all is done."""
    ends: dict[_Place, float] = {}
    rows: list[tuple[str, str, str, float, float]] = []
    free, at = [0.0] * stages, [0] * stages
    moved = True
    while moved:
        moved = False
        for device, order in enumerate(orders):
            while at[device] < len(order):
                work = order[at[device]]
                ready = _ready_s(work, device, ends, (stages, chunks), seconds.send_s)
                if ready is None:
                    break
                start = max(free[device], ready)
                took = seconds.forward_s if work.kind == "F" else seconds.backward_s
                free[device] = ends[work, device] = start + took
                name = f"{work.kind}{work.micro}.{work.chunk}"
                rows.append(("pipeline", f"stage {device:03d}", name, start, start + took))
                at[device] += 1
                moved = True
    if any(at[device] < len(order) for device, order in enumerate(orders)):
        raise MoesaicError("internal", "the schedule waits for itself")
    return ends, rows


def _ready_s(
    work: Work, device: int, ends: dict[_Place, float], sizes: tuple[int, int], send_s: float
) -> float | None:
    """When what the work needs is there; none while unknown."""
    stages, chunks = sizes
    last = work.chunk == chunks - 1 and device == stages - 1
    if work.kind == "B" and last:
        return ends.get((Work("F", work.micro, work.chunk), device))
    step = -1 if work.kind == "F" else 1
    at = work.chunk * stages + device + step
    if at < 0:
        return 0.0
    end = ends.get((Work(work.kind, work.micro, at // stages), at % stages))
    if end is None:
        return None
    return end + (send_s if stages > 1 else 0.0)


def bubble_closed_form(name: str, stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Bubble over compute without sends: (p - 1) / (v m) (Narayanan et al. 2021, section 2.2).

    Raises:
        MoesaicError: `unknown_name` for a schedule without one.
    """
    if name not in SCHEDULES:
        raise unknown_name("pipeline schedule", name, SCHEDULES)
    return (stages - 1) / (chunks * micro_batches)


def dualpipe_bubble_s(
    stages: int, forward_s: float, backward_s: float, weight_s: float, pair_s: float
) -> float:
    """DualPipe's bubble (p / 2 - 1)(F&B + B - 3 W) (DeepSeek-V3, arXiv:2412.19437, table 2).

    Args:
        stages: pipeline-parallel devices, even.
        forward_s: a chunk's forward pass; at most what a pair takes.
        backward_s: its whole backward pass.
        weight_s: the part of it that makes weight gradients.
        pair_s: a forward and a backward pass overlapped with each other's all-to-all.

    Raises:
        MoesaicError: `invalid` for an odd number of stages or impossible seconds.
    """
    if stages % 2 or stages < 2:  # noqa: PLR2004 - two directions
        raise MoesaicError("invalid", f"DualPipe needs an even number of stages, not {stages}")
    if not (weight_s <= backward_s and max(forward_s, backward_s) <= pair_s):
        raise MoesaicError(
            "invalid", "DualPipe: W is part of B, and an overlapped pair takes at least F and B"
        )
    return max((stages / 2 - 1) * (pair_s + backward_s - 3 * weight_s), 0.0)
