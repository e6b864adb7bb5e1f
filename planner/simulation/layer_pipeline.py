"""One forward pass in motion: layers of a few ranks, micro-batches, devices and shared links.

Each micro-batch of each rank is a SimPy process. A device computes one thing at a time, or its
cores are parted between attention and experts; a link carries one transfer at a time, and ranks of
a node may share one. An exchange ends for everybody when the slowest rank has sent, and the cores
that its kernels hold are missing where something else computes meanwhile.
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
class Cores:
    """How the cores of a device are shared out."""

    apart: bool = False
    """Attention and experts on cores of their own; the seconds given are on those cores."""
    exchange_ratio: float = 0.0
    """Part of the cores that kernels of an exchange hold while it runs; at most 0.9."""


WHOLE = Cores()
_MOST_HELD = 0.9


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
        self,
        ranks: Sequence[Sequence[LayerSeconds]],
        layers: int,
        links: Sequence[int],
        cores: Cores,
    ) -> None:
        self.clock = simpy.Environment()
        self.ranks = ranks
        self.layers = layers
        self.link_of = links
        self.cores = cores
        self.sending = [0] * len(ranks)
        self.changed = [self.clock.event() for _ in ranks]
        self.devices = [simpy.PriorityResource(self.clock) for _ in ranks]
        self.experts = self.devices
        if cores.apart:
            self.experts = [simpy.PriorityResource(self.clock) for _ in ranks]
        self.links = {link: simpy.PriorityResource(self.clock) for link in sorted(set(links))}
        self.barriers: dict[tuple[int, int, str], _Barrier] = {}
        self.rows: list[tuple[str, str, str, float, float]] = []

    def barrier(self, layer: int, micro: int, step: str) -> simpy.Event:
        """Arrive at an exchange's end."""
        key = (layer, micro, step)
        if key not in self.barriers:
            self.barriers[key] = _Barrier(self.clock, len(self.ranks))
        return self.barriers[key].arrive()

    def device(
        self, rank: int, name: str, order: int, seconds: float, *, experts: bool = False
    ) -> Any:  # noqa: ANN401 - SimPy's generator type says no more
        """Compute on a rank's cores; earlier layers and micro-batches go first."""
        cores = (self.experts if experts else self.devices)[rank]
        kind = "experts" if experts and self.cores.apart else "device"
        with cores.request(priority=order) as turn:
            yield turn
            start = self.clock.now
            yield from self.compute(rank, seconds)
            self.note(f"{kind} {rank:03d}", name, start)

    def compute(self, rank: int, seconds: float) -> Any:  # noqa: ANN401
        """Let time pass until `seconds` of work are done, more slowly while the rank exchanges."""
        if not self.cores.exchange_ratio:
            yield self.clock.timeout(seconds)
            return
        left = seconds
        while left > 0:
            speed = 1 - self.cores.exchange_ratio if self.sending[rank] else 1.0
            start = self.clock.now
            done = self.clock.timeout(left / speed)
            yield done | self.changed[rank]
            if done.processed:
                return
            left -= (self.clock.now - start) * speed

    def link(self, rank: int, name: str, order: int, seconds: float) -> Any:  # noqa: ANN401
        """Send over a rank's link."""
        at = self.link_of[rank]
        with self.links[at].request(priority=order) as turn:
            yield turn
            start = self.clock.now
            self.hold(rank, 1)
            yield self.clock.timeout(seconds)
            self.hold(rank, -1)
            self.note(f"link {at:03d}", name, start)

    def hold(self, rank: int, change: int) -> None:
        """Count exchanges of a rank, and tell what computes there that its speed has changed."""
        self.sending[rank] += change
        self.changed[rank].succeed()
        self.changed[rank] = self.clock.event()

    def note(self, track: str, name: str, start: float) -> None:
        """Keep a slice that took any time."""
        if self.clock.now > start:
            self.rows.append(("pass", track, name, start, self.clock.now))

    def micro_batch(self, rank: int, micro: int) -> Any:  # noqa: ANN401
        """All layers of one micro-batch on one rank."""
        costs = self.ranks[rank][micro]
        for layer in range(self.layers):
            order = layer * len(self.ranks[rank]) + micro
            name = f"{{}} {layer}.{micro}"
            yield from self.device(rank, name.format("attention"), order, costs.attention_s)
            shared = self.clock.process(
                self.device(rank, name.format("shared"), order, costs.shared_s, experts=True)
            )
            yield from self.link(rank, name.format("dispatch"), order, costs.dispatch_s)
            yield self.barrier(layer, micro, "dispatch")
            yield shared
            yield from self.device(
                rank, name.format("experts"), order, costs.experts_s, experts=True
            )
            yield from self.link(rank, name.format("combine"), order, costs.combine_s)
            yield self.barrier(layer, micro, "combine")


