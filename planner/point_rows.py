"""A given configuration as forward passes, and the rules that it must keep."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from hwprofiles.device import Device
from hwprofiles.errors import MoesaicError
from planner.candidates import Layout, broken_rule, tokens_per_step
from planner.expert_layout import ExpertLayout
from planner.moe_model import MoeModel
from planner.point import Point, PoolPoint
from planner.pricing import Question, overlap_of
from planner.timing.serving import KEY
from planner.work.precision import formats_on
from planner.work.rows import Formats

Row = dict[str, Any]


def callers_of(point: Point) -> int:
    """Requests in flight: the asked ones, or what the decode pool holds."""
    pool = point.decode
    if point.concurrency is not None or pool is None:
        return point.concurrency or 1
    return pool.batch * pool.dp * pool.pp * pool.workers


def decode_ranks(point: Point) -> int:
    """Data-parallel ranks and stages over which sequences of a line spread."""
    part = point.decode or point
    return part.dp * part.pp * getattr(part, "workers", 1)


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
            layout, question.model, question.formats.weights.routed, _copies(layout, question),
            point.experts,
        )  # fmt: skip
        if reason is not None:
            asked = ", ".join(f"{name} {ranks}" for name, ranks in asdict(layout).items())
            raise MoesaicError("invalid", f"{reason} (layout: {asked})", "/tp")


def _copies(layout: Layout, question: Question) -> int:
    """Expert copies of a layer: the asked ones, else what lets every rank hold as many."""
    moe, experts = question.model.moe, question.formats.layout
    if experts.redundant_experts is not None:
        return experts.redundant_experts
    routed = max(layout.moe_ep - experts.shared_ranks, 1)
    return -moe.experts % routed if moe is not None else 0


def point_rows(line: int, point: Point, held: float, question: Question) -> list[Row]:
    """The prefill and decode pass of one line as rows of `POINT`."""
    shared = {
        "line": line, "osl": float(point.osl),
        "open_loop": float(point.request_rate is not None),
        "step_tokens": tokens_per_step(point.mtp_tokens, point.mtp_acceptance),
        "node_devices": float(question.cluster.devices_per_node),
    }  # fmt: skip
    first, second = point.prefill or point, point.decode or point
    prefill_batch = float(first.batch) if isinstance(first, PoolPoint) else 1.0
    if isinstance(second, PoolPoint) and point.concurrency is None:
        decode_batch = float(second.batch)
    else:
        decode_batch = max(held / decode_ranks(point), 1.0)
    fresh, long = point.isl - point.cached_tokens, point.moments
    passes: list[tuple[Point | PoolPoint, Row]] = [
        (first, {"phase": "prefill", "batch": prefill_batch, "new_tokens": float(fresh),
                 "past_tokens": point.cached_tokens, "context_tokens": float(point.isl),
                 "prompt_tokens": fresh * long.long_isl / long.isl}),
        (second, {"phase": "decode", "batch": decode_batch,
                  "new_tokens": 1.0 + point.mtp_tokens,
                  "past_tokens": long.past, "context_tokens": long.grown}),
    ]  # fmt: skip
    return [
        {**shared, **row, **_layout_row(layout, point.experts),
         "redundant_experts": float(_copies(layout, question))}
        for layout, row in ((point.layout(part), row) for part, row in passes)
    ]  # fmt: skip


def _layout_row(layout: Layout, experts: ExpertLayout) -> Row:
    named = {name: float(getattr(layout, name)) for name in KEY}
    return named | {"devices": float(_worker_devices(layout, experts))}


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


def layout_notes(point: Point, question: Question) -> list[str]:
    """What an answer says of expert copies that it added and of overlap that was asked for."""
    asked, way = question.formats.layout.overlap, overlap_of(question)
    notes, layout = [], point.layout(point.decode or point)
    added = _copies(layout, question)
    if added and question.formats.layout.redundant_experts is None:
        notes.append(
            f"expert copies: {added} in each layer, so that moe_ep {layout.moe_ep} ranks hold "
            "equally many; redundant_experts says otherwise"
        )
    if asked not in ("engine", way) and question.formats.exchange != "fused":
        notes.append(f"overlap {asked}: {question.engine.name} was fitted on runs that have it")
    if way == "micro_batch" and not question.engine.two_batch_overlap:
        notes.append(f"overlap micro_batch: not known of {question.engine.name}, a what-if")
    return notes
