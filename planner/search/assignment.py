"""The pool programme: which candidate for which role, with how many workers, within every limit.

Variables, for a candidate c of role r on machine m: use_c in {0, 1}, workers_c in
{0 … devices of m / devices_c}, and the served rate R (requests per second). One candidate a role;
aggregated or a pool for each phase; either pool on any machine.

    maximise   R                  (where a rate is asked: minimise devices, dollars or watts)
    subject to R <= Σ (workers_c - spare use_c) rate_c     over aggregated and the slower pool
               Σ workers_c devices_c <= devices            for each machine and for all
               Σ workers_c devices_c watts_c <= power      where it is limited
               use_c <= workers_c <= most_c use_c
               Σ use_agg + Σ use_decode = 1,  Σ use_prefill = Σ use_decode
               Σ workers_c inflight_c >= concurrency, where one is given

Fewest dollars or joules a token without a given rate is a ratio: R less λ times the weight of all
devices is maximised for rising λ until it is zero (Dinkelbach, Management Science 13, 1967).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.scenario import Limits, Scenario
from planner.search.solver import Expression, Programme, Solution

GIB = 2.0**30
TINY = 1e-6
"""Weight of the device count beside the rate: of two equal plans the smaller one is taken."""


@dataclass(frozen=True)
class Pick:
    """One role of a choice: the candidate's row of the serving table and its worker count."""

    row: int
    role: str
    workers: int


@dataclass(frozen=True)
class Choice:
    """The programme's answer."""

    picks: tuple[Pick, ...]
    solution: Solution
    columns_count: int


def within_limits(table: pl.DataFrame, scenario: Scenario) -> pl.DataFrame:
    """Add `broken`, the name of the first limit a candidate breaks, null where it keeps all."""
    limits, side = scenario.limits, scenario.limits.side
    checks = {"memory_share": pl.col("total_bytes") > _room(limits)}
    for name in ("ttft_s", "tpot_s"):
        limit = getattr(limits, name)
        if limit is not None:
            checks[name] = pl.col(f"{name}_{side}") > limit
    broken = pl.lit(None, pl.String)
    for name, check in reversed(checks.items()):
        broken = pl.when(check.fill_null(value=False)).then(pl.lit(name)).otherwise(broken)
    return table.with_columns(broken.alias("broken"))


def _room(limits: Limits) -> pl.Expr:
    return pl.col("capacity_bytes") * limits.memory_share


def broken_text(row: dict[str, Any], limits: Limits) -> str:
    """Say why a candidate that breaks a limit is not allowed."""
    name = row["broken"]
    if name == "memory_share":
        free = row["capacity_bytes"] * limits.memory_share
        need = row["total_bytes"]
        return f"needs {need / GIB:.1f} GiB a device, of which {free / GIB:.1f} are free"
    word = "may reach" if limits.side == "high" else "is"
    got, most = row[f"{name}_{limits.side}"] * 1e3, getattr(limits, name) * 1e3
    label = name.removesuffix("_s").upper()
    return f"{label} {word} {got:.1f} ms, the limit is {most:.1f} ms"


def undominated(table: pl.DataFrame, concurrency: int | None) -> pl.DataFrame:
    """Keep, for each role and device count, the candidates no other beats in rate and inflight.

    Exact: limits are checked before, and the programme sees only devices, rate and inflight. With a
    given concurrency a smaller inflight can serve faster, so every inflight keeps its best.
    """
    keys = ["machine", "role", "devices"] + ["inflight"] * (concurrency is not None)
    best_first = table.sort(*keys, "request_rate_typical", "row",
                            descending=[False] * len(keys) + [True, False])  # fmt: skip
    return best_first.unique(subset=keys, keep="first", maintain_order=True)


def choose(table: pl.DataFrame, scenario: Scenario) -> Choice | None:
    """Solve the pool programme over candidates that keep their limits.

    Args:
        table: columns `SERVING`, `row` (the key) and `broken`.
        scenario: devices, limits, workload.

    Returns:
        The choice, or none when no combination fits.
    """
    allowed = table.filter(pl.col("broken").is_null())
    columns = undominated(allowed, scenario.workload.concurrency)
    if columns.is_empty():
        return None
    weights = weights_of(columns, scenario)
    if scenario.objective != THROUGHPUT and scenario.workload.request_rate is None:
        solution, workers = _least_ratio(columns, weights, scenario)
    else:
        programme, workers = state_programme(columns, weights, scenario)
        solution = programme.solve()
    if not solution.values:
        return None
    found = [
        Pick(row["row"], row["role"], round(solution.values[str(workers[row["row"]])]))
        for row in columns.iter_rows(named=True)
    ]
    picks = _quickest([pick for pick in found if pick.workers > 0], allowed)
    return Choice(picks, solution, columns.height)


