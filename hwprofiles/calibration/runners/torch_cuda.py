"""Runs kernel rows with torch on a CUDA GPU (events, L2 flush, graph replay) or on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from hwprofiles.calibration.environment import Environment, read_environment
from hwprofiles.calibration.runners.base import Prepared, Row, whole
from hwprofiles.calibration.runners.disk import disk_read
from hwprofiles.calibration.runners.torch_kernels import BUILDERS, TorchKernels
from hwprofiles.errors import MoesaicError

PROBE_S = 180
_CPU_TRASH_BYTES = 2**27
FORMS = {
    "cuda": ("bf16", "fp16", "fp8", "int8", "w8a16", "w4a16"),
    "cpu": ("fp32", "bf16", "w8a16", "w4a16"),
}
"""Numeric formats to measure; the first is the one for attention."""


def unusable(kind: str) -> str | None:
    """Why torch cannot run on `cuda` or `cpu` here; none where it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    test = "torch.cuda.is_available()" if kind == "cuda" else "True"
    return probe(f"import torch; assert {test}, 'torch sees no {kind} device'")


@cache
def probe(code: str) -> str | None:
    """Run a few lines in another process, device plug-ins switched off; the error's last line.

    `torch_npu` registers itself with torch, and without CANN its presence alone breaks
    `import torch` (PyTorch RFC 122468), so nothing is imported in this process first.
    """
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    try:
        run = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            timeout=PROBE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the probe did not answer within {PROBE_S} s"
    lines = run.stderr.strip().splitlines() or ["it ended without a word"]
    return None if run.returncode == 0 else lines[-1]


class TorchCuda:
    """Torch on one GPU, or on the CPU with `device="cpu"`."""

    families = frozenset(BUILDERS)

    def __init__(
        self,
        device: str = "cuda",
        torch: Any = None,  # noqa: ANN401 - a module
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        self.torch = torch or importlib.import_module("torch")
        self.device = device
        self.name = f"torch-{device}"
        self.version = str(self.torch.__version__)
        self.kernels = TorchKernels(self.torch, device)
        self.forms = FORMS[device]
        self.tiers: tuple[str | None, ...] = (None, "dram") if device == "cuda" else ("dram",)
        self.trash = self.torch.zeros(self._trash_bytes() // 4, device=device)

    def _trash_bytes(self) -> int:
        """Twice the last cache before the memory, so that every call starts cold."""
        if self.device != "cuda":
            return _CPU_TRASH_BYTES
        return 2 * int(self.torch.cuda.get_device_properties(0).L2_cache_size)

    def environment(self) -> Environment:
        """Fingerprint with torch, CUDA, NCCL, driver and the GPU's name."""
        libraries = {"torch": self.version}
        if self.device != "cuda":
            return read_environment(libraries, threads_count=int(self.torch.get_num_threads()))
        cuda = self.torch.cuda
        libraries["cuda"] = str(self.torch.version.cuda)
        libraries["cudnn"] = str(self.torch.backends.cudnn.version())
        libraries["clocks"] = _smi("clocks.max.sm,clocks.max.mem")
        return read_environment(
            libraries, accelerator=str(cuda.get_device_name(0)), driver=_smi("driver_version")
        )

    def prepare(self, row: Row) -> Prepared:
        """Build a row's operation; on a GPU it is captured so that replays have no launch cost.

        Raises:
            MoesaicError: `outside_evidence` where torch refuses the row, with torch's own words.
        """
        if row.get("tier") == "ssd":
            return disk_read(self.name, whole(row, "bytes"), self.folder)
        try:
            run = self.kernels.build(row)
            run()
            self.synchronise()
            return Prepared(self._captured(run) if self.device == "cuda" else run)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            words = " ".join(str(error).split())[:200]
            raise MoesaicError("outside_evidence", f"torch refuses this row: {words}") from error

    def _captured(self, run: Any) -> Any:  # noqa: ANN401 - a callable
        """A graph replay of the operation; what cannot be captured runs as it is.

        It runs once on the stream of the capture: libraries make handles for each stream on first
        use, which a capture forbids (torch.cuda.make_graphed_callables does so, too).
        """
        cuda = self.torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        try:
            with cuda.stream(stream):
                run()
            cuda.current_stream().wait_stream(stream)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, stream=stream):
                run()
        except RuntimeError:
            cuda.synchronize()
            return run
        return graph.replay

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one call with a flushed cache, by CUDA events (by the clock on a CPU)."""
        if prepared.before is not None:
            prepared.before()
        self.trash.zero_()
        if self.device != "cuda":
            start = time.perf_counter_ns()
            prepared.run()
            return (time.perf_counter_ns() - start) * 1e-9
        before, after = self.events()
        before.record()
        prepared.run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) * 1e-3

    def events(self) -> tuple[Any, Any]:
        """A pair of timing events."""
        event = self.torch.cuda.Event
        return event(enable_timing=True), event(enable_timing=True)

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def _smi(query: str) -> str:
    """One line of nvidia-smi; empty where it is missing."""
    try:
        run = subprocess.run(  # noqa: S603 - a fixed command
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],  # noqa: S607 - on the path
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip().splitlines()[0] if run.stdout.strip() else ""
