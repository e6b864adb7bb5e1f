"""What a training layout does: step time, model FLOP/s, memory, in closed form.

One micro-batch runs forward through the same kernel rows as a prefill; backward repeats matrix work
twice and exchanges once (arXiv:2205.05198, section 2). Pipelining adds (pp - 1) / vp micro-batches;
gradients are reduced behind the last backward pass as far as it lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for, resolve_cluster
from hwprofiles.timing import time_kernels
from planner.candidates import POINT, number
from planner.engines import load_engine
from planner.moe_model import CompressedAttention, GqaAttention, MlaAttention, MoeModel
from planner.parameters import count_parameters
from planner.point import Estimated, MemorySummary
from planner.pricing import Question, add_load
from planner.quantities import Estimate, StageShare
from planner.routing import Routing, UniformRouting
from planner.training_factors import Factor, factor_of
from planner.work.rows import Points, sheet_of
from planner.work.sheet import build_sheet, formats_of
from planner.work.training_activations import ActivationRules, Module
from planner.work.training_memory import BUCKETS, TRAINING, TrainingRules, training_memory
from planner.work.training_rows import training_rows

SIDES = ("low", "typical", "high")
COMMUNICATION = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv",
                 "moe_dispatch", "moe_combine")  # fmt: skip
ATTENTION_BACKWARD = 2.5
"""FlashAttention's backward makes five products where forward makes two (arXiv:2307.08691, 3.1)."""
MATRIX_BACKWARD = 2.0
STATE_PASSES = 2
BF16_BYTES = 2
Degree = Annotated[int, Field(ge=1, le=65_536)]


class TrainingPoint(Document):
    """One training layout; it runs on tp·pp·cp·dp devices."""

    id: str | int = ""
    phase: Literal["train"]
    model: str | dict[str, Any]
    device: str | None = None
    cluster: str | dict[str, Any] | None = None
    nodes: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Nodes of the run; with them dp follows."""
    precision: str = "bf16"
    tp: Degree = 1
    pp: Degree = 1
    vp: Degree = 1
    """Model chunks of each stage, interleaved."""
    cp: Degree = 1
    ep: Degree = 1
    etp: Degree = 1
    dp: Degree | None = None
    micro_batch: Degree = 1
    global_batch: Annotated[int, Field(ge=1, le=10_000_000)]
    seq: Annotated[int, Field(ge=1, le=100_000_000)]
    recompute: Literal["none", "selective", "full"] | tuple[Module, ...] = "none"
    """`selective` is attention's core; or modules by name."""
    zero: Literal[0, 1, 2, 3] = 1
    routing: Routing = UniformRouting()

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if self.device is None and self.cluster is None:
            raise ValueError("give device or cluster")
        if self.dp is None and self.nodes is None:
            raise ValueError("give dp or nodes")
        return self

    @property
    def activations(self) -> ActivationRules:
        """What is kept for the backward pass."""
        if self.recompute == "full":
            return ActivationRules(full=True)
        if self.recompute == "selective":
            return ActivationRules(recompute=("core_attn",))
        return ActivationRules(recompute=() if self.recompute == "none" else self.recompute)


def is_training(data: object) -> bool:
    """Whether a line asks about training."""
    return isinstance(data, dict) and data.get("phase") == "train"


def estimate_training(point: TrainingPoint, model_of: Callable[[Any], MoeModel]) -> Estimated:
    """Estimate one training layout.

    Raises:
        MoesaicError: `invalid` for a layout that does not divide, and what timing raises.
    """
    model = model_of(point.model)
    cluster = _cluster(point)
    dp = _data_parallel(point, cluster)
    micro_batches = _micro_batches(point, dp)
    factor = factor_of(point.precision, routed=model.moe is not None)
    timed = _forward(point, model, cluster)
    states = _memory_row(point, model, dp)
    seconds = {side: _step(point, timed, states, (side, micro_batches, dp, cluster))
               for side in SIDES}  # fmt: skip
    step = factor.applied(seconds)
    memory = _summary(states, cluster)
    trained = point.global_batch * point.seq / (point.tp * point.pp * point.cp * dp)
    flops = trained * model_flops_per_token(model, point.seq)
    return Estimated(
        id=point.id,
        step_s=step,
        total_tokens_per_s_per_device=_rate(trained, step),
        model_flop_per_s_per_device=_rate(flops, step),
        memory=memory,
        fits=memory.total_bytes <= memory.capacity_bytes,
        breakdown=_shares(timed, point),
        assumptions=_assumptions(point, model, cluster, factor),
    )


