"""This machine as a device document: peaks and bandwidths as measured here, the rest as stated."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hwprofiles.calibration.environment import Environment
from hwprofiles.cluster import Cluster
from hwprofiles.device import Device, MemoryTier
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import COLLECTIVES, dtype
from hwprofiles.sourced import Certainty, Sourced
from hwprofiles.tier import LinkTier

LARGE_BYTES = 2.0**26
"""Streams below this size may come from caches."""


def local_name(environment: Environment) -> str:
    """A device name from the processor's or accelerator's name."""
    return f"local-{slug(environment.accelerator or environment.processor)}"[:80]


def slug(text: str) -> str:
    """Write a name as files are named.

    >>> slug("AMD EPYC(TM) 7763")
    'amd-epyc-tm-7763'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "machine"


def local_cluster(environment: Environment, records: Sequence[Mapping[str, Any]]) -> Cluster:
    """Describe this CPU from its own best measurements.

    The arithmetic peak is the fastest GEMM, the bandwidth the fastest large stream; shares in a
    profile fitted with this device are shares of those.

    Raises:
        MoesaicError: `outside_evidence` when GEMM or stream rows are missing.
    """
    timed = [r for r in records if _has_time(r)]
    most = environment.cores_count * _MOST_FLOP_PER_S
    gemms = [
        r for r in timed
        if r["kernel"] == "gemm" and r["dtype"] == "fp32" and _flop_per_s(r) <= most
    ]  # fmt: skip
    streams = [
        r for r in timed
        if r["kernel"] in {"elementwise", "copy"} and r.get("tier") in {None, "dram"}
        and r["bytes"] >= LARGE_BYTES
    ]  # fmt: skip
    if not gemms or not streams:
        raise MoesaicError(
            "outside_evidence",
            "a CPU is described by its fastest fp32 GEMM and its fastest stream of "
            f"{LARGE_BYTES:.0f} bytes or more; {len(gemms)} and {len(streams)} rows are there",
        )
    peak = max(_flop_per_s(r) for r in gemms)
    stream = max(r["bytes"] / r["min_s"] for r in streams)
    device = Device(
        name=local_name(environment),
        title=f"{environment.processor}, {environment.cores_count} cores, as measured",
        vendor="this machine",
        kind="cpu",
        unit="server",
        peak_flop_per_s=_peaks(peak),
        memory=_memory(environment, stream, timed),
        cores_count=Sourced(value=environment.cores_count, **_origin("datasheet", "the system")),
        numa_nodes_count=Sourced(
            value=environment.numa_nodes_count, **_origin("datasheet", "the system")
        ),
        curves="cpu-default",
    )
    ranks, tiers = _loopback(
        [r for r in timed if r["kernel"] in COLLECTIVES], environment.cores_count
    )
    return Cluster(
        name=f"{device.name}-x{ranks}"[:80],
        title=device.title,
        device=device,
        nodes=1,
        devices_per_node=ranks,
        tiers=tiers,
    )


_MOST_FLOP_PER_S = 128 * 8e9
"""No core does more in fp32: two 512-bit units of multiply and add, twice over, at 8 GHz. A row
above that is no peak but an impossible time."""


def _has_time(record: Mapping[str, Any]) -> bool:
    """True for a time that can be one; zero, negative and missing times are set apart later."""
    times = (record.get("min_s"), record.get("median_s"))
    return all(isinstance(t, int | float) and math.isfinite(t) and t > 0 for t in times)


def _flop_per_s(record: Mapping[str, Any]) -> float:
    return float(2 * record["m"] * record["n"] * record["k"] / record["min_s"])


def _loopback(records: Sequence[Mapping[str, Any]], cores: int) -> tuple[int, tuple[LinkTier, ...]]:
    """What joins processes of this machine: the bandwidth of the fastest collective.

    The busiest rank sends and gets (R - 1) / R of its buffer in an all-to-all, an all-gather or a
    reduce-scatter. More ranks than cores take turns, so that each gets a part of the whole.
    """
    halves = [r for r in records if r["kernel"] != "all_reduce"]
    if not halves:
        return 1, ()
    ranks = int(max(r["devices"] for r in records))
    shared = ranks > cores
    rate = max(
        r["message_bytes"] * (1 - 1 / r["devices"]) / r["min_s"]
        * (r["devices"] / ranks if shared else 1.0)
        for r in halves
    )  # fmt: skip
    tier = LinkTier(
        name="loopback",
        kind="none",
        spans_devices=ranks,
        bandwidth_bytes_per_s=Sourced(value=rate, **_origin("measured", "fastest collective")),
        latency_s=Sourced(value=0.0, **_origin("assumed", "counted with each operation")),
        wiring="shared" if shared else "switch",
        wiring_source=f"{ranks} processes on {cores} cores of this machine" if shared else "",
    )
    return ranks, (tier,)


def _origin(certainty: Certainty, what: str) -> dict[str, Any]:
    return {
        "source": f"{what} on this machine",
        "date": datetime.datetime.now(datetime.UTC).date(),
        "certainty": certainty,
    }


def _peaks(peak: float) -> dict[str, Sourced[float]]:
    fastest: Sourced[float] = Sourced(value=peak, **_origin("measured", "fastest fp32 GEMM"))
    widened: Sourced[float] = Sourced(
        value=peak, **_origin("derived", "fastest fp32 GEMM"), note="narrow formats run as fp32"
    )
    kinds = {dtype(form).compute for form in ("bf16", "fp16", "int8")}
    return {"fp32": fastest} | dict.fromkeys(sorted(kinds), widened)


def _memory(
    environment: Environment, stream: float, records: Sequence[Mapping[str, Any]]
) -> tuple[MemoryTier, ...]:
    dram = MemoryTier(
        name="dram",
        capacity_bytes=Sourced(
            value=environment.memory_bytes, **_origin("datasheet", "the system")
        ),
        bandwidth_bytes_per_s=Sourced(value=stream, **_origin("measured", "fastest large stream")),
    )
    disk = [r["bytes"] / r["median_s"] for r in records if r.get("tier") == "ssd"]
    if not disk:
        return (dram,)
    ssd = MemoryTier(
        name="ssd",
        capacity_bytes=Sourced(
            value=max(r["bytes"] for r in records if r.get("tier") == "ssd"),
            **_origin("assumed", "largest file read"),
        ),
        bandwidth_bytes_per_s=Sourced(value=max(disk), **_origin("measured", "fastest disk read")),
    )
    return (dram, ssd)
