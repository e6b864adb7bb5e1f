"""A question about service in motion, as one document: engines, load, limits, seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.units import BytesPerS, Seconds, Share
from planner.simulation.priced import PricedQuestion
from planner.simulation.serving import ROUTERS
from planner.simulation.told import EventCost

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e9)]


class LengthsDrawn(Document):
    """Lengths of drawn requests: lognormal around a mean, all alike when the variation is 0."""

    isl: Tokens
    osl: Tokens
    variation_ratio: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Standard deviation over mean."""
    file: Path | None = None
    """Measured lengths to draw from in place of isl and osl: Vidur's CSV, or a trace in JSON lines
    (ShareGPT's, Mooncake's)."""


class TraceLoad(Document):
    """Requests as recorded."""

    kind: Literal["trace"] = "trace"
    file: Path
    format: str | None = None
    """mooncake, azure or servingsim; none: what the first line shows."""
    speed_ratio: Positive = 1.0
    """2 sends the same requests in half the time."""


class OpenLoad(Document):
    """Arrivals at a rate, whatever the service does."""

    kind: Literal["poisson", "gamma"] = "poisson"
    request_rate: Positive  # unit: requests per second
    burstiness: Positive = 1.0  # unit: shape of the gamma distribution
    """For gamma: 1 is Poisson, below 1 comes in bursts."""
    lengths: LengthsDrawn


class RampLoad(Document):
    """Poisson arrivals whose rate runs straight from point to point."""

    kind: Literal["ramp"] = "ramp"
    times_s: tuple[Seconds, ...]
    request_rates: tuple[float, ...]  # unit: requests per second
    lengths: LengthsDrawn

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.times_s) != len(self.request_rates):
            raise ValueError("times_s and request_rates need the same number of points")
        return self


class ClosedLoad(Document):
    """Users who each wait for an answer before they ask again."""

    kind: Literal["closed"] = "closed"
    concurrency: Count
    think_s: Seconds = 0.0
    stagger_s: Seconds = 0.0
    lengths: LengthsDrawn


Load = Annotated[TraceLoad | OpenLoad | RampLoad | ClosedLoad, Field(discriminator="kind")]


class EngineSettings(Document):
    """What the engine is started with; none: the engine's own default."""

    max_num_seqs: Count | None = None
    max_num_batched_tokens: Tokens | None = None
    block_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    kv_blocks: Tokens | None = None
    """None: what memory leaves."""
    memory_share: Share = 0.9
    prefix_cache: bool = False
    async_scheduling: bool | None = None
    """Whether an iteration is planned while the one before it runs."""
    mtp_tokens: Annotated[int, Field(ge=0, le=8)] = 0
    mtp_acceptance: Share = 0.0


class PoolLayout(Document):
    """Engines of one kind."""

    tp: Count = 1
    dp: Count = 1
    """Attention data-parallel ranks, which step together."""
    moe_tp: Count | None = None
    moe_ep: Count | None = None
    pp: Annotated[int, Field(ge=1, le=64)] = 1
    """Pipeline stages; as many batches are in flight, each with its part of sequences and KV."""
    redundant_experts: Annotated[int, Field(ge=0, le=4096)] = 0
    """Expert copies of a layer beyond those that make experts divide among ranks."""
    replicas: Count = 1
    router: str = "least_loaded"

    @model_validator(mode="after")
    def _router_known(self) -> Self:
        if self.router not in ROUTERS:
            raise ValueError(f"no router {self.router!r}; known: {', '.join(ROUTERS)}")
        return self


class ScaleRates(Document):
    """What scaling costs on this machine and engine; nobody can know it but from measurements."""

    boot_s: Seconds
    """An engine process from nothing to ready for weights."""
    warm_up_s: Seconds
    """First passes after weights are attached."""
    disk_bytes_per_s: Annotated[BytesPerS, Field(gt=0)]
    """Into one device; all devices read side by side."""
    regroup_s: Seconds = 0.0
    link_bytes_per_s: Annotated[BytesPerS, Field(gt=0)] | None = None
    """None: the cluster's tier that joins the worker's devices."""


PoolName = Literal["layout", "decode"]


