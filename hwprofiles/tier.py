"""One level of the network: what joins devices, how it is wired, how fast and how late."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.sourced import Sourced
from hwprofiles.units import BytesPerS, Seconds

Kind = Literal[
    "die", "nvlink", "hccs", "ub", "pcie", "infiniband", "roce", "ethernet", "upi", "none"
]
Wiring = Literal["switch", "mesh", "rails", "rails_apart", "shared"]
Planes = Annotated[int, Field(ge=1, le=64)]


class LinkTier(Document):
    """One level of the network: it joins `spans_devices` devices into one domain."""

    name: str
    kind: Kind
    spans_devices: Annotated[int, Field(ge=1)]
    bandwidth_bytes_per_s: Sourced[BytesPerS]
    """Per device and direction, all devices sending."""
    latency_s: Sourced[Seconds]
    wiring: Wiring = "switch"
    """`switch`: every device of a domain on one switch (an NVSwitch domain, a PCIe root, a fabric
    that does not block). `mesh`: a link to every other device of the domain. `rails`: equal places
    of all nodes on a switch of their own, rails joined by a spine. `rails_apart`: rails that never
    meet, so that devices forward inside their node. `shared`: processes that take turns on one
    machine's cores, so that fewer of them are each faster."""
    wiring_source: str = ""
    planes_count: Sourced[Planes] | None = None
    """Switches side by side, each with an equal part of every device's bandwidth."""

    @model_validator(mode="after")
    def _wired(self) -> Self:
        if self.wiring != "switch" and not self.wiring_source:
            raise ValueError(f"wiring {self.wiring} needs a wiring_source")
        if self.wiring != "switch" and self.planes_count is not None:
            raise ValueError(f"planes are switches side by side; wiring {self.wiring} has none")
        return self

    @property
    def planes(self) -> int:
        """Switches side by side."""
        return 1 if self.planes_count is None else self.planes_count.value

    def rate_bytes_per_s(self, devices: int) -> float:
        """What one of so many devices of a domain sends to the others, all sending.

        In a mesh that is the links to those others alone; on shared cores, a part of the whole.
        """
        rate = self.bandwidth_bytes_per_s.value
        if self.wiring == "mesh" and 1 < devices < self.spans_devices:
            return rate * (devices - 1) / (self.spans_devices - 1)
        if self.wiring == "shared" and 1 < devices < self.spans_devices:
            return rate * self.spans_devices / devices
        return rate
