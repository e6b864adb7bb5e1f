"""Scale operations and failures as documents: what the answer says of each."""

from __future__ import annotations

from typing import Literal

from hwprofiles.document import Document
from planner.simulation.elastic import Scaling


class Phase(Document):
    """A part of a scale operation."""

    phase: str
    seconds_s: float


class StrategyCost(Document):
    """What one strategy takes, or why it cannot."""

    strategy: str
    duration_s: float | None = None
    downtime_s: float | None = None
    intake_paused_s: float | None = None
    devices_count: int | None = None
    """In use while scaling."""
    peak_bytes: float | None = None
    """Of all devices together."""
    phases: tuple[Phase, ...] = ()
    refused: str | None = None


class NewLayout(Document):
    """Experts laid out anew on the devices that are left."""

    lost_experts_count: int
    """Over all layers: their last copy was on a lost device."""
    moves_count: int
    """Slots that change, lost experts included."""
    busy_kept_ratio: float
    """Busiest device over mean if survivors only took the lost experts in."""
    busy_ratio: float
    """Busiest device over mean as placed."""


class EventCost(Document):
    """One event of a simulation: what happened to which ranks and what it took."""

    kind: Literal["scale", "failure"]
    pool: str
    replica: int
    at_s: float
    dp_before: int
    dp: int
    cost: StrategyCost
    layout: NewLayout | None = None


def told(cost: Scaling) -> StrategyCost:
    """A scale operation as a document."""
    return StrategyCost(
        strategy=cost.strategy, duration_s=cost.duration_s, downtime_s=cost.downtime_s,
        intake_paused_s=cost.intake_paused_s, devices_count=cost.devices_count,
        peak_bytes=cost.peak_bytes,
        phases=tuple(Phase(phase=name, seconds_s=seconds) for name, seconds in cost.phases),
    )  # fmt: skip
