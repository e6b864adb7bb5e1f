"""Candidates of every machine that a question names, priced and put into one table."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from planner.candidates import enumerate_layouts, layout_frame, phase_points
from planner.pricing import Priced, price, question_of
from planner.recent import Recent
from planner.scenario import Limits, Scenario
from planner.timing.serving import SERVING, SIDES, serving_table

MACHINE: dict[str, type[pl.DataType]] = {
    "machine": pl.UInt32,  # 0: the question's cluster, then those of `also`
    "variant": pl.UInt32,  # which of the question's variants of model and copies
    "model_variant": pl.UInt32,  # which of its models: all pools run the same
    "machine_count": pl.Float64,  # devices of that machine
    "capacity_bytes": pl.Float64,
    "device_w": pl.Float64,  # null where no source states it
    "device_hour_usd": pl.Float64,  # null where the question does not
}
CANDIDATE = SERVING | MACHINE
"""One candidate for one role on one machine; `row` numbers them."""


Key = tuple[int, int]
"""Machine and variant: where a candidate's passes are found."""


def key_of(row: dict[str, Any]) -> Key:
    """The key of a candidate."""
    return int(row["machine"]), int(row["variant"])


def price_machines(scenario: Scenario) -> tuple[pl.DataFrame, dict[Key, Priced]]:
    """Price every legal candidate on every machine; a machine that has none is left out.

    A question that differs from one of late in limits, objective or load alone has its prices.

    Returns:
        Columns `row` and `CANDIDATE`; and the passes that candidates point to.

    Raises:
        MoesaicError: `infeasible` when no machine has a legal layout, `outside_evidence` when a
            format has no peak on a device.
    """
    return RECENT.get(priced_by(scenario), lambda: _price_all(scenario), _bytes_of)


Prices = tuple[pl.DataFrame, dict[Key, Priced]]
RECENT: Recent[Prices] = Recent(most_bytes=192 * 2.0**20)
"""Room for seven questions of the size of DeepSeek-V3 on 32 devices."""


def priced_by(scenario: Scenario) -> str:
    """Name what prices follow from: not the limits, save those that decide what is priced."""
    share = scenario.limits.memory_share  # experts in the host's memory fill what it leaves
    kept = {"memory_share": share} if scenario.offload is not None else {}
    unasked = {"concurrency": None, "request_rate": None}
    plain = {
        "name": "", "options": 1, "pareto": 0, "objective": "latency",
        "limits": Limits(devices=scenario.limits.devices).model_copy(update=kept),
        "workload": scenario.workload.model_copy(update=unasked),
    }  # fmt: skip
    return hashlib.sha256(scenario.model_copy(update=plain).model_dump_json().encode()).hexdigest()


def _bytes_of(prices: Prices) -> float:
    table, machines = prices
    frames = [table, *(f for priced in machines.values() for f in (priced.passes, priced.timed))]
    return float(sum(frame.estimated_size() for frame in frames))


def _price_all(scenario: Scenario) -> Prices:
    tables, priced = [], {}
    for number in range(1 + len(scenario.also)):
        own = scenario.on_machine(number)
        for variant in range(len(scenario.variants())):
            found = price_machine(own, number, variant)
            if found is not None:
                tables.append(found[0])
                priced[number, variant] = found[1]
    if not tables:
        names = [scenario.on_machine(n).cluster.name for n in range(1 + len(scenario.also))]
        raise MoesaicError(
            "infeasible", f"no legal layout of this model fits {' or '.join(names)}", "/cluster"
        )
    return numbered(tables), priced


def numbered(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """One table with the key `row`."""
    return pl.concat(tables, rechunk=True).with_row_index("row")


def price_machine(
    own: Scenario, number: int, variant: int = 0
) -> tuple[pl.DataFrame, Priced] | None:
    """Price one machine's candidates: columns `CANDIDATE`; none without a legal layout.

    Args:
        own: the question on this machine alone.
        number: the machine's number in the whole question.
        variant: which of the question's variants.
    """
    asked = own.of(own.variants()[variant])
    layouts = layout_frame(enumerate_layouts(asked))
    if layouts.is_empty():
        return None
    found = price(phase_points(layouts, asked), question_of(asked))
    table = serving_table(found.passes, own.choices.modes, layer=found.layer)
    return on_machine(_with_handover(table, found, own.cluster), own, number, variant), found


def on_machine(
    table: pl.DataFrame, own: Scenario, number: int = 0, variant: int = 0
) -> pl.DataFrame:
    """Say of candidates where they lie: columns `CANDIDATE`."""
    device = own.cluster.device
    values = {
        "machine": number, "variant": variant,
        "model_variant": own.variants()[variant].model_number,
        "machine_count": own.cluster.device_count, "capacity_bytes": device.capacity_bytes,
        "device_w": device.power_w.value if device.power_w else None,
        "device_hour_usd": own.device_hour_usd,
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
