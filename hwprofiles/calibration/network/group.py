"""A runner whose kernels are run by several processes at once: collectives, orders, products.

With a topology each rank lives in a network namespace behind the switch; without one all ranks
share this machine's loopback.
"""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hwprofiles.calibration.environment import (
    Environment,
    read_environment,
    scheduling,
    usable_cores,
)
from hwprofiles.calibration.load_watch import LoadWatch
from hwprofiles.calibration.network.lab import Topology, start_rank
from hwprofiles.calibration.runners.base import Prepared, Row, whole
from hwprofiles.errors import MoesaicError

START_S = 120.0
"""Longest time ranks may take to load torch and find each other."""
ANSWER_S = 120.0
LEAD_S = 2e-3
"""Time between telling the ranks and their common start."""
FAMILIES = frozenset(
    {"gemm", "elementwise", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"}
)


@dataclass
class Teller:
    """The line to one rank."""

    connection: socket.socket

    def __post_init__(self) -> None:
        self.answers = self.connection.makefile("rb")
        number, process = self.answers.readline().split()
        self.number, self.process = int(number), int(process)

    def ready(self) -> None:
        """Wait until the rank has met the others."""
        self.answers.readline()
        self.connection.settimeout(ANSWER_S)

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command."""
        self.connection.sendall(json.dumps(command).encode() + b"\n")

    def heard(self) -> Any:  # noqa: ANN401 - what the rank answered
        """The rank's answer.

        Raises:
            MoesaicError: `internal` when the rank has gone or says nothing.
        """
        try:
            line = self.answers.readline()
        except TimeoutError as error:
            raise MoesaicError("internal", f"a rank said nothing for {ANSWER_S:.0f} s") from error
        if not line:
            raise MoesaicError("internal", "a rank of the process group has ended")
        return json.loads(line)


class RankGroup:
    """torch.distributed over processes; times are those of the rank that ends last."""

    families = FAMILIES
    tiers: tuple[str | None, ...] = ()

    def __init__(self, ranks: int, topology: Topology | None = None, backend: str = "gloo") -> None:
        self.name = backend
        self.ranks = topology.ranks if topology else ranks
        self.topology = topology
        self.version = importlib.metadata.version("torch")
        self.tellers: list[Teller] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.members: list[int] = []
        self._folder = tempfile.TemporaryDirectory(prefix="gloo-")

    def __enter__(self) -> Self:
        """Start the ranks and wait until they have met."""
        folder = Path(self._folder.name)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder / "teller"))
            door.listen(self.ranks)
            door.settimeout(START_S)
            self._start(str(folder / "store"), str(folder / "teller"))
            self._meet(door)
        return self

    def _start(self, store: str, teller: str) -> None:
        if self.topology is None:
            self.processes = [
                start_rank(n, self.ranks, store, teller, self.name) for n in range(self.ranks)
            ]
            return
        command = [sys.executable, "-m", "hwprofiles.calibration.network.lab"]
        lab = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, self.topology.text(), store, teller], stdin=subprocess.PIPE
        )
        self.processes = [lab]

    def _meet(self, door: socket.socket) -> None:
        end = time.monotonic() + START_S
        door.settimeout(1.0)
        while len(self.tellers) < self.ranks:
            try:
                connection, _ = door.accept()
            except TimeoutError:
                self._still_coming(len(self.tellers), end)
                continue
            connection.settimeout(START_S)
            self.tellers.append(Teller(connection))
        self.tellers.sort(key=lambda teller: teller.number)
        for teller in self.tellers:
            teller.ready()

    def _still_coming(self, count: int, end: float) -> None:
        ended = [process for process in self.processes if process.poll() is not None]
        if ended or time.monotonic() > end:
            self.close()
            why = "a process ended" if ended else f"{START_S:.0f} s went by"
            raise MoesaicError("internal", f"{count} of {self.ranks} ranks met, then {why}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Hang up; ranks and switch end of themselves, what does not is ended."""
        for teller in self.tellers:
            teller.answers.close()
            teller.connection.close()
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
            else:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def watch(self) -> LoadWatch:
        """Sees the ranks' and the switch's time as this calibration's own."""
        own = [teller.process for teller in self.tellers] + [p.pid for p in self.processes]
        return LoadWatch(lambda: own)

    def environment(self) -> Environment:
        """Fingerprint with torch and the links."""
        libraries = {"torch": self.version, "backend": self.name, "network": self._links()}
        here = read_environment(libraries, threads_count=1)
        if not self.tellers:
            return here
        return here.model_copy(update={"scheduling": scheduling(self.tellers[0].process)})

    def _links(self) -> str:
        if self.topology is None:
            return f"{self.ranks} ranks on one machine"
        of = self.topology
        tiers = ", ".join(
            f"{link.name} {link.bytes_per_s * 8e-6:.0f} Mbit/s {link.latency_s * 1e6:.0f} us"
            for link in (of.near, of.far)
        )
        return f"{of.nodes} nodes of {of.ranks_per_node} ranks in namespaces: {tiers}"

    def chosen(self, row: Row) -> list[int]:
        """Ranks that take part: as many of each node as the row's group has.

        A row without a group is a local kernel, run by one rank a core.
        """
        one_a_core = min(self.ranks, len(usable_cores()))
        devices, nodes = whole(row, "devices", one_a_core), whole(row, "nodes", 1)
        of = self.topology
        if of is None or "devices" not in row:
            return list(range(devices))
        inside = devices // nodes
        return [n * of.ranks_per_node + i for n in range(nodes) for i in range(inside)]

    def prepare(self, row: Row) -> Prepared:
        """Have every rank build its part.

        Raises:
            MoesaicError: `outside_evidence` when there are fewer ranks or torch refuses the row.
        """
        self.members = self.chosen(row)
        if len(self.members) > self.ranks or max(self.members) >= self.ranks:
            raise MoesaicError(
                "outside_evidence", f"{len(self.members)} ranks are wanted, {self.ranks} are here"
            )
        answers = self._ask(
            range(self.ranks), {"do": "prepare", "row": dict(row), "members": self.members}
        )
        for answer in answers:
            if answer is not None:
                raise MoesaicError(
                    "outside_evidence", f"{self.name} refuses this row: {answer['error']}"
                )
        return Prepared(self._run if "devices" in row else self._run_alone)

    def _ask(self, ranks: Sequence[int], command: dict[str, Any]) -> list[Any]:
        for rank in ranks:
            self.tellers[rank].tell(command)
        return [self.tellers[rank].heard() for rank in ranks]

    def _run(self) -> float:
        """Seconds from the last rank's start to the last rank's end."""
        times = self._times()
        return max(end for _, end in times) - max(start for start, _ in times)

    def _run_alone(self) -> float:
        """Seconds of the slowest rank; none waits for another."""
        return max(end - start for start, end in self._times())

    def _times(self) -> list[tuple[float, float]]:
        """Start and end of each member, on the machine's one monotonic clock."""
        answers = self._ask(self.members, {"do": "run", "at": time.monotonic() + LEAD_S})
        failed = [answer["error"] for answer in answers if isinstance(answer, dict)]
        if failed:
            raise MoesaicError("internal", f"a rank failed: {failed[0]}")
        return [(float(start), float(end)) for start, end in answers]

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one operation of all ranks."""
        return float(str(prepared.run()))

    def synchronise(self) -> None:
        """Every operation has ended when its time is known."""


@dataclass
class OrderRunner:
    """The layers of one order, run by a group under a name of its own."""

    group: RankGroup
    order: str

    def __post_init__(self) -> None:
        self.name, self.version = f"gloo-{self.order}", self.group.version
        self.families = frozenset({"moe_layer"})
        self.tiers: tuple[str | None, ...] = ()

    def environment(self) -> Environment:
        """The group's."""
        return self.group.environment()

    def prepare(self, row: Row) -> Prepared:
        """Have every rank build the stages."""
        return self.group.prepare({**row, "order": self.order})

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one layer."""
        return self.group.sample(prepared)

    def synchronise(self) -> None:
        """As the group."""
