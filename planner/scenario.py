"""One question as one document: model, cluster, workload, routing, choices, limits, objective."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import DTYPES
from hwprofiles.library import resolve_cluster
from hwprofiles.units import Seconds, Share, Watts
from planner.expert_layout import ExchangeName, ExpertLayout, Overlap
from planner.formats.expert_load import read_expert_load
from planner.formats.lengths import read_lengths
from planner.lengths import summed_up
from planner.model_library import read_model, resolve_model
from planner.model_variants import variants_of
from planner.moe_model import MoeModel
from planner.offload import Offload
from planner.routing import Routing, UniformRouting
from planner.routing.policies import Policy, TopKPolicy
from planner.workload import Workload

Degree = Annotated[int, Field(ge=1, le=65_536)]
Degrees = tuple[Degree, ...] | None
Copies = Annotated[int, Field(ge=0, le=4096)]
Order = Literal["cdac"] | Annotated[float, Field(gt=0, lt=1)]
Price = Annotated[float, Field(gt=0, le=1e6)]


def resolved_at(path: str, resolve: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Resolve a name at the door; an error says which field it was."""

    def read(value: Any) -> Any:  # noqa: ANN401 - name or object
        try:
            return resolve(value)
        except MoesaicError as error:
            path_at = error.path if error.path.startswith(path) else path + error.path
            raise MoesaicError(error.kind, error.message, path_at) from error

    return read


class Choices(Document):
    """What the planner may vary; a given tuple restricts it, none leaves every legal value open."""

    modes: tuple[Literal["agg", "disagg"], ...] = ("agg", "disagg")
    """Aggregated (every worker prefills and decodes) or a pool for each."""
    backend: str = "trtllm"
    """Engine: a name in `planner/engines`."""
    precision: str | None = None
    """Format of weights and arithmetic; none: as the checkpoint states."""
    kv_dtype: str = "bf16"
    exchange: ExchangeName = "library"
    """How tokens reach their experts; `library`: as the engine's own library does."""
    overlap: Overlap = "engine"
    """What the exchange hides behind: shared experts, another half of the batch, nothing."""
    attention_sum: Literal["all_reduce", "split"] = "all_reduce"
    """`split`: reduce-scatter and all-gather, norms between on a part each (H2P)."""
    shared_tp: Degree | None = None
    """Ranks that cut the shared experts; none: as many as cut attention."""
    experts_apart: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    """Whether experts lie on devices of their own beside those of attention (xDeepServe,
    arXiv:2508.02520); `[false, true]`: whichever is better."""
    tp: Degrees = None
    pp: Degrees = None
    moe_tp: Degrees = None
    moe_ep: Degrees = None
    batch: Degrees = None
    """Sequences a data-parallel rank decodes at once."""
    redundant_experts: Copies | Annotated[tuple[Copies, ...], Field(min_length=1)] = 0
    """Extra expert copies of a layer; several: the planner takes the best."""
    block_order: Annotated[tuple[Order, ...], Field(min_length=1)] | None = None
    """`cdac`, or the ratio r by which DCCA narrows tokens before they travel; none: the model's."""
    groups: Degrees = None
    """Groups of equally many experts that a token draws from (MoGE); 1: any experts."""
    mtp_tokens: Annotated[int, Field(ge=0, le=8)] = 0
    """Tokens drafted a step by multi-token prediction."""
    mtp_acceptance: Share = 0.0

    @property
    def layout(self) -> ExpertLayout:
        """How experts are laid out, as work and pricing ask for it."""
        apart = all(self.experts_apart)
        # Attention and experts take turns there: nothing is left to hide an exchange behind.
        overlap: Overlap = "none" if apart else self.overlap
        return ExpertLayout(exchange=self.exchange, overlap=overlap, apart=apart,
                            attention_sum=self.attention_sum, shared_tp=self.shared_tp)  # fmt: skip

    @model_validator(mode="after")
    def _formats_known(self) -> Self:
        for name in (self.precision, self.kv_dtype):
            if name is not None and name not in DTYPES:
                raise ValueError(f"no dtype {name!r}; known: {', '.join(sorted(DTYPES))}")
        return self


class Limits(Document):
    """What a plan must keep; each is checked against the far side of the estimate."""

    ttft_s: Seconds | None = None
    """Time to first token."""
    tpot_s: Seconds | None = None
    """Time per output token after the first."""
    devices: Annotated[int, Field(ge=1)] | None = None
    memory_share: Share = 0.9
    """Share of a device's memory that weights, cache and buffers may fill."""
    power_w: Watts | None = None
    """Watts of all devices in use together."""
    usd_per_hour: Price | None = None
    """Dollars an hour of all devices in use, at the machines' prices."""
    configurations: Annotated[int, Field(ge=1, le=64)] | None = None
    """Distinct configurations to operate at most; two pools are two."""
    spare_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Workers of each role that may fail with the rest still serving the load (N - 1: one)."""
    side: Literal["typical", "high"] = "high"
    """Hold limits at the typical estimate or at the far side of its interval."""


class Machine(Document):
    """More devices, of another kind, that pools of the same question may use."""

    cluster: Annotated[Cluster, BeforeValidator(resolved_at("/cluster", resolve_cluster))]
    backend: str | None = None
    """Engine on these devices; none: the question's own."""
    precision: str | None = None
    kv_dtype: str | None = None
    device_hour_usd: Price | None = None

    def stated(self, choices: Choices) -> Choices:
        """Choices with the engine and formats that this machine states."""
        own = {"backend": self.backend, "precision": self.precision, "kv_dtype": self.kv_dtype}
        return choices.model_copy(
            update={name: value for name, value in own.items() if value is not None}
        )


