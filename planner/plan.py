"""The answer as one document: pools, estimates with intervals, what bound, what lost and why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hwprofiles.document import Document
from planner.quantities import Estimate, StageShare
from planner.scenario import Scenario
from planner.search.reasons import Binding, Explained


class LayoutOf(Document):
    """How one worker's devices share the model."""

    tp: int
    dp: int
    pp: int
    moe_tp: int
    moe_ep: int

    def label(self) -> str:
        """Say it in one line, the way engines write it."""
        parts = [f"TP{self.tp}", f"DP{self.dp}", f"EP{self.moe_ep}"]
        parts += [f"MoE-TP{self.moe_tp}"] * (self.moe_tp > 1) + [f"PP{self.pp}"] * (self.pp > 1)
        return " ".join(parts)


class MemoryUse(Document):
    """Bytes of the fullest device of a worker, by bucket."""

    routed_bytes: float
    shared_bytes: float
    dense_bytes: float
    attention_bytes: float
    embedding_bytes: float
    redundant_bytes: float
    kv_bytes: float
    activation_bytes: float
    buffer_bytes: float
    total_bytes: float
    capacity_bytes: float


class Pool(Document):
    """Equal workers of one role."""

    role: Literal["agg", "prefill", "decode"]
    machine: str
    """Name of the cluster that the workers lie on."""
    workers: Annotated[int, Field(ge=1)]
    devices_per_worker: int
    layout: LayoutOf
    batch: int
    """Sequences of one data-parallel rank in one pass."""
    inflight: int
    """Sequences of one worker."""
    variant: str = ""
    """What of the question's lists was taken: block order, groups, redundant experts."""
    redundant_experts: int = 0
    request_rate: Estimate
    """Requests per second of one worker."""
    memory: MemoryUse
    breakdown: dict[str, tuple[StageShare, ...]]
    """Stages of a pass by phase."""


class Option(Document):
    """One way to serve the workload, as the ranking shows it."""

    rank: int
    mode: Literal["agg", "disagg"]
    pools: tuple[OptionPool, ...]
    devices: int
    ttft_s: Estimate
    tpot_s: Estimate
    output_tokens_per_s: Estimate
    """Of all workers: what the ranking goes by, since unused devices serve nobody."""
    output_tokens_per_s_per_device: Estimate
    output_tokens_per_s_per_user: Estimate


class OptionPool(Document):
    """Workers of one role inside an option."""

    role: Literal["agg", "prefill", "decode"]
    machine: str
    workers: int
    layout: LayoutOf
    batch: int
    variant: str = ""
    """As `Pool.variant`."""


class Rejected(Document):
    """A candidate that looked better than the choice and why it is not allowed."""

    role: Literal["agg", "prefill", "decode"]
    layout: LayoutOf
    batch: int
    output_tokens_per_s_per_device: float
    reason: str


class BindingLimit(Binding):
    """A limit that holds a plan back; objectives are `Plan.objective_value`."""

    limit: Literal["ttft_s", "tpot_s", "memory", "devices", "power_w", "usd_per_hour"]
    value: float
    without_output_tokens_per_s_per_device: float | None
    one_percent_more_output_tokens_per_s_per_device: float | None = None
    """What the answer would be with 1 % more of the limit; devices: by the relaxed programme."""


class Proof(Document):
    """What the solver can say about the choice."""

    status: Literal["optimal", "feasible"]
    objective: float  # unit: requests per second, devices, shares, dollars: what is counted
    bound: float  # unit: as objective
    gap_ratio: float
    columns_count: int
    candidates_count: int


class FrontierPoint(Document):
    """One point of the trade between speed for a user and speed of a device."""

    output_tokens_per_s_per_user: float
    output_tokens_per_s_per_device: float
    role: Literal["agg", "decode"]
    label: str
    meets_limits: bool


class ParetoPlan(Document):
    """One plan of the trade between the objective and the time between tokens."""

    objective_value: float  # unit: as Plan.objective_value
    tpot_s: Estimate
    ttft_s: Estimate
    devices: int
    output_tokens_per_s: Estimate
    pools: tuple[OptionPool, ...]


class Plan(Explained):
    """Everything that the answer to one scenario says; same scenario, same bytes."""

    schema_version: Literal[1] = 1
    scenario_digest: str
    scenario: Scenario
    mode: Literal["agg", "disagg"]
    pools: tuple[Pool, ...]
    devices: int
    ttft_s: Estimate
    tpot_s: Estimate
    output_tokens_per_s_per_device: Estimate
    """Over the devices that the pools use."""
    output_tokens_per_s: Estimate
    request_rate: Estimate
    """Requests per second of all pools."""
    usd_per_million_tokens: Estimate | None = None
    """Dollars for a million output tokens, where every device in use has a price."""
    energy_j_per_token: Estimate | None = None
    """Joules of all devices in use for an output token, at their stated power."""
    objective_value: float | None = None
    """Of the choice: output tokens per second; under a given rate devices, dollars an hour or
    watts; else dollars a million tokens or joules a token; or seconds of a whole request."""
    options: tuple[Option, ...]
    """Ranked ways to serve, the chosen one first."""
    binding: tuple[BindingLimit, ...]
    rejected: tuple[Rejected, ...]
    pareto: tuple[ParetoPlan, ...] = ()
    """Each found by a cut: better in the objective than all plans of less TPOT."""
    pareto_complete: bool | None = None
    """Whether there is no further one; none where none was asked."""
    frontier: tuple[FrontierPoint, ...]
    proof: Proof
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