def simulate_pass(
    ranks: Sequence[Sequence[LayerSeconds]],
    layers: int,
    links: Sequence[int] | None = None,
    cores: Cores = WHOLE,
) -> PassResult:
    """Run a forward pass.

    Args:
        ranks: seconds of a layer [rank][micro-batch]; every rank has the same micro-batches.
        layers: layers, all alike.
        links: link of each rank; ranks with the same number share it. None: one each.
        cores: how each device's cores are shared out.

    Raises:
        MoesaicError: `invalid` for no rank, ragged micro-batches, negative seconds.
    """
    _check(ranks, layers, links, cores)
    run = _Pass(ranks, layers, links or list(range(len(ranks))), cores)
    everything = [
        run.clock.process(run.micro_batch(rank, micro))
        for rank, micros in enumerate(ranks)
        for micro in range(len(micros))
    ]
    # Not to the last event: work that was slowed down leaves the end it no longer has behind.
    run.clock.run(run.clock.all_of(everything))
    slices = pl.DataFrame(run.rows, schema=SLICE, orient="row")
    return PassResult(float(run.clock.now), slices)


def _check(
    ranks: Sequence[Sequence[LayerSeconds]],
    layers: int,
    links: Sequence[int] | None,
    cores: Cores,
) -> None:
    if not ranks or layers < 1 or len({len(micros) for micros in ranks}) != 1 or not ranks[0]:
        raise MoesaicError("invalid", "a pass needs layers, ranks and the same micro-batches each")
    if links is not None and len(links) != len(ranks):
        raise MoesaicError("invalid", f"{len(links)} links for {len(ranks)} ranks; one each")
    if any(min(vars(costs).values()) < 0 for micros in ranks for costs in micros):
        raise MoesaicError("invalid", "seconds of a layer must be 0 or more")
    if not 0 <= cores.exchange_ratio <= _MOST_HELD:
        raise MoesaicError(
            "invalid", f"an exchange holds 0 to {_MOST_HELD} of the cores, not "
            f"{cores.exchange_ratio}",
        )  # fmt: skip


def slowest_rank_s(
    ranks: Sequence[Sequence[LayerSeconds]], layers: int, *, apart: bool = False
) -> float:
    """What the busiest cores compute, and what one micro-batch takes alone: the lower bound."""
    device = max(max(_busy_s(micros, apart=apart)) for micros in ranks)
    alone = max(
        max(c.attention_s + max(c.dispatch_s, c.shared_s) + c.experts_s + c.combine_s for c in m)
        for m in ranks
    )
    return layers * max(device, alone)


def _busy_s(micros: Sequence[LayerSeconds], *, apart: bool) -> tuple[float, float]:
    """What each set of cores of one rank computes in a layer."""
    attention = sum(costs.attention_s for costs in micros)
    experts = sum(costs.shared_s + costs.experts_s for costs in micros)
    return (attention, experts) if apart else (attention + experts, 0.0)


def serial_s(ranks: Sequence[Sequence[LayerSeconds]], layers: int) -> float:
    """Everything of every rank in a row: the upper bound."""
    return layers * sum(costs.total_s for micros in ranks for costs in micros)