class Scenario(Document):
    """A complete question; names are resolved when it is read, so its digest identifies it."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(max_length=200)] = "plan"
    model: Annotated[MoeModel, BeforeValidator(resolved_at("/model", resolve_model))]
    cluster: Annotated[Cluster, BeforeValidator(resolved_at("/cluster", resolve_cluster))]
    workload: Workload
    routing: Routing = UniformRouting()
    policy: Policy = TopKPolicy()
    """How many experts a token runs, where that is not the model's own top-k."""
    offload: Offload | None = None
    """Experts in the host's memory or on storage; none: all in the devices' memory."""
    choices: Choices = Choices()
    limits: Limits = Limits()
    objective: Literal["output_tokens_per_s_per_device", "cost", "energy", "latency"] = (
        "output_tokens_per_s_per_device"
    )
    """Most tokens on the devices there are (under a given rate: fewest devices), the fewest dollars
    or joules a token, or the shortest request (TTFT and all its tokens) within the limits."""
    options: Annotated[int, Field(ge=1, le=50)] = 6
    """Distinct plans to rank."""
    pareto: Annotated[int, Field(ge=0, le=200)] = 0
    """Plans of the trade between objective and TPOT to look for, each by a cut; 0: none."""
    device_hour_usd: Price | None = None
    """Price of one device of `cluster`, as you pay it."""
    also: tuple[Machine, ...] = ()
    """Further machines: a pool may lie on any one of them."""

    def on_machine(self, number: int) -> Scenario:
        """The same question on one machine alone: 0 is `cluster`, then those of `also`."""
        if number == 0:
            return self.model_copy(update={"also": ()})
        machine = self.also[number - 1]
        return self.model_copy(
            update={"cluster": machine.cluster, "device_hour_usd": machine.device_hour_usd,
                    "choices": machine.stated(self.choices), "also": ()}
        )  # fmt: skip

    @property
    def device_memory_bytes(self) -> float:
        """Memory of one device of `cluster`, or what of it may be used."""
        stated = self.offload.memory_bytes if self.offload else None
        return self.cluster.device.capacity_bytes if stated is None else stated

    def variants(self) -> tuple[Variant, ...]:
        """Every combination of orders, groups, copies and places of experts of the choices."""
        choices = self.choices
        copies = choices.redundant_experts
        listed = copies if isinstance(copies, tuple) else (copies,)
        models = variants_of(self.model, choices.block_order, choices.groups)
        found = []
        for (number, (model, changed)), extra, apart in itertools.product(
            enumerate(models), listed, choices.experts_apart
        ):
            said = [changed if len(models) > 1 else "", "experts apart" if apart else ""]
            said.append(f"{extra} redundant experts" if isinstance(copies, tuple) else "")
            label = ", ".join(text for text in said if text)
            found.append(Variant(model, number, extra, apart, label, changed))
        return tuple(found)

    def of(self, variant: Variant) -> Scenario:
        """The same question about one variant alone."""
        plain = {"redundant_experts": variant.redundant_experts, "block_order": None,
                 "groups": None, "experts_apart": (variant.apart,)}  # fmt: skip
        choices = self.choices.model_copy(update=plain)
        return self.model_copy(update={"model": variant.model, "choices": choices})

    @property
    def device_count(self) -> int:
        """Devices of all machines."""
        return self.cluster.device_count + sum(m.cluster.device_count for m in self.also)


@dataclass(frozen=True)
class Variant:
    """One model and number of copies out of a question's lists."""

    model: MoeModel
    model_number: int
    """Variants of one number run the same model."""
    redundant_experts: int
    apart: bool
    """Experts on devices of their own."""
    label: str
    """What was taken from lists; empty where there are none."""
    changed: str
    """How the model differs from the one asked about; empty where it does not."""


def inline_lengths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Sum up the trace that `lengths: {file: PATH}` names, so that the question is complete."""
    lengths = data.get("lengths")
    if not isinstance(lengths, dict) or "file" not in lengths:
        return data
    return {**data, "lengths": summed_up(read_lengths(folder / str(lengths["file"])))}


def inline_files(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the content of files that a question names into it, so that it is complete.

    Only the shell does this, with the user's own files; over REST a question holds no paths.
    `workload: {lengths: {file: PATH}}` becomes a trace's means, spreads and correlation;
    `routing: {kind: measured, file: PATH}` becomes its counts (`experts: N` where the file lists
    only chosen ones); `model: PATH` (a config.json or the
    folder that holds one) becomes the model it describes.
    """
    result = dict(data)
    routing = data.get("routing")
    if isinstance(routing, dict) and "file" in routing:
        experts = routing.get("experts")
        width = experts if isinstance(experts, int) else None
        result["routing"] = read_expert_load(folder / str(routing["file"]), width)
    workload = data.get("workload")
    if isinstance(workload, dict):
        result["workload"] = inline_lengths(workload, folder)
    model = data.get("model")
    if isinstance(model, str) and (folder / model).exists():
        result["model"] = read_model(folder / model)
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        path = folder / model["base"]
        result["model"] = {**model, "base": read_model(path)} if path.exists() else model
    return result