def _cluster(point: TrainingPoint) -> Cluster:
    if point.cluster is not None:
        return resolve_cluster(point.cluster)
    ranks = point.tp * point.pp * point.cp * (point.dp or 1)
    found = cluster_for(str(point.device), ranks)
    if point.nodes is not None and found.nodes < point.nodes:
        return cluster_for(str(point.device), point.nodes * found.devices_per_node)
    return found


def _data_parallel(point: TrainingPoint, cluster: Cluster) -> int:
    if point.dp is not None:
        return point.dp
    devices = (point.nodes or 1) * cluster.devices_per_node
    inner = point.tp * point.pp * point.cp
    ranks, rest = divmod(devices, inner)
    if rest or not ranks:
        raise MoesaicError(
            "invalid", f"tp·pp·cp = {inner} does not divide {devices} devices", "/nodes"
        )
    return ranks


def _micro_batches(point: TrainingPoint, dp: int) -> int:
    count, rest = divmod(point.global_batch, point.micro_batch * dp)
    if rest or not count:
        raise MoesaicError(
            "invalid",
            f"global_batch {point.global_batch} is no multiple of micro_batch·dp = "
            f"{point.micro_batch * dp}", "/global_batch",
        )  # fmt: skip
    return count


def _forward(point: TrainingPoint, model: MoeModel, cluster: Cluster) -> pl.DataFrame:
    """Timed kernel rows of one micro-batch's forward pass, the head on every token."""
    group, rest = divmod(point.ep * point.etp, point.tp)
    if point.ep * point.etp > 1 and (rest or not group):
        raise MoesaicError(
            "invalid", f"ep·etp = {point.ep * point.etp} is no multiple of tp {point.tp}", "/ep"
        )
    local = point.seq / point.cp
    row = {
        "tp": point.tp, "dp": max(group, 1), "pp": point.pp, "moe_tp": point.etp,
        "moe_ep": point.ep, "devices": point.tp * max(group, 1) * point.pp, "phase": "prefill",
        "batch": float(point.micro_batch), "new_tokens": local,
        "past_tokens": (point.seq - local) / 2, "context_tokens": float(point.seq), "osl": 1.0,
        "step_tokens": 1.0, "redundant_experts": 0.0,
        "node_devices": float(cluster.devices_per_node),
    }  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    formats = formats_of(model, point.precision, "bf16")
    engine = load_engine("trtllm")  # rows of a pass do not ask an engine anything
    question = Question(model, cluster, engine, point.routing, formats)
    points = add_load(number(pl.DataFrame([row], schema=schema)), question)
    sheet = build_sheet(points, model, formats).filter(pl.col("stage") != "head")
    extra = sheet_of(training_rows(Points.of(points), model, formats))
    return time_kernels(pl.concat([sheet, extra]), cluster)


def _weight(point: TrainingPoint) -> pl.Expr:
    """How often a forward row's seconds count in forward, backward and recomputation."""
    kernel = pl.col("kernel")
    core = kernel.str.contains("attention|mla")
    again = pl.lit(0.0)
    rules = point.activations
    if rules.full:
        again = pl.when(pl.col("stage") == "head").then(0.0).otherwise(1.0)
    elif "core_attn" in rules.recompute:
        again = pl.when(core).then(1.0).otherwise(0.0)
    elif "moe" in rules.recompute:
        again = pl.when(pl.col("stage").is_in(["experts", "shared"])).then(1.0).otherwise(0.0)
    backward = (
        pl.when(kernel.is_in(COMMUNICATION)).then(1.0)
        .when(core).then(ATTENTION_BACKWARD).otherwise(MATRIX_BACKWARD)
    )  # fmt: skip
    return 1.0 + backward + again


def _step(
    point: TrainingPoint, timed: pl.DataFrame, states: dict[str, float],
    how: tuple[str, int, int, Cluster],
) -> float:  # fmt: skip
    """Seconds of one optimizer step on one side of the interval."""
    side, micro_batches, dp, cluster = how
    work = pl.col(f"{side}_s") * pl.col("repeat_count") * _weight(point)
    stage = timed.select(work.sum()).item() / point.pp
    filled = micro_batches + (point.pp - 1) / point.vp
    after = _after(point, states, (dp, cluster)).select(pl.col(f"{side}_s")).to_series().to_list()
    reduce, gather, update = after
    hidden = stage * MATRIX_BACKWARD / (1 + MATRIX_BACKWARD)
    return float(stage * filled + max(reduce + gather - hidden, 0.0) + update)


