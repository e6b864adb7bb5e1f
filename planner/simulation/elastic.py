"""How long scaling a running worker takes, what it needs meanwhile: ElasticMoE and its baselines.

Phases come from bytes and rates (arXiv:2510.02613, sections 4 to 7): weights that shared devices
keep move nothing, new devices get attention weights and experts over the links, an instance that
was not initialised beforehand boots, weights that no neighbour can send come from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprofiles.errors import MoesaicError, unknown_name

HOST_CROSSINGS = 2
"""Bytes that go from one process to another through host memory leave the device and come back."""


@dataclass(frozen=True)
class ScaleCosts:
    """Rates and constants of one machine and engine."""

    link_bytes_per_s: float
    """Between two devices, one way."""
    disk_bytes_per_s: float
    """Into one device; all devices read side by side."""
    boot_s: float
    """An engine process from nothing to ready for weights."""
    warm_up_s: float
    """First passes after weights are attached."""
    regroup_s: float = 0.0
    """Communication groups destroyed and made again; counted when nodes are added."""
    host_bytes_per_s: float = float("inf")
    """Between a device and its host's memory, one way."""


@dataclass(frozen=True)
class WorkerBytes:
    """What a worker of `devices` devices holds."""

    devices: int
    attention_bytes: float
    """Attention, dense and shared weights of one device."""
    expert_bytes: float
    """Routed experts of the whole worker."""
    kv_bytes: float = 0.0
    """KV cache of one device."""

    @property
    def weight_bytes(self) -> float:
        """Weights of one device, experts spread evenly."""
        return self.attention_bytes + self.expert_bytes / self.devices

    @property
    def device_bytes(self) -> float:
        """Bytes of one device, weights and cache."""
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True)
class Scaling:
    """What one scale operation costs."""

    strategy: str
    phases: tuple[tuple[str, float], ...]
    """Name and seconds, one after the other."""
    downtime_s: float
    intake_paused_s: float
    devices_count: int
    """Devices in use while scaling."""
    peak_bytes: float
    """Memory of all of them together at the worst moment."""

    @property
    def duration_s(self) -> float:
        """From the decision to the new layout serving."""
        return sum(seconds for _, seconds in self.phases)


@dataclass(frozen=True)
class Features:
    """What ElasticMoE adds, each of which its ablation takes away."""

    shared_allocator: bool = True
    p2p: bool = True
    pre_initialised: bool = True
    zero_copy: bool = True


def moved_expert_bytes(before: WorkerBytes, after: WorkerBytes) -> float:
    """Expert bytes that one new device receives, or, scaling down, one device that stays."""
    share = after.expert_bytes / after.devices
    if after.devices > before.devices:
        return share
    return share - before.expert_bytes / before.devices


def moved_bytes(before: WorkerBytes, after: WorkerBytes) -> float:
    """Bytes that the busiest link carries: what one new (or growing) device receives.

    Scaling up, a new device gets its attention weights and its share of the experts, all new ones
    at once over links of their own; scaling down, each staying device gets its part of the experts
    that the leaving devices held.
    """
    attention = after.attention_bytes if after.devices > before.devices else 0.0
    return attention + moved_expert_bytes(before, after)


