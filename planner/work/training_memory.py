"""Resident bytes of one training device by bucket, for a whole table of layouts at once.

States follow ZeRO (arXiv:1910.02054, section 3), activations follow Megatron (arXiv:2205.05198,
section 4) part by part, so that latent attention and experts are counted like dense blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeModel
from planner.parameters import count_parameters
from planner.work.training_activations import (
    ActivationRules,
    checkpoint_bytes,
    layer_activation_bytes,
)

TRAINING = ("tp", "pp", "vp", "cp", "ep", "etp", "dp", "micro_batch", "seq")
"""Columns of a layout: tensor, pipeline, virtual pipeline, context, expert, expert-tensor, data."""
STATES_SHARED, GRADIENTS_SHARED, WEIGHTS_SHARED = 1, 2, 3
"""ZeRO stages from which data-parallel ranks share optimizer states, gradients, weights."""
BUCKETS = ("weights_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes",
           "logit_bytes", "buffer_bytes")  # fmt: skip


@dataclass(frozen=True)
class TrainingRules:
    """How a run keeps its states.

    Args:
        weight_bytes: of a weight that computes; bf16.
        gradient_bytes: of a gradient; Megatron accumulates in fp32.
        optimizer_bytes: fp32 master copy and Adam's two moments.
        zero: what data parallel ranks share: 0 nothing, 1 optimizer, 2 gradients, 3 weights.
        activations: what is kept for the backward pass.
        buffer_bytes: context, collectives and fragmentation, measured or assumed.
        teacher: a second model, only run forward; its weights are sharded like the student's.
        trainable_ratio: share of weights with gradients and states (adapters: near zero).
    """

    weight_bytes: float = 2.0
    gradient_bytes: float = 4.0
    optimizer_bytes: float = 12.0
    zero: Literal[0, 1, 2, 3] = 1
    activations: ActivationRules = field(default_factory=ActivationRules)
    buffer_bytes: float = 0.0
    teacher: MoeModel | None = None
    trainable_ratio: float = 1.0


def training_memory(layouts: pl.DataFrame, model: MoeModel, rules: TrainingRules) -> pl.DataFrame:
    """Add one column a bucket and `total_bytes`, for the fullest device of the fullest stage.

    Args:
        layouts: columns `TRAINING`; `dp` is data parallelism of attention, so a run has
            tp·pp·cp·dp devices and experts have tp·cp·dp / (ep·etp) copies.
        model: what is trained.
        rules: how states and activations are kept.

    Raises:
        MoesaicError: `invalid` when a column is missing or a degree is below one.
    """
    missing = [name for name in TRAINING if name not in layouts.columns]
    if missing:
        raise MoesaicError("invalid", f"training layouts need columns {', '.join(missing)}")
    least = layouts.select(pl.min_horizontal(*TRAINING).min()).item() if layouts.height else 1
    if least < 1:
        raise MoesaicError("invalid", f"a degree of {least} in a training layout; known: 1 or more")
    first, last = (_stage(model, rules, end) for end in ("first", "last"))
    heavier = pl.sum_horizontal(first.values()) >= pl.sum_horizontal(last.values())
    columns = [pl.when(heavier).then(first[name]).otherwise(last[name]).alias(name)
               for name in BUCKETS]  # fmt: skip
    return layouts.with_columns(columns).with_columns(
        pl.sum_horizontal(BUCKETS).alias("total_bytes")
    )


def _stage(
    model: MoeModel, rules: TrainingRules, end: Literal["first", "last"]
) -> dict[str, pl.Expr]:
    """Buckets of the first or the last pipeline stage."""
    pp, single = pl.col("pp"), pl.col("pp") == 1
    layers = (model.layer_count / pp).ceil()
    dense, routed = _stage_parameters(model, layers, end)
    trained = rules.trainable_ratio
    weights, gradients, states = (
        dense * _share(rules.zero >= stage, "dense")
        + routed * _share(rules.zero >= stage, "routed")
        for stage in (WEIGHTS_SHARED, GRADIENTS_SHARED, STATES_SHARED)
    )
    kept = weights * rules.weight_bytes
    if rules.teacher is not None:
        teacher_dense, teacher_routed = _stage_parameters(
            rules.teacher, (rules.teacher.layer_count / pp).ceil(), end
        )
        kept = kept + (teacher_dense + teacher_routed) * rules.weight_bytes
    if rules.zero == WEIGHTS_SHARED:  # one layer is gathered whole
        kept = kept + (dense + routed) / layers * rules.weight_bytes
    logits = (
        _logits(model) if end == "last" else pl.when(single).then(_logits(model)).otherwise(0.0)
    )
    return {
        "weights_bytes": kept,
        "gradient_bytes": gradients * rules.gradient_bytes * trained,
        "optimizer_bytes": states * rules.optimizer_bytes * trained,
        "activation_bytes": _activations(model, rules, end),
        "logit_bytes": logits,
        "buffer_bytes": pl.lit(rules.buffer_bytes),
    }


def _stage_parameters(
    model: MoeModel, layers: pl.Expr, end: Literal["first", "last"]
) -> tuple[pl.Expr, pl.Expr]:
    """Parameters of one device of a stage: all but experts, and experts."""
    count = count_parameters(model)
    share = layers / model.layer_count
    cut = count.attention + count.shared + count.dense
    whole = count.router + count.projection + count.norms
    table = model.vocab * model.hidden
    both = table if model.tied_embeddings else 2 * table
    positions = (model.position_rows * model.hidden) if end == "first" else 0
    ends = pl.when(pl.col("pp") == 1).then(float(both)).otherwise(float(table)) + positions
    dense = (cut * share + ends) / pl.col("tp") + whole * share
    if end == "last":
        mtp = count.mtp
        dense = dense + float(mtp) / (pl.col("tp") * pl.col("ep")) if mtp else dense
    routed = count.routed * share / (pl.col("ep") * pl.col("etp"))
    return dense, routed


def _share(shared: bool, part: Literal["dense", "routed"]) -> pl.Expr:  # noqa: FBT001 - a switch
    """What one rank keeps of a state that its copies share, or all of it."""
    if not shared:
        return pl.lit(1.0)
    copies = pl.col("dp") * pl.col("cp")
    if part == "routed":
        copies = copies * pl.col("tp") / (pl.col("ep") * pl.col("etp"))
    return 1.0 / pl.max_horizontal(copies, pl.lit(1.0))


def _activations(model: MoeModel, rules: TrainingRules, end: Literal["first", "last"]) -> pl.Expr:
    """Bytes of the micro-batches in flight.

    1F1B keeps pp micro-batches of the first stage and one of the last; interleaving keeps
    1 + (pp - 1) / (pp·vp) times the layers of all stages (arXiv:2205.05198, eq. 5).
    """
    pp, vp = pl.col("pp"), pl.col("vp")
    total, kept = pl.lit(0.0), pl.lit(0.0)
    for name, count in model.kind_counts().items():
        total = total + count * layer_activation_bytes(model, model.kinds[name], rules.activations)
        kept = kept + count * checkpoint_bytes(model, rules.activations)
    interleaved = pl.when(vp > 1).then(1 + (pp - 1) / (pp * vp)).otherwise(1.0)
    tokens = pl.col("micro_batch") * pl.col("seq") / pl.col("cp")
    in_flight = interleaved if end == "first" else 1 / pp
    if rules.activations.full:
        working = total / model.layer_count  # one layer is run again at a time
        return tokens * (kept * in_flight + working)
    return tokens * total * in_flight


def _logits(model: MoeModel) -> pl.Expr:
    """Logits in bf16 and their softmax in fp32, cut by tensor parallelism."""
    tokens = pl.col("micro_batch") * pl.col("seq") / pl.col("cp")
    return tokens * (model.vocab * (2 + 4)) / pl.col("tp")
