"""One file for each kind of hardware that can run kernel rows, and the choice among them."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.calibration.runners.base import Runner
from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.files import make_folder
from hwprofiles.library import load_device


def choose(
    device: str, runner: str, folder: Path
) -> tuple[Runner, Cluster | None, tuple[str, ...]]:
    """Pick a runner, the machine it stands for, and the formats to measure.

    `auto` takes CUDA where torch sees it, then an NPU, then this CPU with torch, else with NumPy.

    Raises:
        MoesaicError: `unknown_name` for the device, `invalid` when the asked runner cannot run.
    """
    cluster = None if device == "auto" else single(load_device(device).name)
    order = ("torch-cuda", "torch-npu", "torch-cpu", "numpy") if runner == "auto" else (runner,)
    why: dict[str, str] = {}
    for name in order:
        reason = _unusable(name)
        if reason:
            why[name] = reason
            continue
        made, forms = _make(name, folder)
        return made, cluster or _found(made), forms
    reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
    raise MoesaicError("invalid", f"no runner works here: {reasons}", "/runner")


COLLECTIVE_LIBRARIES = {"torch-cpu": "gloo", "torch-cuda": "nccl", "torch-npu": "hccl"}
"""Runner: the backend of torch.distributed that joins several of its kind."""
CPU_RANKS = 4
"""Processes between which collectives are measured on a CPU."""


def ranks_here(runner: Runner) -> int:
    """Processes that collectives can run between: the accelerators here, or a few on a CPU."""
    if runner.name == "torch-cpu":
        return CPU_RANKS
    kernels = getattr(runner, "kernels", None)
    if runner.name not in COLLECTIVE_LIBRARIES or kernels is None:
        return 0
    return int(getattr(kernels.torch, kernels.device).device_count())


def single(name: str) -> Cluster:
    """A cluster of one catalogue device."""
    device = load_device(name)
    return Cluster(
        name=f"{device.name}-x1"[:80], title=device.title, device=device, nodes=1,
        devices_per_node=1, tiers=(),
    )  # fmt: skip


def _unusable(name: str) -> str | None:
    from hwprofiles.calibration.runners import torch_cuda, torch_npu

    if name == "numpy":
        return None
    if name == "torch-npu":
        return torch_npu.unusable()
    return torch_cuda.unusable("cuda" if name == "torch-cuda" else "cpu")


def _make(name: str, folder: Path) -> tuple[Runner, tuple[str, ...]]:
    if name == "numpy":
        from hwprofiles.calibration.runners.numpy_cpu import NumpyCpu

        make_folder(folder)
        return NumpyCpu(folder), ("fp32", "q8_0", "q4_0")
    if name == "torch-npu":
        from hwprofiles.calibration.runners.torch_npu import TorchNpu

        return TorchNpu(), ("bf16", "fp16", "int8")
    from hwprofiles.calibration.runners.torch_cuda import TorchCuda

    make_folder(folder)
    runner = TorchCuda("cuda" if name == "torch-cuda" else "cpu", folder=folder)
    return runner, runner.forms


def _found(runner: Runner) -> Cluster | None:
    """The catalogue's entry for what a runner runs on; a CPU is described by its measurements.

    Raises:
        MoesaicError: `unknown_name` for an accelerator that the catalogue does not know.
    """
    accelerator = runner.environment().accelerator
    return single(accelerator) if accelerator else None