def elastic(
    before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts, features: Features | None = None
) -> Scaling:
    """ElasticMoE: attach what is there, send what is missing, warm up; serve meanwhile.

    Without zero-copy nothing can be attached: all weights are read again and service stops.
    Without the shared allocator, arriving experts lie in memory that no handle can name (PyTorch's
    caching allocator): they reach the serving process through host memory, there and back, and
    take room on their devices twice until then.
    """
    have = features or Features()
    new = max(after.devices - before.devices, 0)
    receivers = new or after.devices
    arriving = moved_bytes(before, after)
    phases: list[tuple[str, float]] = []
    if not have.pre_initialised:
        phases.append(("boot", costs.boot_s))
    if not have.zero_copy:
        phases.append(("disk", after.weight_bytes / costs.disk_bytes_per_s))
    elif have.p2p:
        phases.append(("p2p", arriving / costs.link_bytes_per_s))
    else:
        phases.append(("disk", arriving / costs.disk_bytes_per_s))
    copied = 0.0 if have.shared_allocator else moved_expert_bytes(before, after)
    if copied:
        phases.append(("copy", HOST_CROSSINGS * copied / costs.host_bytes_per_s))
    phases += [("regroup", costs.regroup_s), ("warm-up", costs.warm_up_s)]
    duration = sum(seconds for _, seconds in phases)
    staying = min(before.devices, after.devices)
    # Until the switch every device that stays holds what it held; leaving and new ones their own.
    resident = before.devices * before.device_bytes + (after.devices - staying) * after.device_bytes
    return Scaling(
        "elastic", tuple(phases), 0.0 if have.zero_copy else duration, duration,
        max(before.devices, after.devices), resident + copied * receivers,
    )  # fmt: skip


def _booted(costs: ScaleCosts, read_bytes: float) -> tuple[tuple[str, float], ...]:
    return (
        ("boot", costs.boot_s),
        ("disk", read_bytes / costs.disk_bytes_per_s),
        ("warm-up", costs.warm_up_s),
    )


def cold_restart(before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> Scaling:
    """Stop, boot again on the new devices, read all weights: nothing is served meanwhile."""
    phases = _booted(costs, after.weight_bytes)
    duration = sum(seconds for _, seconds in phases)
    return Scaling(
        "cold_restart", phases, duration, duration, max(after.devices, before.devices),
        max(before.devices * before.device_bytes, after.devices * after.device_bytes),
    )  # fmt: skip


def extravagant(before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> Scaling:
    """Boot the new layout on devices of its own, then switch."""
    return Scaling(
        "extravagant", _booted(costs, after.weight_bytes), 0.0, 0.0,
        before.devices + after.devices,
        before.devices * before.device_bytes + after.devices * after.device_bytes,
    )  # fmt: skip


def colocated(before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> Scaling:
    """Boot the new layout beside the old one: its weights take room that KV caches lack always."""
    both = before.devices * before.weight_bytes + after.devices * after.device_bytes
    return Scaling(
        "colocated", _booted(costs, after.weight_bytes), 0.0, 0.0,
        max(before.devices, after.devices), both,
    )  # fmt: skip


def horizontal(before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> Scaling:
    """Boot a whole replica of the old layout beside it; smaller steps do not exist.

    Raises:
        MoesaicError: `infeasible` when asked to scale down by less than a whole replica.
    """
    if after.devices < before.devices:
        raise MoesaicError(
            "infeasible",
            f"horizontal scaling cannot go from {before.devices} to {after.devices} devices: it "
            "adds or removes whole replicas; elastic or cold_restart can",
        )
    return Scaling(
        "horizontal", _booted(costs, before.weight_bytes), 0.0, 0.0, 2 * before.devices,
        2 * before.devices * before.device_bytes,
    )  # fmt: skip


STRATEGIES: dict[str, Callable[[WorkerBytes, WorkerBytes, ScaleCosts], Scaling]] = {
    "elastic": elastic,
    "cold_restart": cold_restart,
    "extravagant": extravagant,
    "colocated": colocated,
    "horizontal": horizontal,
}
"""Every way to change a worker's devices while it serves."""


def scale(strategy: str, before: WorkerBytes, after: WorkerBytes, costs: ScaleCosts) -> Scaling:
    """Cost of one scale operation.

    Raises:
        MoesaicError: `unknown_name` for a strategy, `invalid` when nothing changes.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("scaling strategy", strategy, STRATEGIES)
    if before.devices == after.devices:
        raise MoesaicError("invalid", f"{before.devices} devices before and after: nothing to do")
    return STRATEGIES[strategy](before, after, costs)
