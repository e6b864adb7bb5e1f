"""Designs priced one after the other on one machine: the frontier of speed over active size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.candidates import LAYOUT, enumerate_layouts, layout_frame, number, phase_points
from planner.design import Design
from planner.design_plan import DesignPlan, DesignPoint
from planner.machines import on_machine
from planner.moe_model import GqaAttention, MoeFfn, MoeModel
from planner.parameters import count_parameters
from planner.pricing import price, question_of
from planner.ranking import estimate_of, layout_of, scaled
from planner.scenario import Scenario
from planner.search.assignment import within_limits
from planner.timing.serving import serving_table
from planner.timing.step import weakest_source

LIKE_RATIO = 0.02
"""A design within this of the base's parameters counts as large as the base."""
Seen = Callable[[int, int], None]
"""Told how many designs of how many are done."""


def plan_design(question: Design, seen: Seen | None = None) -> DesignPlan:
    """Judge every design under the limits by the decode rate of a device.

    Raises:
        MoesaicError: `infeasible` when no design keeps the limits.
    """
    models = list(question.models())
    points = []
    for done, model in enumerate(models):
        found = judge(question, model)
        if found is not None:
            points.append(found)
        if seen is not None:
            seen(done + 1, len(models))
    if not points:
        raise MoesaicError(
            "infeasible",
            f"none of {len(models)} designs decodes within {question.limits.tpot_s} s a token "
            f"on {question.cluster.name}",
            "/limits",
        )
    base = judge(question, question.base)
    rival = None if base is None else _rival(points, base)
    distance = None
    if base is not None and rival is not None:
        distance = _rate(rival) / _rate(base) - 1
    return DesignPlan(
        design_digest=question.digest(), question=question, frontier=frontier_of(points),
        base=base, rival=rival, like_ratio=LIKE_RATIO, base_distance_ratio=distance,
        designs_count=len(models), feasible_count=len(points),
        assumptions=(
            "quality is not estimated: more active parameters stand for it",
            "a device's rate is that of decoding; prompts are worked off elsewhere",
            *question.base.assumptions,
        ),
        sources=question.base.sources,
    )  # fmt: skip


def judge(question: Design, model: MoeModel) -> DesignPoint | None:
    """The best that one model does on the machine; none where nothing keeps the limits."""
    own = question.scenario(model)
    layouts = layout_frame(enumerate_layouts(own))
    if layouts.is_empty():
        return None
    passes = phase_points(layouts, own).filter(pl.col("phase") == "decode")
    kept, timed = _kept(passes, own)
    if kept.is_empty():
        return None
    if own.choices.batch is None:
        between = _between(passes, kept)
        if not between.is_empty():
            finer, more = _kept(between, own)
            kept = pl.concat([kept.head(1), finer]).sort(PER_DEVICE, descending=True)
            timed = pl.concat([timed, more])
    return _point(own.workload.osl, model, kept.row(0, named=True), timed)


PER_DEVICE = pl.col("request_rate_typical") / pl.col("devices")
BEST_LAYOUTS = 3
"""Layouts whose batches are tried finer."""
PARTS = 12
"""Batches tried between one that fits and the next that does not."""


def _kept(passes: pl.DataFrame, own: Scenario) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Decode candidates that keep the limits, best rate of a device first; the timed sheet."""
    found = price(number(passes), question_of(own))
    table = on_machine(serving_table(found.passes, ("disagg",), layer=found.layer), own)
    kept = within_limits(table.with_row_index("row"), own).filter(pl.col("broken").is_null())
    return kept.sort(PER_DEVICE, "row", descending=[True, False]), found.timed


def _between(passes: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Passes of the best layouts at batches between the best of each and the next tried."""
    best = kept.unique(subset=list(LAYOUT), keep="first", maintain_order=True).head(BEST_LAYOUTS)
    tried = sorted(set(passes["batch"].to_list()))
    parts = []
    for row in best.iter_rows(named=True):
        above = next((b for b in tried if b > row["batch"]), None)
        if above is None:
            continue
        step = (above - row["batch"]) / PARTS
        sizes = sorted({round(row["batch"] + i * step) for i in range(1, PARTS)})
        same = pl.all_horizontal(pl.col(name) == row[name] for name in LAYOUT)
        one = passes.filter(same).head(1).drop("batch")
        parts.append(one.join(pl.DataFrame({"batch": [float(s) for s in sizes]}), how="cross"))
    return pl.concat(parts).select(passes.columns) if parts else passes.clear()


def _point(osl: int, model: MoeModel, row: dict[str, Any], timed: pl.DataFrame) -> DesignPoint:
    (kind,) = (model.kinds[name] for name in model.kind_counts())
    attention, moe = kind.attention, kind.ffn
    assert isinstance(attention, GqaAttention)  # noqa: S101 - checked when the question was read
    assert isinstance(moe, MoeFfn)  # noqa: S101
    counted, source = count_parameters(model), weakest_source(timed)
    return DesignPoint(
        name=model.name, hidden=model.hidden, layers=model.layer_count, heads=attention.heads,
        kv_heads=attention.kv_heads, experts=moe.experts, top_k=moe.top_k, expert_width=moe.width,
        total_parameters=counted.total, active_parameters=counted.active,
        output_tokens_per_s_per_device=scaled(
            estimate_of(row, "request_rate", source), osl / row["devices"]
        ),
        tpot_s=estimate_of(row, "tpot_s", source), layout=layout_of(row),
        batch=int(row["batch"]), devices=int(row["devices"]),
    )  # fmt: skip


def _rate(point: DesignPoint) -> float:
    return point.output_tokens_per_s_per_device.typical


def frontier_of(points: list[DesignPoint]) -> tuple[DesignPoint, ...]:
    """Designs that no other beats in speed and active parameters; fastest first."""
    ordered = sorted(points, key=lambda p: (-_rate(p), -p.active_parameters, p.name))
    front: list[DesignPoint] = []
    for point in ordered:
        if not front or point.active_parameters > front[-1].active_parameters:
            front.append(point)
    return tuple(front)


def _rival(points: list[DesignPoint], base: DesignPoint) -> DesignPoint | None:
    """The fastest design no smaller than the base, in active and all parameters, nor shallower."""
    large = [
        point for point in points
        if point.active_parameters >= base.active_parameters * (1 - LIKE_RATIO)
        and point.total_parameters >= base.total_parameters * (1 - LIKE_RATIO)
        and point.layers >= base.layers
    ]  # fmt: skip
    return max(large, key=lambda p: (_rate(p), p.name), default=None)
