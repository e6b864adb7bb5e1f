"""One forward pass in motion: layers of a few ranks, micro-batches, devices and shared links.

Each micro-batch of each rank is a SimPy process. A device computes one thing at a time; a link
carries one transfer at a time, and ranks of a node may share one. An exchange ends for everybody
when the slowest rank has sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import simpy

from hwprofiles.errors import MoesaicError
from planner.formats.perfetto import SLICE


@dataclass(frozen=True)
class LayerSeconds:
    """Seconds of one layer for one micro-batch on one rank."""

    attention_s: float
    dispatch_s: float
    experts_s: float
    combine_s: float
    shared_s: float = 0.0
    """Shared experts; they need no exchange and run while tokens travel."""

    @property
    def device_s(self) -> float:
        """What the device computes."""
        return self.attention_s + self.shared_s + self.experts_s

    @property
    def total_s(self) -> float:
        """Everything in a row."""
        return self.device_s + self.dispatch_s + self.combine_s


@dataclass(frozen=True)
class PassResult:
    """A simulated pass."""

    seconds_s: float
    slices: pl.DataFrame
    """Columns `SLICE`: device and link tracks."""


class _Barrier:
    """Releases everybody when the last of `count` has come."""

    def __init__(self, clock: simpy.Environment, count: int) -> None:
        self._left = count
        self.open = clock.event()

    def arrive(self) -> simpy.Event:
        self._left -= 1
        if not self._left:
            self.open.succeed()
        return self.open


class _Pass:
    """State of one simulated pass."""

    def __init__(
        self, ranks: Sequence[Sequence[LayerSeconds]], layers: int, links: Sequence[int]
    ) -> None:
        self.clock = simpy.Environment()
        self.ranks = ranks
        self.layers = layers
        self.link_of = links
        self.devices = [simpy.PriorityResource(self.clock) for _ in ranks]
        self.links = {link: simpy.PriorityResource(self.clock) for link in sorted(set(links))}
        self.barriers: dict[tuple[int, int, str], _Barrier] = {}
        self.rows: list[tuple[str, str, str, float, float]] = []

    def barrier(self, layer: int, micro: int, step: str) -> simpy.Event:
        """Arrive at an exchange's end."""
        key = (layer, micro, step)
        if key not in self.barriers:
            self.barriers[key] = _Barrier(self.clock, len(self.ranks))
        return self.barriers[key].arrive()

    def use(
        self, resource: simpy.PriorityResource, track: str, name: str, order: int, seconds: float
    ) -> Any:  # noqa: ANN401 - SimPy's generator type says no more
        """Hold a resource for a while; earlier layers and micro-batches go first."""
        with resource.request(priority=order) as turn:
            yield turn
            start = self.clock.now
            yield self.clock.timeout(seconds)
            if seconds:
                self.rows.append(("pass", track, name, start, self.clock.now))

    def device(self, rank: int, name: str, order: int, seconds: float) -> Any:  # noqa: ANN401
        """Compute on a rank's device."""
        return self.use(self.devices[rank], f"device {rank:03d}", name, order, seconds)

    def link(self, rank: int, name: str, order: int, seconds: float) -> Any:  # noqa: ANN401
        """Send over a rank's link."""
        at = self.link_of[rank]
        return self.use(self.links[at], f"link {at:03d}", name, order, seconds)

    def micro_batch(self, rank: int, micro: int) -> Any:  # noqa: ANN401
        """All layers of one micro-batch on one rank."""
        costs = self.ranks[rank][micro]
        for layer in range(self.layers):
            order = layer * len(self.ranks[rank]) + micro
            name = f"{{}} {layer}.{micro}"
            yield from self.device(rank, name.format("attention"), order, costs.attention_s)
            shared = self.clock.process(
                self.device(rank, name.format("shared"), order, costs.shared_s)
            )
            yield from self.link(rank, name.format("dispatch"), order, costs.dispatch_s)
            yield self.barrier(layer, micro, "dispatch")
            yield shared
            yield from self.device(rank, name.format("experts"), order, costs.experts_s)
            yield from self.link(rank, name.format("combine"), order, costs.combine_s)
            yield self.barrier(layer, micro, "combine")


def simulate_pass(
    ranks: Sequence[Sequence[LayerSeconds]], layers: int, links: Sequence[int] | None = None
) -> PassResult:
    """Run a forward pass.

    Args:
        ranks: seconds of a layer [rank][micro-batch]; every rank has the same micro-batches.
        layers: layers, all alike.
        links: link of each rank; ranks with the same number share it. None: one each.

    Raises:
        MoesaicError: `invalid` for no rank, ragged micro-batches, negative seconds.
    """
    _check(ranks, layers, links)
    run = _Pass(ranks, layers, links or list(range(len(ranks))))
    for rank, micros in enumerate(ranks):
        for micro in range(len(micros)):
            run.clock.process(run.micro_batch(rank, micro))
    run.clock.run()
    slices = pl.DataFrame(run.rows, schema=SLICE, orient="row")
    return PassResult(float(run.clock.now), slices)


def _check(
    ranks: Sequence[Sequence[LayerSeconds]], layers: int, links: Sequence[int] | None
) -> None:
    if not ranks or layers < 1 or len({len(micros) for micros in ranks}) != 1 or not ranks[0]:
        raise MoesaicError("invalid", "a pass needs layers, ranks and the same micro-batches each")
    if links is not None and len(links) != len(ranks):
        raise MoesaicError("invalid", f"{len(links)} links for {len(ranks)} ranks; one each")
    if any(min(vars(costs).values()) < 0 for micros in ranks for costs in micros):
        raise MoesaicError("invalid", "seconds of a layer must be 0 or more")


def slowest_rank_s(ranks: Sequence[Sequence[LayerSeconds]], layers: int) -> float:
    """What the busiest device computes, and what one micro-batch takes alone: the lower bound."""
    device = max(sum(costs.device_s for costs in micros) for micros in ranks)
    alone = max(
        max(c.attention_s + max(c.dispatch_s, c.shared_s) + c.experts_s + c.combine_s for c in m)
        for m in ranks
    )
    return layers * max(device, alone)


def serial_s(ranks: Sequence[Sequence[LayerSeconds]], layers: int) -> float:
    """Everything of every rank in a row: the upper bound."""
    return layers * sum(costs.total_s for micros in ranks for costs in micros)
