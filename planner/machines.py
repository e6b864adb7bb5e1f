"""Candidates of every machine that a question names, priced and put into one table."""

from __future__ import annotations

import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from planner.candidates import enumerate_layouts, layout_frame, phase_points
from planner.pricing import Priced, price, question_of
from planner.scenario import Scenario
from planner.timing.serving import SERVING, SIDES, serving_table

MACHINE: dict[str, type[pl.DataType]] = {
    "machine": pl.UInt32,  # 0: the question's cluster, then those of `also`
    "machine_count": pl.Float64,  # devices of that machine
    "capacity_bytes": pl.Float64,
    "device_w": pl.Float64,  # null where no source states it
    "device_hour_usd": pl.Float64,  # null where the question does not
}
CANDIDATE = SERVING | MACHINE
"""One candidate for one role on one machine; `row` numbers them."""


def price_machines(scenario: Scenario) -> tuple[pl.DataFrame, tuple[Priced, ...]]:
    """Price every legal candidate on every machine.

    Returns:
        Columns `row` and `CANDIDATE`; and for each machine the passes its candidates point to.

    Raises:
        MoesaicError: `outside_evidence` when a format has no peak on a device.
    """
    tables, priced = [], []
    for number in range(1 + len(scenario.also)):
        own = scenario.on_machine(number)
        layouts = layout_frame(enumerate_layouts(own))
        if layouts.is_empty():
            raise MoesaicError(
                "infeasible", f"no legal layout of this model fits {own.cluster.name}", "/cluster"
            )
        found = price(phase_points(layouts, own), question_of(own))
        table = serving_table(found.passes, own.choices.modes, layer=found.layer)
        tables.append(_on_machine(_with_handover(table, found, own.cluster), number, own))
        priced.append(found)
    return pl.concat(tables).with_row_index("row"), tuple(priced)


def _on_machine(table: pl.DataFrame, number: int, scenario: Scenario) -> pl.DataFrame:
    device = scenario.cluster.device
    values = {
        "machine": number, "machine_count": scenario.cluster.device_count,
        "capacity_bytes": scenario.device_memory_bytes,
        "device_w": device.power_w.value if device.power_w else None,
        "device_hour_usd": scenario.device_hour_usd,
    }  # fmt: skip
    columns = [pl.lit(values[name], kind).alias(name) for name, kind in MACHINE.items()]
    return table.with_columns(columns).select(*CANDIDATE)


def _with_handover(table: pl.DataFrame, priced: Priced, cluster: Cluster) -> pl.DataFrame:
    """A prefill pool's first token waits until its cache has crossed to the decode pool.

    Every device sends the part of the cache that it holds over its own link of the outermost tier.
    """
    if not cluster.tiers or table.filter(role="prefill").is_empty():
        return table
    link = cluster.tiers[-1].bandwidth_bytes_per_s.value
    held = priced.passes.select(pl.col("point").alias("prefill_point"), "kv_bytes")
    crossing = pl.when(pl.col("role") == "prefill").then(pl.col("kv_bytes") / link).otherwise(0.0)
    joined = table.join(held, on="prefill_point", how="left", maintain_order="left")
    return joined.with_columns(
        (pl.col(f"ttft_s_{side}") + crossing).alias(f"ttft_s_{side}") for side in SIDES
    ).drop("kv_bytes")
