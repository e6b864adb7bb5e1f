"""A switch in user space: packets cross links of a stated rate and latency, none is dropped.

Every packet gets the time at which its last byte is due and is written then. A port whose queue is
full is not read, so that the sender's own queue and TCP's windows hold the rest (back-pressure). A
device's packets to several others take turns, as the queue pairs of a network card do.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

QUEUE_COUNT = 256
"""Packets of a port that may wait inside the switch."""
LONGEST_BYTES = 65536
IDLE_S = 0.2
_IPV4, _TARGET = 4, 16  # version of the header, first byte of the target's address (RFC 791)


@dataclass(frozen=True)
class LinkSpec:
    """One tier: rate of each device's link in each direction, and the latency added to packets."""

    name: str
    bytes_per_s: float
    latency_s: float


@dataclass
class Port:
    """One end of a link: what a device sends arrives on `descriptor`, what it gets is put there."""

    descriptor: int
    address: bytes
    """Four bytes of the device's IPv4 address."""
    link: LinkSpec
    sends_free_s: float = 0.0
    """When the direction away from the device has sent what has its turn."""
    gets_free_s: float = 0.0
    waiting_count: int = 0
    """Packets from this device that are still inside the switch."""
    turns: deque[tuple[Port, deque[bytes]]] = field(default_factory=deque)
    """Targets with packets that have not had their turn, the next one first."""

    def queue(self, target: Port, packet: bytes) -> None:
        """Put a packet behind the others to the same target."""
        for other, packets in self.turns:
            if other is target:
                packets.append(packet)
                return
        self.turns.append((target, deque((packet,))))

    def next_packet(self) -> tuple[Port, bytes]:
        """Take the packet whose turn it is; its target goes to the end of the line."""
        target, packets = self.turns.popleft()
        packet = packets.popleft()
        if packets:
            self.turns.append((target, packets))
        return target, packet


@dataclass
class Switch:
    """Ports by descriptor, and what is to happen, soonest first."""

    ports: Sequence[Port]
    clock: Callable[[], float] = time.monotonic
    late_s: float = 0.0
    """Longest time a packet left after it was due: load on this machine shows here."""
    moved_count: int = 0
    lost_count: int = 0
    """Packets for nobody: neighbour discovery and the like."""
    _events: list[tuple[float, int, Port, Port | None, bytes]] = field(default_factory=list)
    """A packet that arrives, or (without one) a port that may send its next."""

    def __post_init__(self) -> None:
        self._by_descriptor = {port.descriptor: port for port in self.ports}
        self._targets = {(port.address, port.link.name): port for port in self.ports}
        self._number = 0

    def forward(self, until: Callable[[], bool]) -> None:
        """Move packets until `until` says so; it is asked five times a second."""
        while not until():
            end = self.clock() + IDLE_S
            while self.clock() < end:
                self.step()

    def step(self) -> None:
        """Wait for the next packet in or out, take in what came, put out what is due."""
        wait = IDLE_S
        if self._events:
            wait = min(IDLE_S, max(0.0, self._events[0][0] - self.clock()))
        open_ports = [p.descriptor for p in self.ports if p.waiting_count < QUEUE_COUNT]
        ready, _, _ = select.select(open_ports, [], [], wait)
        for descriptor in ready:
            self._take(self._by_descriptor[descriptor])
        while self._events and self._events[0][0] <= self.clock():
            due, _, port, target, packet = heapq.heappop(self._events)
            if target is None:
                self._send_next(port)
            else:
                self._put(due, port, target, packet)

    def _take(self, port: Port) -> None:
        idle = not port.turns and port.sends_free_s <= self.clock()
        while port.waiting_count < QUEUE_COUNT:
            try:
                packet = os.read(port.descriptor, LONGEST_BYTES)
            except BlockingIOError:
                break
            target = self._target(packet, port)
            if target is None:
                self.lost_count += 1
                continue
            port.waiting_count += 1
            port.queue(target, packet)
        if idle and port.turns:
            port.sends_free_s = self.clock()
            self._send_next(port)

    def _target(self, packet: bytes, port: Port) -> Port | None:
        if not packet or packet[0] >> 4 != _IPV4:
            return None
        return self._targets.get((packet[_TARGET : _TARGET + 4], port.link.name))

    def _send_next(self, port: Port) -> None:
        """Give the next packet its due time: both directions are busy for its length, cut through.

        Times go on from when the link became free, not from when this was noticed.
        """
        if not port.turns:
            return
        target, packet = port.next_packet()
        took = len(packet) / port.link.bytes_per_s
        port.sends_free_s += took
        target.gets_free_s = max(port.sends_free_s, target.gets_free_s + took)
        self._at(target.gets_free_s + port.link.latency_s, port, target, packet)
        self._at(port.sends_free_s, port, None, b"")

    def _at(self, due: float, port: Port, target: Port | None, packet: bytes) -> None:
        self._number += 1
        heapq.heappush(self._events, (due, self._number, port, target, packet))

    def _put(self, due: float, port: Port, target: Port, packet: bytes) -> None:
        self.late_s = max(self.late_s, self.clock() - due)
        self.moved_count += 1
        port.waiting_count -= 1
        with contextlib.suppress(BlockingIOError):  # a device that takes nothing more
            os.write(target.descriptor, packet)
