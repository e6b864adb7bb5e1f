"""The fingerprint of a machine: everything that may move a measured time."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.units import Bytes, Hertz

_CPU = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")


class Environment(Document):
    """What a measurement ran on and with; its digest stands beside every measured row.

    Names of hosts and users are left out on purpose: profiles are meant to be shared.
    """

    schema_version: int = 1
    processor: str
    architecture: str
    vector_extensions: tuple[str, ...] = ()
    """SIMD and matrix extensions that change a peak (avx2, avx512f, amx_bf16, asimd ...)."""
    cores_count: int
    """Cores this process may use."""
    numa_nodes_count: int = 1
    memory_bytes: Bytes
    last_level_cache_bytes: Bytes
    clock_hz: Hertz | None = None
    """Highest clock the system states, or the nominal one."""
    governor: str = "unknown"
    virtual_machine: bool = False
    operating_system: str
    image: str = ""
    """Distribution or container image."""
    python: str
    libraries: dict[str, str] = Field(default_factory=dict)
    """Versions of what computes: numpy, BLAS, torch, CUDA, CANN."""
    accelerator: str = ""
    driver: str = ""
    threads_count: int = 1
    scheduling: str = "unknown"
    """Policy and priority that measured processes run under; `fifo` runs before all ordinary ones.
    """


def read_environment(
    libraries: dict[str, str], *, threads_count: int | None = None, accelerator: str = "",
    driver: str = "",
) -> Environment:  # fmt: skip
    """Read the fingerprint of this machine from /proc and /sys; what is missing stays "unknown"."""
    info = _text(_CPUINFO)
    cores = usable_cores()
    return Environment(
        processor=processor_name(info),
        architecture=platform.machine(),
        vector_extensions=vector_extensions(info),
        cores_count=len(cores),
        numa_nodes_count=max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        memory_bytes=memory_bytes(),
        last_level_cache_bytes=last_level_cache_bytes(),
        clock_hz=clock_hz(info),
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor").strip() or "unknown",
        virtual_machine="hypervisor" in info,
        operating_system=f"{platform.system()} {platform.release()}",
        image=_image(),
        python=platform.python_version(),
        libraries=libraries,
        accelerator=accelerator,
        driver=driver,
        threads_count=threads_count or len(cores),
        scheduling=scheduling(),
    )


def scheduling(process: int = 0) -> str:
    """How the system's scheduler treats a process (`man 7 sched`); 0 is this one."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    names = {os.SCHED_FIFO: "fifo", os.SCHED_RR: "round robin", os.SCHED_BATCH: "batch"}
    policy = os.sched_getscheduler(process)
    if policy in names:
        return f"{names[policy]} {os.sched_getparam(process).sched_priority}"
    return f"ordinary, nice {os.getpriority(os.PRIO_PROCESS, process)}"


def usable_cores() -> list[int]:
    """Numbers of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_name(info: str) -> str:
    """Name of the processor from the text of /proc/cpuinfo."""
    for pattern in (r"model name\s*:\s*(.+)", r"Hardware\s*:\s*(.+)", r"Model\s*:\s*(.+)"):
        found = re.search(pattern, info)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def vector_extensions(info: str) -> tuple[str, ...]:
    """Extensions among the flags of /proc/cpuinfo that decide how wide arithmetic is."""
    found = re.search(r"(?:flags|Features)\s*:\s*(.+)", info)
    flags = set(found[1].split()) if found else set()
    known = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16",
             "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve")  # fmt: skip
    return tuple(name for name in known if name in flags)


def clock_hz(info: str) -> float | None:
    """Highest stated clock; under a hypervisor often only the nominal one is visible."""
    top = _text(_CPU / "cpu0/cpufreq/cpuinfo_max_freq").strip()
    if top.isdigit():
        return int(top) * 1e3
    found = re.search(r"cpu MHz\s*:\s*([0-9.]+)", info)
    return float(found[1]) * 1e6 if found else None


def memory_bytes() -> float:
    """Installed memory, or what a control group leaves of it."""
    found = re.search(r"MemTotal:\s*(\d+) kB", _text(_MEMINFO))
    installed = float(found[1]) * 1024 if found else 0.0
    limit = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(installed, float(limit)) if limit.isdigit() and installed else installed


def available_bytes() -> float:
    """Memory that can be taken now without swapping."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", _text(_MEMINFO))
    return min(float(found[1]) * 1024 if found else memory_bytes(), memory_bytes())


def last_level_cache_bytes() -> float:
    """Size of the largest cache of core 0; 32 MiB where the system hides it."""
    sizes = [
        float(found[1]) * {"K": 2.0**10, "M": 2.0**20}[found[2]]
        for path in (_CPU / "cpu0/cache").glob("index*/size")
        if (found := re.fullmatch(r"(\d+)([KM])", _text(path).strip()))
    ]
    return max(sizes, default=32 * 2.0**20)


def _image() -> str:
    found = re.search(r'PRETTY_NAME="?([^"\n]+)', _text(Path("/etc/os-release")))
    return found[1] if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
