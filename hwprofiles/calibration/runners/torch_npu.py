"""Runs kernel rows with torch_npu on an Ascend NPU.

Written against the documented API of torch_npu (torch.npu.Event, synchronize, get_device_name); no
NPU was at hand, so the harness around it is covered by recorded replay only.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from hwprofiles.calibration.environment import Environment, read_environment
from hwprofiles.calibration.runners.base import Prepared, Row
from hwprofiles.calibration.runners.torch_cuda import probe
from hwprofiles.calibration.runners.torch_kernels import BUILDERS, TorchKernels
from hwprofiles.errors import MoesaicError

_TRASH_BYTES = 2 * 192 * 2**20
"""Twice the L2 of an Ascend 910B: 192 MB (Ascend/msmodeling, tensor_cast/device.py)."""


def unusable() -> str | None:
    """Why there is no NPU here; asked in another process, for the import can break torch."""
    for name in ("torch", "torch_npu"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return probe(
        "import torch, torch_npu; assert torch.npu.is_available(), 'torch_npu sees no device'"
    )


class TorchNpu:
    """Torch on one Ascend NPU."""

    name = "torch-npu"
    families = frozenset(BUILDERS)
    tiers: tuple[str | None, ...] = (None, "dram")

    def __init__(self, torch: Any = None) -> None:  # noqa: ANN401 - a module
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        self.torch = torch or importlib.import_module("torch")
        if torch is None:
            importlib.import_module("torch_npu")
        self.version = str(self.torch.__version__)
        self.kernels = TorchKernels(self.torch, "npu")
        self.trash = self.torch.zeros(_TRASH_BYTES // 4, device="npu")

    def environment(self) -> Environment:
        """Fingerprint with torch, CANN and the NPU's name."""
        libraries = {"torch": self.version, "cann": cann_version()}
        return read_environment(libraries, accelerator=str(self.torch.npu.get_device_name(0)))

    def prepare(self, row: Row) -> Prepared:
        """Build a row's operation and run it once, so that it is compiled before it is timed."""
        try:
            run = self.kernels.build(row)
            run()
            self.synchronise()
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            words = " ".join(str(error).split())[:200]
            raise MoesaicError(
                "outside_evidence", f"torch_npu refuses this row: {words}"
            ) from error
        return Prepared(run)

    def sample(self, prepared: Prepared) -> float:
        """Seconds of one call with a flushed cache, by NPU events."""
        event = self.torch.npu.Event
        before, after = event(enable_timing=True), event(enable_timing=True)
        self.trash.zero_()
        before.record()
        prepared.run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) * 1e-3

    def synchronise(self) -> None:
        """Wait for the NPU."""
        self.torch.npu.synchronize()


def cann_version() -> str:
    """Version of the CANN toolkit from its own file; empty where it is missing."""
    home = Path(os.environ.get("ASCEND_TOOLKIT_HOME", ""))
    for path in sorted(home.glob("**/*.info"))[:50] if home.name else []:
        found = re.search(r"^version=(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return ""
