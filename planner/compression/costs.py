"""The four costs of a table of experts: stored bytes, moved bytes, FLOPs, and preparing it."""

from __future__ import annotations

import numpy as np
import polars as pl

from hwprofiles.document import Document
from planner.compression.decode_time import low_bit_time_ratio
from planner.compression.experts import BITS_PER_BYTE, ExpertTable, Floats, expert_table
from planner.parameters import count_parameters, weight_bytes

MULTIPLY_ADD_FLOPS = 2
FP32_BYTES = 4
LOW_BITS = 5.0
"""Stored bits, scales counted, up to which kernels dequantise weights as they read them."""
ADDED_BYTES = 2
HEAPR_COPIES = 2
"""HEAPr's code holds the gradient covariance and its running mean, both fp32, in host memory."""


class CompressionCosts(Document):
    """What a compressed model costs; each field answers another question.

    Fewer stored bytes do not mean fewer moved bytes or FLOPs, and none of them is a time; the one
    time ratio comes from measured low-bit steps.
    """

    stored_bytes: float
    """Resident weights of the whole model."""
    moved_bytes_per_token: float
    """Weight bytes read for one token of a batch of `batch` in decode."""
    flops_per_token: float
    """Matrix work of one token, attention scores left out."""
    stored_parameters_count: int
    active_parameters_count: float
    """Parameters one token runs through, both embeddings counted."""
    average_bits: float
    """Mean weight bits of experts, attention and routers, scales left to `stored_bytes`."""
    experts_per_token: float
    shapes: tuple[KernelShape, ...]
    """Grouped-GEMM shapes that a layer needs, most experts first."""
    decode_time_ratio: float | None = None
    """Seconds of a decode step over those in 16 bits, for experts of 4 bits and fewer."""
    notes: tuple[str, ...] = ()


class KernelShape(Document):
    """Experts of one shape, over all layers."""

    experts_count: int
    hidden: int
    inter: int
    matrices: int
    stored_bits: float
    rank: int
    """0 for whole matrices."""


class CalibrationCost(Document):
    """What finding the transform takes, once."""

    tokens: int
    flops: float
    host_bytes: float
    passes: str
    source: str


def costs_of(table: ExpertTable, *, batch: int = 1) -> CompressionCosts:
    """State a table's costs.

    Args:
        table: experts after their transforms.
        batch: tokens that share one read of the weights.
    """
    expert = table.parameters()
    stored = float((expert * table.stored()).sum())
    others = _other_parameters(table)
    active = others + table.experts_per_token * float((expert * table.popularity).sum())
    return CompressionCosts(
        stored_bytes=stored_bytes(table),
        moved_bytes_per_token=moved_bytes_per_token(table, batch),
        flops_per_token=flops_per_token(table),
        stored_parameters_count=round(stored + others),
        active_parameters_count=active,
        average_bits=average_bits(table),
        experts_per_token=table.experts_per_token,
        shapes=kernel_shapes(table),
        decode_time_ratio=_decode_time_ratio(table),
        notes=table.notes,
    )


def _decode_time_ratio(table: ExpertTable) -> float | None:
    """None where no expert is narrow enough to be dequantised as it is read."""
    if float(table.bits.max()) > LOW_BITS:
        return None
    whole = moved_bytes_per_token(expert_table(table.model))
    return low_bit_time_ratio(moved_bytes_per_token(table) / whole)


def _router_cut(table: ExpertTable) -> int:
    """Router weights that pruned rows no longer need."""
    layers, experts = table.shape
    rows = layers * (experts + table.block.zero_experts) - int(table.router_rows.sum())
    return rows * (table.model.hidden + table.block.router_bias)


def _other_parameters(table: ExpertTable) -> int:
    count = count_parameters(table.model)
    return count.total - count.routed - _router_cut(table) + table.added_parameters


def _other_bytes(table: ExpertTable) -> float:
    """Bytes of all that is not a routed expert."""
    kept = weight_bytes(table.model)
    kept.pop("routed")
    kept["router"] -= _router_cut(table) * ADDED_BYTES
    if table.other_bits is not None:
        count = count_parameters(table.model)
        ratio = table.other_bits / BITS_PER_BYTE
        kept["attention"] = count.attention * ratio
        kept["router"] = (count.router + count.projection - _router_cut(table)) * ratio
        kept["shared"], kept["dense"] = count.shared * ratio, count.dense * ratio
    return sum(kept.values()) + table.added_parameters * ADDED_BYTES


def stored_bytes(table: ExpertTable) -> float:
    """Resident weight bytes: each stored expert once, in its own format."""
    experts = table.parameters() * table.stored() * table.bits / BITS_PER_BYTE
    return float(experts.sum()) + _other_bytes(table)


