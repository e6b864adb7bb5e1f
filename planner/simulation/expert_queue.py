"""Experts one at a time on a small device: in the order of tokens, or of expert queues (Edge-MoE).

Edge-MoE (arXiv:2305.18691) pushes each token to the queues of its experts and works queue by queue,
the next expert's weights loading behind the computation of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import simpy
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import SLICE

Choices = NDArray[np.integer]


@dataclass(frozen=True)
class ExpertSeconds:
    """Seconds of one expert: loading its weights, and computing one token."""

    load_s: float
    token_s: float


@dataclass(frozen=True)
class OrderResult:
    """What one layer's experts take in one order."""

    seconds_s: float
    loads_count: int
    stalled_s: float
    """Time in which computation waited for weights."""


def token_order(choices: Choices, costs: ExpertSeconds) -> OrderResult:
    """Token after token: each choice loads its expert unless it is the one that is there.

    Args:
        choices: expert ids [token, k].
        costs: seconds.
    """
    flat = _checked(choices).reshape(-1)
    loads = 1 + int(np.count_nonzero(flat[1:] != flat[:-1]))
    stalled = loads * costs.load_s
    return OrderResult(stalled + len(flat) * costs.token_s, loads, stalled)


Note = Callable[[str, str, float, float], None]
"""Told of a piece of work: track, name, start and end [s]."""


def order_slices(choices: Choices, costs: ExpertSeconds) -> pl.DataFrame:
    """One layer in queues, and in token order as far as queues take; columns `SLICE`."""
    rows: list[tuple[str, str, str, float, float]] = []

    def note(track: str, name: str, start_s: float, end_s: float) -> None:
        rows.append(("expert queue", track, name, start_s, end_s))

    last_s = expert_queues(choices, costs, note).seconds_s
    at_s, before = 0.0, -1
    for expert in choices.reshape(-1).tolist():
        if at_s >= last_s:
            break
        if expert != before:
            note("token order", f"load {expert}", at_s, at_s + costs.load_s)
            at_s += costs.load_s
        note("token order", f"compute {expert}", at_s, at_s + costs.token_s)
        at_s, before = at_s + costs.token_s, expert
    return pl.DataFrame(rows, schema=SLICE, orient="row")


def expert_queues(choices: Choices, costs: ExpertSeconds, note: Note | None = None) -> OrderResult:
    """Queue after queue with double buffering, as SimPy processes of a loader and a computer.

    One buffer is computed from while the other is filled, so an expert's load begins when the
    expert before it begins to be computed.

    Args:
        choices: expert ids [token, k].
        costs: seconds.
        note: told of every load and every queue that is computed.
    """
    experts, counts = np.unique(_checked(choices), return_counts=True)
    clock = simpy.Environment()
    free = simpy.Container(clock, capacity=2, init=1)
    loaded = simpy.Store(clock)
    stalled = 0.0

    def load() -> Any:  # noqa: ANN401 - SimPy's generator type says no more
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            yield free.get(1)
            yield clock.timeout(costs.load_s)
            if note is not None:
                note("queues: loads", f"load {expert}", clock.now - costs.load_s, clock.now)
            yield loaded.put((expert, count))

    def compute() -> Any:  # noqa: ANN401
        nonlocal stalled
        for _ in counts:
            began = clock.now
            expert, count = yield loaded.get()
            stalled += clock.now - began
            # The other buffer is empty now: its weights may come while this one is used.
            yield free.put(1)
            took_s = count * costs.token_s
            yield clock.timeout(took_s)
            if note is not None:
                note("queues: products", f"compute {expert}", clock.now - took_s, clock.now)

    clock.process(load())
    done = clock.process(compute())
    clock.run(done)
    return OrderResult(float(clock.now), len(counts), stalled)


def queues_closed_form(counts: NDArray[np.integer], costs: ExpertSeconds) -> float:
    """T = load of the first + the sum over experts of max(compute, load of the next) [s]."""
    loads = np.full(len(counts), costs.load_s)
    loads[-1] = 0.0
    return costs.load_s + float(np.maximum(counts * costs.token_s, loads).sum())


def _checked(choices: Choices) -> Choices:
    if choices.size == 0:
        raise MoesaicError("invalid", "no expert choices: a layer needs at least one token")
    return choices
