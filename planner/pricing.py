"""Forward passes priced: load of the busiest rank, work sheet, seconds, resident bytes."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from hwprofiles.cluster import Cluster
from planner.engines import Engine, load_engine
from planner.moe_model import MoeModel
from planner.routing import Routing, device_load, expert_shares
from planner.scenario import Scenario
from planner.timing.step import step_seconds, time_sheet
from planner.work.memory import add_memory
from planner.work.rows import Formats
from planner.work.sheet import build_sheet, formats_of


@dataclass(frozen=True)
class Question:
    """What every pass of one question shares."""

    model: MoeModel
    cluster: Cluster
    engine: Engine
    routing: Routing
    formats: Formats


@dataclass(frozen=True)
class Priced:
    """Passes with seconds and bytes, and the timed sheet that explains them."""

    passes: pl.DataFrame
    timed: pl.DataFrame


def question_of(scenario: Scenario) -> Question:
    """The shared part of a scenario."""
    choices = scenario.choices
    formats = formats_of(scenario.model, choices.precision, choices.kv_dtype, choices.exchange)
    engine = load_engine(choices.backend)
    return Question(scenario.model, scenario.cluster, engine, scenario.routing, formats)


def price(points: pl.DataFrame, question: Question) -> Priced:
    """Price forward passes.

    Args:
        points: columns `POINT`.
        question: what they share.

    Returns:
        `passes`: the points with `busy_ratio`, `active_experts`, `low_s`, `typical_s`, `high_s`,
        the columns of `MEMORY` and `total_bytes`; `timed`: the timed work sheet.
    """
    loaded = add_load(points, question)
    sheet = build_sheet(loaded, question.model, question.formats)
    timed = time_sheet(sheet, question.cluster, question.engine)
    seconds = step_seconds(timed, loaded, question.engine, question.model.layer_count)
    sized = add_memory(loaded, question.model, question.formats, question.engine.buffer_bytes)
    return Priced(sized.join(seconds, on="point", maintain_order="left"), timed)


def add_load(points: pl.DataFrame, question: Question) -> pl.DataFrame:
    """Add the busiest expert rank's load, columns `busy_ratio` and `active_experts`."""
    moe = question.model.moe
    if moe is None:
        none = [pl.lit(1.0).alias("busy_ratio"), pl.lit(0.0).alias("active_experts")]
        return points.with_columns(none)
    shares = expert_shares(question.routing, moe, len(question.model.moe_layers))
    tokens = points.select(pl.col("batch") * pl.col("new_tokens") * pl.col("dp")).to_series()
    load = device_load(
        shares, moe, points["moe_ep"].to_numpy(), tokens.to_numpy(),
        redundant=points["redundant_experts"].to_numpy(),
    )  # fmt: skip
    return points.with_columns(
        pl.Series("busy_ratio", load.busy_ratio), pl.Series("active_experts", load.active_experts)
    )
