"""Experts that do not all lie in the device's own memory: where they lie, who computes them."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.document import Document, parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from hwprofiles.library import resolve_cluster
from hwprofiles.units import Bytes, BytesPerS, Ratio, Seconds, Share

FILE = Path(__file__).parent / "engines" / "fitted" / "offload.yaml"
Waiting = Literal["serial", "overlapped", "prefetch"]
"""`serial`: a pass computes, then waits; `overlapped`: the longer of the two; `prefetch`: fetching
hides behind attention, as when the router runs before it."""
SSD, RAM = "ssd", "ram"
TIERS = {SSD: ("ssd",), RAM: ("dram", "lpddr")}
"""Memory tiers of a device that a place names."""


class Offload(Document):
    """Where experts lie that the device does not keep, and what fetching one costs."""

    experts_in: Literal["ram", "ssd"]
    """Beside the device's own memory: the host's, or storage."""
    host: Annotated[Cluster, BeforeValidator(resolve_cluster)] | None = None
    """Processors that compute the experts where they lie (KTransformers); none: experts are
    fetched into the device's memory, least recently used ones thrown out (SmallThinker)."""
    memory_bytes: Bytes | None = None
    """Memory of the device that may be used; none: all of it."""
    resident_share: Share | None = None
    """Routed experts that the device keeps; none: as many as fit (with a host: none)."""
    miss_ratio: Share | None = None
    """Chosen experts that are not resident; none: from how unevenly experts are chosen."""
    storage_bytes_per_s: BytesPerS | None = None
    """Reached in fetching experts; none: the profile's peak times the fitted share."""
    storage_latency_s: Seconds = 0.0
    """Of one fetched expert."""
    waiting: Waiting | None = None
    """How a pass waits for experts; none: the form that published runs support best."""
    memory_step_s: Seconds | None = None
    """A decode step with everything in memory, where measured; none: modelled."""


class OffloadFit(Document):
    """What published runs with experts on storage say, dated."""

    schema_version: Literal[1] = 1
    date: datetime.date
    source: Annotated[str, Field(min_length=8)]
    rule: str
    """Which rows were fitted on."""
    popularity_exponent: Annotated[float, Field(ge=0)]  # unit: Zipf exponent of chosen experts
    storage_share: Share
    """Of a device's stated storage bandwidth that fetching experts reaches."""
    link_share: Share
    """Of the link to the host's memory that copying experts reaches."""
    link_source: Annotated[str, Field(min_length=8)]
    low_ratio: Ratio
    high_ratio: Ratio
    """Interval of the time experts are waited for, over its typical value."""
    waiting: Waiting
    held_out_ratio: dict[str, float]
    """Greatest error of each form of waiting on runs not fitted on."""


@cache
def offload_fit() -> OffloadFit:
    """The shipped fit."""
    return parse_as(OffloadFit, read_document(FILE), what="fitted offload")


def fetch_bytes_per_s(offload: Offload, device: Device) -> float:
    """Bytes of experts that reach the device's memory in a second.

    Raises:
        MoesaicError: `outside_evidence` where neither question nor profile state a rate.
    """
    if offload.storage_bytes_per_s is not None:
        return offload.storage_bytes_per_s
    fit = offload_fit()
    stated = [t for t in device.memory[1:] if t.name in TIERS[offload.experts_in]]
    if stated:
        return stated[0].bandwidth_bytes_per_s.value * fit.storage_share
    if offload.experts_in == RAM and device.host_link_bytes_per_s is not None:
        return device.host_link_bytes_per_s.value * fit.link_share
    known = ", ".join(tier.name for tier in device.memory)
    raise MoesaicError(
        "outside_evidence",
        f"{device.name} states no bandwidth of {offload.experts_in} (known tiers: {known}); "
        "give offload.storage_bytes_per_s", "/offload/storage_bytes_per_s",
    )  # fmt: skip
