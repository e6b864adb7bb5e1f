"""Who gets which tokens: load as data, policies, the busiest rank, places that a token reaches."""

from planner.routing.busiest import DeviceLoad, device_load
from planner.routing.load import (
    DirichletRouting,
    HotRouting,
    MeasuredRouting,
    Routing,
    UniformRouting,
    ZipfRouting,
    expert_shares,
)
from planner.routing.reach import parts_reached

__all__ = [
    "DeviceLoad",
    "DirichletRouting",
    "HotRouting",
    "MeasuredRouting",
    "Routing",
    "UniformRouting",
    "ZipfRouting",
    "device_load",
    "expert_shares",
    "parts_reached",
]