class ScaleEvent(Document):
    """A replica changes its data-parallel ranks, or loses some."""

    kind: Literal["scale", "failure"] = "scale"
    at_s: Seconds
    dp: Count
    """Ranks afterwards."""
    strategy: str = "elastic"
    """elastic, cold_restart, extravagant, colocated; for a failure see `recover`."""
    pool: PoolName = "layout"
    """Whose engines: those of `layout`, or of `decode`."""
    replica: Annotated[int, Field(ge=0)] = 0
    lost_rank: Annotated[int, Field(ge=0)] = 0
    """For a failure: the rank that is gone."""
    lost_ranks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """In its place: several ranks."""
    lost_node: Annotated[int, Field(ge=0)] | None = None
    """In its place: every rank with a device on this node, devices in order."""
    recover: Literal["restart", "relayout"] = "restart"
    """After a failure: boot what is left again, or keep engines and caches of what is left and lay
    the experts out anew."""
    max_moves: Annotated[int, Field(ge=0)] | None = None
    """For `relayout`: expert slots of all layers that may change, lost experts included."""


class AutoscaleSettings(Document):
    """A controller that changes the ranks of a pool's first replica."""

    policy: str
    """threshold, attainment or forecast."""
    pool: PoolName = "layout"
    every_s: Seconds
    fewest: Count = 1
    most: Count
    rank_request_rate: Positive  # unit: requests per second
    """What one rank serves within the SLO."""
    strategy: str = "elastic"


class SloLimits(Document):
    """What a request must meet to count for goodput."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None


class SimulationQuestion(PricedQuestion):
    """A complete question; names are resolved when it is read."""

    schema_version: Literal[1] = 1
    kind: Literal["serving"] = "serving"
    name: Annotated[str, Field(max_length=200)] = "simulation"
    layout: PoolLayout = PoolLayout()
    """The engines, or those that prefill when `decode` is given."""
    decode: PoolLayout | None = None
    """Engines that decode what `layout` prefilled; KV caches travel between them."""
    engine: EngineSettings = EngineSettings()
    load: Load
    expert_load: Literal["expected", "drawn"] = "expected"
    """Whether every batch has the average load of the busiest expert rank, or one drawn from the
    routing."""
    requests: Count | None = None
    """Requests to simulate; none: the whole trace. Drawn load needs a number."""
    slo: SloLimits = SloLimits()
    scale_rates: ScaleRates | None = None
    events: Annotated[tuple[ScaleEvent, ...], Field(max_length=1000)] = ()
    """Scale operations and failures, in order of time."""
    autoscale: AutoscaleSettings | None = None
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    """Runs with seeds 0, 1, …; bands come from their spread. A trace on engines that draw
    nothing is run once."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.requests is None and self.load.kind != "trace":
            raise ValueError(f"load {self.load.kind} never ends; give requests")
        if (self.events or self.autoscale) and self.scale_rates is None:
            raise ValueError("events and autoscale need scale_rates: what scaling costs here")
        if self.events and self.autoscale:
            raise ValueError("give events or autoscale, not both")
        pools = {event.pool for event in self.events}
        pools |= {self.autoscale.pool} if self.autoscale else set()
        if "decode" in pools and self.decode is None:
            raise ValueError("events and autoscale of the decode pool need decode")
        return self


class Figure(Document):
    """One figure over seeds and estimates."""

    typical: float  # unit: the figure's own name says it
    low: float  # unit: as typical
    high: float  # unit: as typical
    """`low` to `high` is meant to hold another run's figure eight times in ten."""
    mean_low: float  # unit: as typical
    mean_high: float  # unit: as typical
    """Holds the mean over seeds 95 times in 100."""
    source: str


class SimulationAnswer(Document):
    """What the service does under the load."""

    schema_version: Literal[1] = 1
    kind: Literal["serving"] = "serving"
    name: str
    summary: dict[str, Figure]
    seeds: int
    kv_blocks: int
    """Of one rank, or of one batch in flight with pipeline stages."""
    events: tuple[EventCost, ...] = ()
    """Scale operations and failures that were asked for."""
    assumptions: tuple[str, ...]