THROUGHPUT = "output_tokens_per_s_per_device"
WEIGHT = {"cost": "device_hour_usd", "energy": "device_w"}
"""Column that weighs a device under an objective; devices count as one under throughput."""


def weights_of(columns: pl.DataFrame, scenario: Scenario) -> dict[int, float]:
    """What one device of each candidate costs in the objective's currency, by row.

    Raises:
        MoesaicError: `invalid` when a machine has no price or no known power.
    """
    name = WEIGHT.get(scenario.objective)
    if name is None:
        return dict.fromkeys(columns["row"], 1.0)
    if columns[name].null_count():
        what = "device_hour_usd" if name == "device_hour_usd" else "a known power_w"
        raise MoesaicError(
            "invalid", f"objective {scenario.objective} needs {what} for every machine",
            "/objective",
        )  # fmt: skip
    return dict(zip(columns["row"], columns[name], strict=True))


def _least_ratio(
    columns: pl.DataFrame, weights: dict[int, float], scenario: Scenario
) -> tuple[Solution, dict[int, Expression]]:
    """Most requests for each unit of weight: Dinkelbach's iterations, each a programme."""
    price = 0.0
    for _ in range(RATIO_STEPS):
        programme, workers = state_programme(columns, weights, scenario, price)
        solution = programme.solve()
        if not solution.values:
            return solution, workers
        spent = sum(
            solution.values[str(workers[row["row"]])] * row["devices"] * weights[row["row"]]
            for row in columns.iter_rows(named=True)
        )
        ratio = solution.values["served"] / spent
        if ratio <= price * (1 + 1e-9):
            break
        price = ratio
    return solution, workers


RATIO_STEPS = 30
"""Dinkelbach's iterations converge faster than linearly; this many are never needed."""


ORDER = ("prefill", "agg", "decode")
"""Roles in the order a request meets them."""


def _quickest(picks: list[Pick], allowed: pl.DataFrame) -> tuple[Pick, ...]:
    """Of candidates that serve the same rate on the same devices, take the one of least latency.

    The programme sees only rates; a pool that is not the slower one often has rate to spare.
    """
    rows = {pick.row: allowed.filter(row=pick.row).row(0, named=True) for pick in picks}
    served = min(pick.workers * rows[pick.row]["request_rate_typical"] for pick in picks)
    swapped = []
    for pick in picks:
        row = rows[pick.row]
        latency = "ttft_s_typical" if pick.role == "prefill" else "tpot_s_typical"
        equal = allowed.filter(
            pl.col("role") == pick.role,
            pl.col("machine") == row["machine"],
            pl.col("devices") == row["devices"],
            pl.col("request_rate_typical") * pick.workers >= served * (1 - 1e-9),
            (pl.col("inflight") >= row["inflight"]) | (pick.role == "prefill"),
        )
        best = equal.sort(latency, "row").row(0, named=True)
        swapped.append(Pick(best["row"], pick.role, pick.workers))
    return tuple(sorted(swapped, key=lambda pick: ORDER.index(pick.role)))


def device_limit(scenario: Scenario) -> int:
    """Devices a plan may use, all machines together."""
    return min(scenario.limits.devices or scenario.device_count, scenario.device_count)


@dataclass(frozen=True)
class Column:
    """One candidate in the programme: its two variables and its row of the serving table."""

    use: Expression
    workers: Expression
    row: dict[str, Any]


