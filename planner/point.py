"""One given serving configuration and what it does, as documents: a line in and a line out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document
from planner.candidates import Layout
from planner.expert_layout import USUAL_LAYOUT, ExpertLayout
from planner.offload import Offload
from planner.quantities import Estimate, StageShare
from planner.routing import Routing, UniformRouting
from planner.routing.policies import Policy, TopKPolicy
from planner.workload import Requests

Degree = Annotated[int, Field(ge=1, le=65_536)]


class PoolPoint(Document):
    """One pool of a disaggregated configuration."""

    tp: Degree = 1
    pp: Degree = 1
    dp: Degree = 1
    moe_tp: Degree | None = None
    moe_ep: Degree | None = None
    batch: Degree = 1
    """Sequences of a data-parallel rank at once."""
    workers: Degree = 1


class Point(Requests):
    """One serving configuration, fully given; `tp·dp = moe_tp·moe_ep`."""

    id: str | int = ""
    phase: Literal["serve"] = "serve"
    model: str | dict[str, Any]
    device: str | None = None
    cluster: str | dict[str, Any] | None = None
    """A cluster by name or inline; none: a catalogue cluster of the device."""
    backend: str = "trtllm"
    backend_version: str | None = None
    precision: str | None = None
    kv_dtype: str | None = None
    """Format of the cache; none: 8 bits where precision is 8 or 4 bits and the device has them."""
    mode: Literal["agg", "disagg"] = "agg"
    tp: Degree = 1
    pp: Degree = 1
    dp: Degree = 1
    moe_tp: Degree | None = None
    moe_ep: Degree | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Requests in flight on the worker (disagg: on all decode workers)."""
    request_rate: Annotated[float, Field(gt=0)] | None = None  # unit: requests per second
    mtp_tokens: Annotated[int, Field(ge=0, le=8)] = 0
    mtp_acceptance: Annotated[float, Field(ge=0, le=1)] = 0.0  # unit: probability
    routing: Routing = UniformRouting()
    policy: Policy = TopKPolicy()
    experts: ExpertLayout = USUAL_LAYOUT
    """How experts are reached, copied, shared and overlapped."""
    offload: Offload | None = None
    """Experts in the host's memory or on storage; none: all in the device's memory."""
    prefill: PoolPoint | None = None
    decode: PoolPoint | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device is None and self.cluster is None:
            raise ValueError("give device or cluster")
        if self.mode == "disagg" and (self.prefill is None or self.decode is None):
            raise ValueError("mode disagg needs prefill and decode")
        if self.mode == "agg" and (self.concurrency is None) == (self.request_rate is None):
            raise ValueError("give concurrency or request_rate, one of them")
        if self.offload is not None and (self.experts.apart or self.experts.order != "grouped"):
            raise ValueError("offload says where experts are computed: no apart, no order")
        return self

    def layout(self, part: Point | PoolPoint | None = None) -> Layout:
        """The layout of the point or of one of its pools; experts follow attention by default."""
        of = part or self
        ranks = of.tp * of.dp
        moe_ep = of.moe_ep or (ranks // of.moe_tp if of.moe_tp else (ranks if of.dp > 1 else 1))
        return Layout(of.tp, of.dp, of.pp, of.moe_tp or max(ranks // moe_ep, 1), moe_ep)


class ErrorText(Document):
    """Why a line could not be answered."""

    kind: str
    message: str


class MemorySummary(Document):
    """Bytes of the fullest device."""

    total_bytes: float
    weights_bytes: float
    kv_bytes: float
    activation_bytes: float
    buffer_bytes: float
    capacity_bytes: float


class OffloadSummary(Document):
    """What experts outside the device's memory do to a decode step."""

    resident_share: float
    """Routed experts that the device keeps."""
    missed_share: float
    """Uses of experts that it does not keep."""
    storage_bytes_per_s: float | None = None
    """Rate at which experts are fetched; absent where the host computes them."""
    waiting_share: float
    """Of a decode step, spent waiting for experts or on the way to the host."""


class Estimated(Document):
    """What one configuration does; fields that do not apply are absent."""

    id: str | int
    ttft_s: Estimate | None = None
    """Mean over requests."""
    ttft_median_s: Estimate | None = None
    tpot_s: Estimate | None = None
    itl_s: Estimate | None = None
    output_tokens_per_s_per_device: Estimate | None = None
    total_tokens_per_s_per_device: Estimate | None = None
    prefill_tokens_per_s_per_device: Estimate | None = None
    """Prompt tokens computed by a prefill pool that is never idle."""
    decode_tokens_per_s_per_device: Estimate | None = None
    """Output tokens of a decode pool that is always full."""
    step_s: Estimate | None = None
    """Training: one optimizer step."""
    model_flop_per_s_per_device: Estimate | None = None
    energy_j_per_token: Estimate | None = None
    memory: MemorySummary | None = None
    fits: bool | None = None
    offload: OffloadSummary | None = None
    breakdown: tuple[StageShare, ...] | None = None
    assumptions: tuple[str, ...] = ()
    error: ErrorText | None = None
