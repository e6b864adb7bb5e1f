"""One schedulable device (die, package, board or server) as sourced data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.sourced import Sourced
from hwprofiles.units import Bytes, BytesPerS, FlopPerS, Hertz, Seconds, Watts

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$", max_length=80)]


class MemoryTier(Document):
    """One level of memory that the device reads from."""

    name: Literal["hbm", "gddr", "lpddr", "dram", "ssd", "sram"]
    capacity_bytes: Sourced[Bytes]
    bandwidth_bytes_per_s: Sourced[BytesPerS]
    latency_s: Sourced[Seconds] | None = None


class Device(Document):
    """What a vendor states or somebody measured of one device; kind is data, never a subclass."""

    schema_version: Literal[1] = 1
    name: Name
    title: str
    vendor: str
    kind: Literal["gpu", "npu", "cpu", "fpga"]
    unit: Literal["die", "package", "board", "server"]
    """What one "device" of a plan is; two dies in one package are two devices."""
    aliases: tuple[str, ...] = ()
    """Other names users write, lower case."""
    peak_flop_per_s: dict[str, Sourced[FlopPerS]]
    """Dense peak by compute type (bf16, fp16, fp8, fp4, int8, fp32)."""
    memory: Annotated[tuple[MemoryTier, ...], Field(min_length=1)]
    """Fastest first; the first tier is where weights and KV cache live."""
    power_w: Sourced[Watts] | None = None
    clock_hz: Sourced[Hertz] | None = None
    host_link_bytes_per_s: Sourced[BytesPerS] | None = None
    """Between this device's memory and the host's, one direction."""
    cores_count: Sourced[int] | None = None
    numa_nodes_count: Sourced[int] | None = None
    """Memory domains of one device; each holds an equal part of the first tier."""
    numa_link_bytes_per_s: Sourced[BytesPerS] | None = None
    """Between the sockets of one server, one direction."""
    macs_per_cycle_count: Sourced[int] | None = None
    """Multiply-accumulates a cycle of an FPGA kernel; twice this times the clock is its peak."""
    curves: Name
    """Name of the efficiency curves in `curves/` used where no fitted profile exists."""

    @property
    def capacity_bytes(self) -> float:
        """Bytes of the working memory tier."""
        return self.memory[0].capacity_bytes.value

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Peak bytes per second of the working memory tier."""
        return self.memory[0].bandwidth_bytes_per_s.value

    def peak(self, compute: str) -> float:
        """Dense peak in FLOP/s for a compute type.

        Raises:
            MoesaicError: `outside_evidence` when no source states a peak for this type.
        """
        if compute not in self.peak_flop_per_s:
            known = ", ".join(sorted(self.peak_flop_per_s))
            raise MoesaicError(
                "outside_evidence", f"{self.name} has no stated {compute} peak; known: {known}"
            )
        return self.peak_flop_per_s[compute].value
