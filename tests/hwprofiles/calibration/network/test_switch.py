"""Packets through the switch: due times, turns, back-pressure, nothing lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hwprofiles.calibration.network.lab import address
from hwprofiles.calibration.network.switch import LinkSpec, Port, Switch

RATE = 1e6
LATENCY_S = 5e-3
LINK = LinkSpec("near", RATE, LATENCY_S)


class Clock:
    """Stands still unless told; each look takes a microsecond."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 1e-6
        return self.now_s


class Wires:
    """Three devices as socket pairs: the switch holds one end, the test the other."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        self.devices = [own for own, _ in pairs]
        self.ends = [other for _, other in pairs]
        for one in (*self.devices, *self.ends):
            one.setblocking(False)
        self.ports = [
            Port(end.fileno(), bytes(int(p) for p in address(n).split(".")), LINK)
            for n, end in enumerate(self.ends)
        ]
        self.clock = Clock()
        self.switch = Switch(self.ports, self.clock)

    def send(self, sender: int, target: int, size: int = 1000, mark: int = 0) -> None:
        head = bytes([0x45]) + bytes(15) + self.ports[target].address + bytes([mark])
        self.devices[sender].send(head.ljust(size, b"\0"))

    def received(self, device: int) -> list[int]:
        marks = []
        while True:
            try:
                marks.append(self.devices[device].recv(65536)[20])
            except BlockingIOError:
                return marks

    def at(self, seconds: float) -> None:
        """Let the switch work until a moment after the start."""
        end = 100.0 + seconds
        while self.clock.now_s < end:
            self.switch.step()
            self.clock.now_s += 1e-4


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    real = __import__("select").select
    monkeypatch.setattr(
        "hwprofiles.calibration.network.switch.select.select",
        lambda r, w, x, _: real(r, w, x, 0),
    )
    made = Wires()
    yield made
    for one in (*made.devices, *made.ends):
        one.close()


def test_a_packet_arrives_after_its_length_and_the_latency(wires: Wires) -> None:
    wires.send(0, 1, size=1000, mark=7)
    due = 1000 / RATE + LATENCY_S
    wires.at(due - 5e-4)
    assert wires.received(1) == []
    wires.at(due + 5e-4)
    assert wires.received(1) == [7]
    assert wires.switch.late_s < 5e-4


def test_a_link_carries_its_rate_and_both_directions_at_once(wires: Wires) -> None:
    for mark in range(20):
        wires.send(0, 1, mark=mark)
        wires.send(1, 0, mark=mark)
    wires.at(LATENCY_S + 10.5e-3)
    assert wires.received(1) == wires.received(0) == list(range(10))
    wires.at(LATENCY_S + 20.5e-3)
    assert wires.received(1) == wires.received(0) == list(range(10, 20))


def test_two_senders_share_the_receivers_link(wires: Wires) -> None:
    for mark in range(10):
        wires.send(0, 2, mark=mark)
        wires.send(1, 2, mark=mark)
    wires.at(LATENCY_S + 10.5e-3)
    assert len(wires.received(2)) == 10
    wires.at(LATENCY_S + 20.5e-3)
    assert len(wires.received(2)) == 10


def test_targets_take_turns(wires: Wires) -> None:
    for mark in range(6):
        wires.send(0, 1, mark=mark)
    for mark in range(6):
        wires.send(0, 2, mark=mark)
    wires.at(LATENCY_S + 6.5e-3)
    assert (len(wires.received(1)), len(wires.received(2))) == (3, 3)


def test_a_full_queue_holds_the_sender_back(wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprofiles.calibration.network.switch.QUEUE_COUNT", 4)
    for mark in range(12):
        wires.send(0, 1, mark=mark)
    wires.at(3e-3)
    assert wires.ports[0].waiting_count == 4
    wires.at(LATENCY_S * 12)
    assert wires.received(1) == list(range(12))
    assert wires.ports[0].waiting_count == 0


def test_packets_for_nobody_are_counted(wires: Wires) -> None:
    wires.devices[0].send(b"\x60" + bytes(60))
    wires.devices[0].send(bytes([0x45]) + bytes(15) + bytes([9, 9, 9, 9]) + bytes(10))
    wires.at(LATENCY_S)
    assert wires.switch.lost_count == 2
    assert wires.switch.moved_count == 0


def test_forward_asks_when_to_end(wires: Wires) -> None:
    answers = iter([False, True])
    wires.send(0, 1)
    wires.switch.forward(lambda: next(answers))
    assert wires.received(1) == [0]
