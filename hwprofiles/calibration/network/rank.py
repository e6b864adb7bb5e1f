"""One rank of a process group: does what it is told over a local socket, and says how long it took.

Started as `python -m hwprofiles.calibration.network.rank`; torch is loaded here and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from hwprofiles.calibration.network.orders import stages
from hwprofiles.calibration.runners.torch_kernels import Call, TorchKernels
from hwprofiles.errors import MoesaicError

_SPIN_S = 3e-4
"""The last bit before the start is waited for awake: a sleeper wakes up late."""
DEVICES = {"gloo": "cpu", "nccl": "cuda", "hccl": "npu"}
"""Backend of torch.distributed: the device its tensors lie on."""


def _nothing() -> None:
    """A CPU has done its work when a call returns."""


class Rank:
    """A member of a process group; groups of fewer ranks are made when first asked for."""

    def __init__(self, number: int, world: int, store: Path, backend: str = "gloo") -> None:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(1)
        self.number, self.device = number, DEVICES[backend]
        self.settle: Call = _nothing
        if self.device != "cpu":
            self._take_device()
        self.group: Any = self.torch.distributed
        self.group.init_process_group(
            backend, init_method=f"file://{store}", rank=number, world_size=world
        )
        self.groups: dict[tuple[int, ...], Any] = {}
        self.call: Call | None = None

    def _take_device(self) -> None:
        """One accelerator a rank; what runs on it is waited for before the clock is read."""
        if self.device == "npu":
            importlib.import_module("torch_npu")
        accelerator = getattr(self.torch, self.device)
        accelerator.set_device(self.number)
        self.settle = accelerator.synchronize

    def prepare(self, row: dict[str, Any], members: list[int]) -> None:
        """Build the work of a row; every rank makes the group, its members do the work."""
        key = tuple(members)
        if key not in self.groups:
            self.groups[key] = self.group.new_group(members)
        self.call = None
        if self.number not in key:
            return
        kernels = TorchKernels(self.torch, self.device, self.groups[key])
        self.call = stages(kernels, row)

    def run(self, at: float) -> tuple[float, float]:
        """Start at a moment of the machine's monotonic clock; when it began and ended."""
        assert self.call is not None  # noqa: S101 - only members are told to run
        time.sleep(max(0.0, at - time.monotonic() - _SPIN_S))
        while time.monotonic() < at:
            pass
        start = time.monotonic()
        self.call()
        self.settle()
        return start, time.monotonic()


def serve(rank: Rank, connection: socket.socket) -> None:
    """Answer one JSON line a command until the other side hangs up."""
    with connection.makefile("rb") as stream:
        for line in stream:
            command = json.loads(line)
            try:
                answer: Any = getattr(rank, command.pop("do"))(**command)
            except (RuntimeError, MoesaicError, NotImplementedError, ValueError) as error:
                answer = {"error": " ".join(str(error).split())[:200]}
            connection.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Join the group of the arguments: number, world, store file, socket of the teller, backend."""
    number, world, store, teller, backend = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(teller)
    connection.sendall(f"{number} {os.getpid()}\n".encode())
    rank = Rank(int(number), int(world), Path(store), backend)
    connection.sendall(b"ready\n")
    serve(rank, connection)


if __name__ == "__main__":
    main()
