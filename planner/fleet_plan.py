"""The answer for a fleet as one document: workers of every class, machines, limits, proof."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hwprofiles.document import Document
from planner.fleet import Fleet
from planner.plan import LayoutOf, Proof
from planner.quantities import Estimate
from planner.search.reasons import Explained


class FleetPool(Document):
    """Equal workers of one class, role and configuration."""

    role: Literal["agg", "prefill", "decode"]
    machine: str
    workers: Annotated[int, Field(ge=1)]
    devices_per_worker: int
    layout: LayoutOf
    batch: int
    """Sequences of one data-parallel rank in one pass."""
    request_rate: Estimate
    """Requests per second of one worker."""
    ttft_s: Estimate | None
    tpot_s: Estimate | None
    total_bytes: float
    """Of the fullest device."""
    capacity_bytes: float


class ClassPlan(Document):
    """What one class of traffic gets."""

    name: str
    model: str
    demand_request_rate: float
    served_request_rate: float
    served_ratio: float
    """Served share of the demand."""
    request_rate: Estimate
    """Requests per second that its pools could serve."""
    ttft_s: Estimate
    """Of the slowest pool."""
    tpot_s: Estimate
    pools: tuple[FleetPool, ...]


class MachineUse(Document):
    """How many devices of a machine work, and for whom."""

    machine: str
    device: str
    devices: int
    used_devices: int
    used_by: dict[str, int]
    """Devices in use by class."""


class FleetPlan(Explained):
    """Everything that the answer to a fleet says; same fleet, same bytes."""

    schema_version: Literal[1] = 1
    fleet_digest: str
    fleet: Fleet
    worst_served_ratio: float
    classes: tuple[ClassPlan, ...]
    machines: tuple[MachineUse, ...]
    devices: int
    configurations: int
    """Distinct configurations in use."""
    output_tokens_per_s: float
    """Of all classes, as served."""
    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None
    power_w: float | None = None
    energy_j_per_token: float | None = None
    aim: Literal["served", "devices", "cost", "energy"]
    """What `objective_value` counts: the objective, or what is spent where `served` serves all."""
    objective_value: float  # unit: share, devices, dollars an hour or watts, by `aim`
    proof: Proof
    solved_columns_count: int
    """Columns in the whole-number programme; the bound covers all of them."""
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