def moved_bytes_per_token(table: ExpertTable, batch: int = 1) -> float:
    """Weight bytes that decode reads for each token of a batch.

    An expert is read when any token of the batch chose it: of b tokens with chance p each,
    1 - (1 - p)^b. Members of a merged group are read once.
    """
    size = table.parameters() * table.bits / BITS_PER_BYTE
    chance = np.minimum(table.experts_per_token * table.popularity, 1.0)
    joint = _by_owner(table, chance)
    read = 1.0 - (1.0 - np.minimum(joint, 1.0)) ** batch
    if batch == 1:
        read = joint
    model = table.model
    lookup = model.vocab * model.hidden * (0 if model.tied_embeddings else 1)
    always = _other_bytes(table) - lookup * ADDED_BYTES
    return (float((size * table.stored() * read).sum()) + always) / batch


def _by_owner(table: ExpertTable, values: Floats) -> Floats:
    """Sum over the members of each group, at the owner's place."""
    total = np.zeros_like(values)
    rows = np.broadcast_to(np.arange(table.shape[0])[:, None], table.shape)
    np.add.at(total, (rows, table.owner), values)
    return total


def flops_per_token(table: ExpertTable) -> float:
    """Matrix work of one token: two FLOPs a weight it meets, the input embedding not among them."""
    count = count_parameters(table.model)
    head = table.model.vocab * table.model.hidden
    met = count.attention + count.shared + count.dense + count.router + count.projection + head
    met -= _router_cut(table)
    owner = np.take_along_axis(table.parameters(), table.owner, axis=1)
    routed = table.experts_per_token * float((owner * table.popularity).sum())
    return MULTIPLY_ADD_FLOPS * (met + routed) + table.added_flops_per_token


def average_bits(table: ExpertTable) -> float:
    """Mean bits of the quantised weights, without scales (MC-MoE counts attention and gates)."""
    from planner.compression.formats import GROUP, SCALE_BITS

    count = count_parameters(table.model)
    others = count.attention + count.router + count.shared + count.dense
    bits = (table.bits - SCALE_BITS / GROUP) / (1 + 1 / GROUP)
    whole = table.bits >= SCALE_BITS
    weights = table.parameters() * table.stored()
    plain = table.other_bits if table.other_bits is not None else float(SCALE_BITS)
    total = float((weights * np.where(whole, table.bits, bits)).sum()) + others * plain
    return total / (float(weights.sum()) + others)


def kernel_shapes(table: ExpertTable) -> tuple[KernelShape, ...]:
    """Distinct shapes of the stored experts."""
    stored = table.stored()
    columns = {
        "inter": table.width[stored], "bits": table.bits[stored], "rank": table.rank[stored],
    }  # fmt: skip
    groups = pl.DataFrame(columns).group_by("inter", "bits", "rank").len()
    return tuple(
        KernelShape(
            experts_count=row["len"], hidden=table.input_width, inter=row["inter"],
            matrices=table.block.matrices, stored_bits=row["bits"], rank=row["rank"],
        )
        for row in groups.sort("len", "inter", "bits", descending=True).iter_rows(named=True)
    )  # fmt: skip


def engine_problems(table: ExpertTable, *, ragged: bool = False) -> tuple[str, ...]:
    """Why an engine could not load the table: uneven layers, formats mixed within one.

    Args:
        table: experts after their transforms.
        ragged: the engine takes a different number of experts in each layer.
    """
    stored = table.stored()
    counts = stored.sum(axis=1)
    problems = []
    if len(np.unique(counts)) > 1 and not ragged:
        low, high = int(counts.min()), int(counts.max())
        problems.append(f"layers keep {low} to {high} experts; the engine needs one number")
    for name, values in (("formats", table.bits), ("widths", table.width)):
        mixed = [len(np.unique(row[kept])) > 1 for row, kept in zip(values, stored, strict=True)]
        if any(mixed):
            problems.append(f"{sum(mixed)} layers mix {name}; the engine needs one a layer")
    return tuple(problems)


def heapr_calibration(table: ExpertTable, tokens: int = 128 * 2048) -> CalibrationCost:
    """HEAPr's own cost: two forward passes, one backward, a covariance matrix an expert.

    Source: arXiv:2509.22299, section 3.3; the two copies are read off the authors' code.
    """
    layers, experts = table.shape
    covariance = layers * experts * table.input_width**2 * FP32_BYTES
    active = flops_per_token(table)
    return CalibrationCost(
        tokens=tokens, flops=4 * active * tokens, host_bytes=HEAPR_COPIES * covariance,
        passes="two forward, one backward", source="arXiv:2509.22299 section 3.3",
    )  # fmt: skip


def quantisation_calibration(table: ExpertTable, tokens: int = 128 * 2048) -> CalibrationCost:
    """MC-MoE's: one pass for the loads, then each expert's error at 1, 2 and 3 bits.

    Source: arXiv:2410.06270, section 4.1 (128 sequences of 2048 tokens of C4).
    """
    layers, experts = table.shape
    again = 3 * MULTIPLY_ADD_FLOPS * table.experts_per_token * float(
        (table.parameters() * table.popularity).sum()
    )  # fmt: skip
    return CalibrationCost(
        tokens=tokens, flops=(flops_per_token(table) + again) * tokens,
        host_bytes=float(layers * experts * 3 * FP32_BYTES),
        passes="one forward, three expert passes", source="arXiv:2410.06270 section 4.1",
    )  # fmt: skip