def _after(
    point: TrainingPoint, states: dict[str, float], where: tuple[int, Cluster]
) -> pl.DataFrame:
    """Timed rows after backward: gradients reduced, weights gathered, states updated."""
    dp, cluster = where
    ranks = dp * point.cp
    spans = -(-ranks * point.tp // cluster.devices_per_node)
    rows = [
        {"kernel": "reduce_scatter", "devices": float(ranks), "nodes": float(spans),
         "message_bytes": states["gradient_bytes"], "dtype": "bf16"},
        {"kernel": "all_gather", "devices": float(ranks), "nodes": float(spans),
         "message_bytes": states["weights_bytes"], "dtype": "bf16"},
        {"kernel": "elementwise", "bytes": STATE_PASSES * states["optimizer_bytes"]
         + states["weights_bytes"] + states["gradient_bytes"]},
    ]  # fmt: skip
    from hwprofiles.kernels import kernel_rows

    timed = time_kernels(kernel_rows(rows), cluster)
    if ranks > 1:
        return timed
    nothing = [pl.when(pl.col("kernel") == "elementwise").then(pl.col(f"{side}_s")).otherwise(0.0)
               .alias(f"{side}_s") for side in SIDES]  # fmt: skip
    return timed.with_columns(nothing)


def _memory_row(point: TrainingPoint, model: MoeModel, dp: int) -> dict[str, float]:
    rules = TrainingRules(
        gradient_bytes=BF16_BYTES, zero=point.zero, activations=point.activations,
        buffer_bytes=load_engine("trtllm").buffer_bytes,
    )  # fmt: skip
    row = point.model_dump(include=set(TRAINING)) | {"dp": dp}
    found = training_memory(pl.DataFrame([row]), model, rules).row(0, named=True)
    return {name: float(found[name]) for name in (*BUCKETS, "total_bytes")}


def _summary(states: dict[str, float], cluster: Cluster) -> MemorySummary:
    kept = states["gradient_bytes"] + states["optimizer_bytes"]
    return MemorySummary(
        total_bytes=states["total_bytes"], weights_bytes=states["weights_bytes"] + kept,
        kv_bytes=0.0, activation_bytes=states["activation_bytes"] + states["logit_bytes"],
        buffer_bytes=states["buffer_bytes"], capacity_bytes=cluster.device.capacity_bytes,
    )  # fmt: skip


def model_flops_per_token(model: MoeModel, seq: int) -> float:
    """FLOP of forward and backward for one token as training reports count them.

    Six for each weight a token meets, the head among them, and causal attention over half the
    sequence (Megatron-Core's `num_floating_point_operations`).
    """
    count = count_parameters(model)
    weights = count.active - count.embedding - count.norms + model.vocab * model.hidden
    scores = 0.0
    for name, layers in model.kind_counts().items():
        part = model.kinds[name].attention
        if isinstance(part, MlaAttention):
            scores += layers * part.heads * (part.qk_head_dim + part.v_head_dim) * seq / 2
        if isinstance(part, CompressedAttention):
            scores += layers * part.heads * 2 * part.head_dim * min(seq, part.window_tokens)
        if isinstance(part, GqaAttention):
            seen = min(seq / 2, part.window_tokens or seq)
            scores += layers * part.heads * (part.head_dim + part.value_dim) * seen
    return 6 * (weights + scores)


def _rate(amount: float, step: Estimate) -> Estimate:
    return Estimate(
        low=amount / step.high, typical=amount / step.typical, high=amount / step.low,
        source=step.source,
    )  # fmt: skip


def _shares(timed: pl.DataFrame, point: TrainingPoint) -> tuple[StageShare, ...]:
    """Parts of one micro-batch on one stage, forward and backward."""
    seconds = pl.col("typical_s") * pl.col("repeat_count") * _weight(point) / point.pp
    grouped = timed.with_columns(seconds.alias("part_s")).group_by("stage", maintain_order=True)
    found = grouped.agg(
        pl.col("part_s").sum(), pl.col("bound_by", "source").sort_by("part_s").last()
    )
    total = found["part_s"].sum()
    return tuple(
        StageShare(stage=row["stage"], seconds_s=row["part_s"], share_ratio=row["part_s"] / total,
                   bound_by=row["bound_by"], source=row["source"])
        for row in found.iter_rows(named=True)
    )  # fmt: skip


def _assumptions(
    point: TrainingPoint, model: MoeModel, cluster: Cluster, factor: Factor
) -> tuple[str, ...]:
    texts = [*model.assumptions, factor.sentence]
    if point.cluster is None:
        texts.append(f"cluster: {cluster.name} taken for device {point.device}")
    if point.cp > 1:
        texts.append("context parallelism: the exchange of keys and values is taken as hidden")
    texts.append("gradients reduced in bf16; Adam with fp32 master weights; no offloading")
    return tuple(texts)
