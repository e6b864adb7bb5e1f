"""A given configuration: its devices, its formats, and the rules that it must keep."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from hwprofiles.device import Device
from hwprofiles.errors import MoesaicError
from planner.candidates import Layout, broken_rule
from planner.expert_layout import ExpertLayout
from planner.moe_model import MoeModel
from planner.point import Point
from planner.pricing import Question, overlap_of
from planner.work.precision import formats_on
from planner.work.rows import Array, Formats


def callers_of(point: Point) -> int:
    """Requests in flight: the asked ones, or what the decode pool holds."""
    pool = point.decode
    if point.concurrency is not None or pool is None:
        return point.concurrency or 1
    return pool.batch * pool.dp * pool.pp * pool.workers


def devices_of(point: Point) -> int:
    """Devices of all workers, those of experts apart among them."""
    pools = [point] if point.mode == "agg" else [point.prefill, point.decode]
    return sum(
        _worker_devices(point.layout(part), point.experts) * getattr(part, "workers", 1)
        for part in pools
        if part
    )


def _worker_devices(layout: Layout, experts: ExpertLayout) -> int:
    beside = layout.moe_tp * layout.moe_ep * layout.pp if experts.apart else 0
    return layout.devices + beside


def check_point(point: Point, question: Question) -> None:
    """See that a configuration fits its cluster and keeps every rule of layouts.

    Raises:
        MoesaicError: `invalid`, naming what was asked and what there is.
    """
    cluster = question.cluster
    if devices_of(point) > cluster.device_count:
        raise MoesaicError(
            "invalid",
            f"the configuration needs {devices_of(point)} devices; {cluster.name} has "
            f"{cluster.device_count}", "/cluster",
        )  # fmt: skip
    for part in [point] if point.mode == "agg" else [point.prefill, point.decode]:
        layout = point.layout(part)
        reason = broken_rule(
            layout, question.model, question.formats.weights.routed,
            int(expert_copies(layout.moe_ep, question)), point.experts,
        )  # fmt: skip
        if reason is not None:
            asked = ", ".join(f"{name} {ranks}" for name, ranks in asdict(layout).items())
            raise MoesaicError("invalid", f"{reason} (layout: {asked})", "/tp")


def expert_copies(moe_ep: Array | float, question: Question) -> Array:
    """Expert copies of a layer: the asked ones, else what lets every rank hold as many."""
    moe, experts = question.model.moe, question.formats.layout
    if experts.redundant_experts is not None:
        return np.full_like(moe_ep, experts.redundant_experts, dtype=np.float64)
    routed = np.maximum(np.asarray(moe_ep, dtype=np.float64) - experts.shared_ranks, 1.0)
    return np.zeros_like(routed) if moe is None else np.asarray(-moe.experts % routed)


def formats_of_point(point: Point, model: MoeModel, device: Device, cache_needs: str) -> Formats:
    """Numeric formats and expert layout of a configuration on a device.

    Args:
        point: the configuration.
        model: its model.
        device: its device.
        cache_needs: format that a device computes in where the engine keeps an 8-bit cache.
    """
    plain = formats_on(model, point.precision, point.kv_dtype, device, cache_needs)
    return replace(plain, exchange=point.experts.exchange, layout=point.experts)


def layout_notes(moe_ep: int, question: Question) -> list[str]:
    """What an answer says of expert copies that it added and of overlap that was asked for."""
    asked, way, notes = question.formats.layout.overlap, overlap_of(question), []
    added = int(expert_copies(moe_ep, question))
    if added and question.formats.layout.redundant_experts is None:
        notes.append(
            f"expert copies: {added} in each layer, so that moe_ep {moe_ep} ranks hold "
            "equally many; redundant_experts says otherwise"
        )
    if asked not in ("engine", way) and question.formats.exchange != "fused":
        notes.append(f"overlap {asked}: {question.engine.name} was fitted on runs that have it")
    if way == "micro_batch" and not question.engine.two_batch_overlap:
        notes.append(f"overlap micro_batch: not known of {question.engine.name}, a what-if")
    return notes
