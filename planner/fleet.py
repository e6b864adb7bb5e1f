"""One fleet as one document: machines that several models and classes of traffic share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hwprofiles.document import Document
from hwprofiles.units import Seconds, Watts
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.routing import Routing, UniformRouting
from planner.routing.policies import Policy, TopKPolicy
from planner.scenario import Choices, Limits, Machine, Price, Scenario, inline_files, resolved_at
from planner.workload import Workload

FLEET_LIMITS = ("devices", "power_w", "usd_per_hour")
"""Limits of the whole fleet; a class has none of its own."""


class TrafficClass(Document):
    """Requests of one kind for one model, with their own limits."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    model: Annotated[MoeModel, BeforeValidator(resolved_at("/model", resolve_model))]
    workload: Workload
    """`request_rate` is the class's demand."""
    routing: Routing = UniformRouting()
    policy: Policy = TopKPolicy()
    choices: Choices = Choices()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _has_a_demand(self) -> Self:
        if self.workload.request_rate is None:
            raise ValueError(f"class {self.name}: workload.request_rate is the demand; give it")
        for limit in FLEET_LIMITS:
            if getattr(self.limits, limit) is not None:
                raise ValueError(f"class {self.name}: limits.{limit} is a limit of the fleet")
        return self

    @property
    def demand_rate(self) -> float:
        """Requests per second that the class asks for."""
        return self.workload.request_rate or 0.0


class FleetLimits(Document):
    """What all pools together must keep."""

    devices: Annotated[int, Field(ge=1)] | None = None
    power_w: Watts | None = None
    """Watts of all devices in use together."""
    usd_per_hour: Price | None = None
    """Dollars an hour of all devices in use, at the machines' prices."""
    configurations: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Distinct configurations (class, role, machine, layout, batch) to operate at most."""
    search_s: Seconds = 20.0
    """Seconds the solver may take; then the best found is given, flagged, with its gap."""


class Fleet(Document):
    """Which workers of which model on which machine: a question with `classes`."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(max_length=200)] = "fleet"
    machines: Annotated[tuple[Machine, ...], Field(min_length=1, max_length=64)]
    classes: Annotated[tuple[TrafficClass, ...], Field(min_length=1, max_length=256)]
    limits: FleetLimits = FleetLimits()
    objective: Literal["served", "devices", "cost", "energy"] = "served"
    """`served`: the worst served share of demand, as great as can be, then what is left; the others
    serve all of it on the fewest devices, dollars an hour or watts."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for what, names in (
            ("class", [one.name for one in self.classes]),
            ("machine", [one.cluster.name for one in self.machines]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two of a name: {what} {twice!r}; state it once, or rename one")
        return self

    def scenario(self, number: int) -> Scenario:
        """The question of one class alone on all machines; its demand is left out."""
        one, (first, *others) = self.classes[number], self.machines
        alone = Scenario(
            name=one.name, model=one.model, cluster=first.cluster,
            workload=one.workload.model_copy(update={"request_rate": None}),
            routing=one.routing, policy=one.policy, choices=one.choices, limits=one.limits,
            device_hour_usd=first.device_hour_usd, also=tuple(others),
        )  # fmt: skip
        if not (first.backend or first.precision or first.kv_dtype):
            return alone
        return alone.model_copy(update={"choices": first.stated(one.choices)})


def inline_class_files(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the content of files that classes name into a fleet, as `inline_files` does."""
    classes = data.get("classes")
    if not isinstance(classes, list):
        return data
    return data | {
        "classes": [inline_files(c, folder) if isinstance(c, dict) else c for c in classes]
    }
