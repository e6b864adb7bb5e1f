"""The pool programme: which candidate for which role, with how many workers, within every limit.

Variables, for a candidate c of role r on machine m: use_c in {0, 1}, workers_c in
{0 … devices of m / devices_c}, and the served rate R (requests per second). One candidate a role;
aggregated or a pool for each phase; either pool on any machine.

    maximise   R                  (where a rate is asked: minimise devices, dollars or watts;
                                   latency: minimise Σ use_c seconds_c of a whole request)
    subject to R <= Σ (workers_c - spare use_c) rate_c     over aggregated and the slower pool
               Σ workers_c devices_c <= devices            for each machine and for all
               Σ workers_c devices_c watts_c <= power      where it is limited
               Σ workers_c devices_c price_c <= budget     where it is limited
               Σ use_c <= configurations                   where they are counted
               use_c <= workers_c <= most_c use_c
               Σ use_agg + Σ use_decode = 1,  Σ use_prefill = Σ use_decode
               Σ workers_c inflight_c >= concurrency, where one is given

Fewest dollars or joules a token without a given rate is a ratio: R less λ times the weight of all
devices is maximised for rising λ until it is zero (Dinkelbach, Management Science 13, 1967).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from hwprofiles.errors import ErrorKind, MoesaicError
from planner.scenario import Limits, Scenario
from planner.search.dominance import Equals, undominated
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


def request_seconds(osl: int) -> pl.Expr:
    """What a role adds to a request's whole time, at typical values."""
    return pl.col("ttft_s_typical").fill_null(0.0) + (osl - 1) * pl.col("tpot_s_typical").fill_null(
        0.0
    )


def choose(table: pl.DataFrame, scenario: Scenario) -> Choice | None:
    """Solve the pool programme over candidates that keep their limits.

    Args:
        table: columns `SERVING`, `row` (the key) and `broken`.
        scenario: devices, limits, workload.

    Returns:
        The choice, or none when no combination fits.
    """
    allowed = table.filter(pl.col("broken").is_null())
    work = scenario.workload
    seconds = request_seconds(work.osl) if scenario.objective == LATENCY else None
    columns = undominated(allowed, work.concurrency, seconds)
    if columns.is_empty():
        return None
    weights = weights_of(columns, scenario)
    if scenario.objective in WEIGHT and work.request_rate is None:
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
    picks = tuple(pick for pick in found if pick.workers > 0)
    if scenario.objective != LATENCY:
        used = {pick.row for pick in picks}
        rows = {row["row"]: row for row in columns.iter_rows(named=True) if row["row"] in used}
        picks = _quickest(picks, rows, allowed)
    picks = tuple(sorted(picks, key=lambda pick: ORDER.index(pick.role)))
    return Choice(picks, solution, columns.height)


LATENCY: Literal["latency"] = "latency"
THROUGHPUT: Literal["output_tokens_per_s_per_device"] = "output_tokens_per_s_per_device"
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


def _quickest(
    picks: tuple[Pick, ...], rows: dict[int, dict[str, Any]], allowed: pl.DataFrame
) -> tuple[Pick, ...]:
    """Of candidates that serve the same rate on the same devices, take the one of least latency.

    The programme sees only rates; a pool that is not the slower one often has rate to spare.
    """
    served = min(pick.workers * rows[pick.row]["request_rate_typical"] for pick in picks)
    equals = Equals(allowed)
    return tuple(
        replace(pick, row=equals.quickest(rows[pick.row], served * (1 - 1e-9) / pick.workers))
        for pick in picks
    )


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
    quick = scenario.objective == LATENCY
    programme = Programme("pools", maximise=wanted is None and not quick)
    columns = [_column(programme, row, scenario) for row in table.iter_rows(named=True)]
    roles = {r: [c for c in columns if c.row["role"] == r] for r in ("agg", "prefill", "decode")}
    _devices(programme, columns, scenario)
    _one_each(programme, roles)
    served = programme.number("served", 0, wanted)
    _serve(programme, roles, served, scenario.limits.spare_workers)
    if wanted is not None:
        programme.require("request_rate", programme.total([(served, 1)]) >= wanted)
    _aim(programme, columns, served, scenario, (weights, price))
    if scenario.workload.concurrency is not None:
        _hold(programme, roles, served, scenario.workload.concurrency)
    return programme, {c.row["row"]: c.workers for c in columns}


def _aim(
    programme: Programme, columns: list[Column], served: Expression, scenario: Scenario,
    worth: tuple[dict[int, float], float],
) -> None:  # fmt: skip
    """The objective; `worth`: what a device of each row costs, and requests a unit must bring."""
    weights, price = worth
    spent = [(c.workers, c.row["devices"] * weights[c.row["row"]]) for c in columns]
    if scenario.objective == LATENCY:
        osl = scenario.workload.osl
        whole = [(c.use, request_s(c.row, osl)) for c in columns]
        programme.objective(programme.total([*whole, *((v, TINY * n) for v, n in spent)]))
    elif scenario.workload.request_rate is not None:
        programme.objective(programme.total(spent))
    else:
        least = max(price, TINY)
        programme.objective(programme.total([(served, 1), *((v, -least * n) for v, n in spent)]))


def request_s(row: dict[str, Any], osl: int) -> float:
    """As `request_seconds`, of one row."""
    return float((row["ttft_s_typical"] or 0.0) + (osl - 1) * (row["tpot_s_typical"] or 0.0))


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
    for name, column, what in SHARED:
        value = getattr(scenario.limits, name)
        if value is None:
            continue
        if any(c.row[column] is None for c in columns):
            kind: ErrorKind = "outside_evidence" if name == "power_w" else "invalid"
            path = f"/limits/{name}"
            raise MoesaicError(kind, f"limits.{name} needs {what} of every device", path)
        drawn = [(c.workers, c.row["devices"] * c.row[column]) for c in columns]
        programme.require(name.partition("_")[0], programme.total(drawn) <= value)
    if scenario.limits.configurations is not None:
        counted = programme.total([(c.use, 1) for c in columns])
        programme.require("configurations", counted <= scenario.limits.configurations)


SHARED = (
    ("power_w", "device_w", "a known power_w"),
    ("usd_per_hour", "device_hour_usd", "device_hour_usd"),
)
"""Limits of all devices in use together: name, column that weighs a device, what must be known."""


Roles = dict[str, list[Column]]


def _uses(columns: list[Column], weight: float = 1.0) -> list[tuple[Expression, float]]:
    return [(column.use, weight) for column in columns]


def _one_each(programme: Programme, roles: Roles) -> None:
    one_mode = programme.total(_uses(roles["agg"]) + _uses(roles["decode"]))
    programme.require("one_mode", one_mode == 1)
    by_model: dict[int, list[tuple[Expression, float]]] = {}
    for role, sign in (("prefill", 1.0), ("decode", -1.0)):
        for column in roles[role]:
            by_model.setdefault(column.row["model_variant"], []).append((column.use, sign))
    for number, terms in sorted(by_model.items()) or [(0, [])]:
        # Pools that pass requests on run the same model.
        name = "paired_pools" if len(by_model) <= 1 else f"paired_pools_{number}"
        programme.require(name, programme.total(terms) == 0)


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