def state_programme(
    table: pl.DataFrame, weights: dict[int, float], scenario: Scenario, price: float = 0.0
) -> tuple[Programme, dict[int, Expression]]:
    """Write the programme of the module's docstring.

    Args:
        table: undominated candidates.
        weights: what a device of each row costs in the objective.
        scenario: limits and workload.
        price: requests per second that a unit of weight must bring; zero: all weight is free.

    Returns:
        The programme and the worker variable of each row.
    """
    wanted = scenario.workload.request_rate
    programme = Programme("pools", maximise=wanted is None)
    columns = [_column(programme, row, scenario) for row in table.iter_rows(named=True)]
    roles = {r: [c for c in columns if c.row["role"] == r] for r in ("agg", "prefill", "decode")}
    _devices(programme, columns, scenario)
    _one_each(programme, roles)
    served = programme.number("served", 0, wanted)
    _serve(programme, roles, served, scenario.limits.spare_workers)
    spent = [(c.workers, c.row["devices"] * weights[c.row["row"]]) for c in columns]
    if wanted is not None:
        programme.require("request_rate", programme.total([(served, 1)]) >= wanted)
        programme.objective(programme.total(spent))
    else:
        least = max(price, TINY)
        programme.objective(programme.total([(served, 1), *((v, -least * n) for v, n in spent)]))
    if scenario.workload.concurrency is not None:
        _hold(programme, roles, served, scenario.workload.concurrency)
    return programme, {c.row["row"]: c.workers for c in columns}


def _column(programme: Programme, row: dict[str, Any], scenario: Scenario) -> Column:
    name = f"{row['role']}_{row['row']}"
    most = int(min(row["machine_count"], device_limit(scenario)) // row["devices"])
    column = Column(
        programme.binary(f"use_{name}"), programme.integer(f"workers_{name}", 0, most), row
    )
    link = programme.total([(column.workers, 1), (column.use, -most)])
    programme.require(f"used_{name}", link <= 0)
    least = 1 + scenario.limits.spare_workers
    some = programme.total([(column.workers, 1), (column.use, -least)])
    programme.require(f"some_{name}", some >= 0)
    return column


def _devices(programme: Programme, columns: list[Column], scenario: Scenario) -> None:
    """No machine lends more devices than it has; all together keep the device and power limits."""
    used = [(c.workers, c.row["devices"]) for c in columns]
    programme.require("devices", programme.total(used) <= device_limit(scenario))
    machines = sorted({c.row["machine"] for c in columns})
    for machine in machines if scenario.also else ():
        own = [c for c in columns if c.row["machine"] == machine]
        held = programme.total([(c.workers, c.row["devices"]) for c in own])
        programme.require(f"devices_{machine}", held <= own[0].row["machine_count"])
    if scenario.limits.power_w is not None:
        unknown = [c for c in columns if c.row["device_w"] is None]
        if unknown:
            raise MoesaicError(
                "outside_evidence", "limits.power_w needs a known power_w of every device",
                "/limits/power_w",
            )  # fmt: skip
        drawn = [(c.workers, c.row["devices"] * c.row["device_w"]) for c in columns]
        programme.require("power", programme.total(drawn) <= scenario.limits.power_w)


Roles = dict[str, list[Column]]


def _uses(columns: list[Column], weight: float = 1.0) -> list[tuple[Expression, float]]:
    return [(column.use, weight) for column in columns]


def _one_each(programme: Programme, roles: Roles) -> None:
    one_mode = programme.total(_uses(roles["agg"]) + _uses(roles["decode"]))
    programme.require("one_mode", one_mode == 1)
    paired = programme.total(_uses(roles["prefill"]) + _uses(roles["decode"], -1.0))
    programme.require("paired_pools", paired == 0)


def _serve(programme: Programme, roles: Roles, served: Expression, spare: int) -> None:
    """R is at most what aggregated workers and either pool can do; unused roles can do nothing."""
    together = _rates(roles["agg"], spare)
    for pool in ("prefill", "decode"):
        rates = _rates(roles[pool], spare)
        programme.require(f"rate_{pool}", programme.total([(served, 1), *together, *rates]) <= 0)


def _rates(columns: list[Column], spare: int) -> list[tuple[Expression, float]]:
    """Rates of workers, `spare` of them taken away, as negative terms."""
    terms = [(c.workers, -c.row["request_rate_typical"]) for c in columns]
    if spare:
        terms += [(c.use, spare * c.row["request_rate_typical"]) for c in columns]
    return terms


def _hold(programme: Programme, roles: Roles, served: Expression, concurrency: int) -> None:
    """Every user has a place, and users in flight bound the rate (Little's law)."""
    decoding = [*roles["agg"], *roles["decode"]]
    places = programme.total([(c.workers, c.row["inflight"]) for c in decoding])
    programme.require("concurrency", places >= concurrency)
    little = [
        (c.use, -concurrency * c.row["request_rate_typical"] / c.row["inflight"]) for c in decoding
    ]
    programme.require("little", programme.total([(served, 1), *little]) <= 0)
