"""The fleet programme: whole workers for every class of traffic on machines that all share.

Variables: workers_c in {0, 1, …} of column c (one class, role, machine, layout and batch); s_k, the
requests per second that class k is served; p_k, those of them that its prefill and decode pools
carry together; t, the worst served share. use_c in {0, 1} where configurations are counted or
workers may fail.

    maximise   t, then Σ s_k / demand_k    (or minimise devices, dollars an hour, watts with t = 1)
    subject to t demand_k <= s_k <= demand_k
               s_k <= p_k + Σ_agg workers_c rate_c
               p_k <= Σ_prefill workers_c rate_c,  p_k <= Σ_decode workers_c rate_c
               (each less spare rate_c use_c, for every c, where workers may fail)
               Σ workers_c devices_c <= devices of each machine, and of the fleet
               Σ workers_c devices_c watts <= power,  Σ workers_c devices_c price <= budget
               workers_c <= most_c use_c,  Σ use_c <= configurations

Many columns are solved in three steps: the relaxed programme over all of them, then the columns of
least reduced cost, then the programme over those. A column left out whose reduced cost is above the
distance between relaxed and found objective cannot improve it (reduced-cost fixing: Nemhauser and
Wolsey, Integer and Combinatorial Optimization, 1988, II.5.4); where that holds for all of them the
proof covers every column, else the gap is against the relaxed programme.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.fleet import FleetLimits
from planner.search.solver import Expression, Programme, Relaxed, Solution

FEW = 400
"""Columns up to which the whole programme is solved at once."""
KEPT = 600
"""Columns of least reduced cost that are solved in whole numbers."""
GAP_RATIO = 5e-4
WHOLE = 1e-6
"""A served share this close to all of it is all of it."""
SLACK = 1e-7
"""Room under the worst share when more is sought, so that rounding cannot forbid it."""
TINY = 1e-6
"""Weight of the share of devices in use beside the served share: idle ones are left free."""
Objective = Literal["served", "devices", "cost", "energy"]
WEIGHT = {"cost": "device_hour_usd", "energy": "device_w"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What the programme sees of a fleet."""

    demands: tuple[float, ...]
    """Requests per second, a class each."""
    spares: tuple[int, ...]
    """Workers of each role that may fail, a class each."""
    machines: tuple[int, ...]
    """Devices, a machine each."""
    limits: FleetLimits
    objective: Objective


@dataclass(frozen=True)
class FleetChoice:
    """Workers by row of the column table, and the proof."""

    workers: dict[int, int]
    served: tuple[float, ...]
    """Requests per second of each class."""
    worst_ratio: float
    solution: Solution
    relaxed: Relaxed
    columns_count: int
    solved_columns_count: int


def undominated(table: pl.DataFrame) -> pl.DataFrame:
    """Keep the best rate of each class, machine, role and device count: exact, as in a pool.

    Args:
        table: candidates that keep their limits, with `class`.
    """
    keys = ["class", "machine", "role", "devices"]
    best_first = table.sort(*keys, "request_rate_typical", "row",
                            descending=[False] * len(keys) + [True, False])  # fmt: skip
    return best_first.unique(subset=keys, keep="first", maintain_order=True)


def choose_fleet(columns: pl.DataFrame, case: Case) -> FleetChoice | None:
    """Solve the fleet programme.

    Args:
        columns: `row`, `class`, `role`, `machine`, `devices`, `request_rate_typical`, `device_w`,
            `device_hour_usd`.
        case: demands and limits.

    Returns:
        The choice, or none where the demand cannot be served whole and must be.

    Raises:
        MoesaicError: `invalid` when a needed price or power is not known, `internal` when the time
            ends before any solution.
    """
    _known(columns, case)
    rows = list(columns.iter_rows(named=True))
    # Uncapped, since a relaxed programme that serves all of it with room prices no column.
    whole = StatedFleet(rows, case, capped=False)
    relaxed = whole.programme.relax()
    if relaxed.infeasible:
        return None
    kept, least_left = _least_reduced(rows, whole, relaxed)
    stated = StatedFleet(kept, case)
    limit_s = case.limits.search_s
    solution = stated.programme.solve(time_limit_s=limit_s, gap_ratio=GAP_RATIO)
    if not solution.values:
        return None
    if least_left is not None:
        solution = _against_all(solution, relaxed, least_left, case)
    chosen, last = _what_is_left(kept, case, stated, solution)
    return FleetChoice(
        workers=chosen.workers_of(last), served=chosen.served_of(last),
        worst_ratio=min(last.values["worst"], 1.0), solution=solution, relaxed=relaxed,
        columns_count=len(rows), solved_columns_count=len(kept),
    )  # fmt: skip


def _what_is_left(
    kept: list[Row], case: Case, stated: StatedFleet, solution: Solution
) -> tuple[StatedFleet, Solution]:
    """With the worst share sure: the least price (else devices) if all is served, else more."""
    if case.objective != "served":
        return stated, solution
    held = solution.values["worst"]
    if held >= 1 - WHOLE:
        priced = all(row["device_hour_usd"] is not None for row in kept)
        then = StatedFleet(kept, replace(case, objective="cost" if priced else "devices"))
    else:
        then = StatedFleet(kept, case, held=max(held - SLACK, 0.0))
    last = then.programme.solve(time_limit_s=case.limits.search_s, gap_ratio=GAP_RATIO)
    return (then, last) if last.values else (stated, solution)


def _known(columns: pl.DataFrame, case: Case) -> None:
    needed = {WEIGHT.get(case.objective)}
    needed |= {"device_w"} if case.limits.power_w is not None else set()
    needed |= {"device_hour_usd"} if case.limits.usd_per_hour is not None else set()
    for name in sorted(needed - {None}, key=str):
        unknown = columns.filter(pl.col(str(name)).is_null())
        if not unknown.is_empty():
            what = "device_hour_usd" if name == "device_hour_usd" else "a known power_w"
            at = f"/machines/{min(unknown['machine'].to_list())}"
            raise MoesaicError("invalid", f"this objective or limit needs {what} of {at}", at)


def _least_reduced(
    rows: list[Row], stated: StatedFleet, relaxed: Relaxed
) -> tuple[list[Row], float | None]:
    """The columns to solve in whole numbers, and the least reduced cost of those left out."""
    if len(rows) <= FEW:
        return rows, None
    costs = [relaxed.reduced_costs[str(stated.workers[row["row"]])] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (costs[i], i))
    kept = sorted(order[:KEPT])
    return [rows[i] for i in kept], min((costs[i] for i in order[KEPT:]), default=None)


def _against_all(solution: Solution, relaxed: Relaxed, least_left: float, case: Case) -> Solution:
    """Widen a bound over some columns to all of them."""
    distance = abs(relaxed.objective - solution.objective)
    if least_left > distance:
        return solution
    sign = 1.0 if case.objective == "served" else -1.0
    bound = sign * max(sign * solution.bound, sign * relaxed.objective)
    bound = min(bound, 1.0) if case.objective == "served" else bound
    gap = abs(bound - solution.objective) / max(abs(solution.objective), 1e-12)
    status = solution.status if gap <= GAP_RATIO else "feasible"
    return replace(solution, bound=bound, gap_ratio=gap, status=status)


class StatedFleet:
    """The programme of the module's docstring, with the variables that an answer is read from."""

    def __init__(
        self, rows: list[Row], case: Case, held: float | None = None, *, capped: bool = True
    ) -> None:
        """State it.

        Args:
            rows: columns of the programme.
            case: demands and limits.
            held: worst served share that is already sure; then the sum of shares is maximised.
            capped: serve no class more than its demand; where a worst share is maximised, the
                programme without this is a relaxation.
        """
        self._case, self._rows = case, rows
        self._capped = capped or case.objective != "served"
        self.programme = Programme("fleet", maximise=case.objective == "served")
        self.workers: dict[int, Expression] = {}
        self._uses: dict[int, Expression] = {}
        for row in rows:
            self._add(row)
        self._share()
        least = 1.0 if case.objective != "served" else held or 0.0
        self.worst = self.programme.number("worst", least, 1.0 if self._capped else None)
        self.served = [self._serve(number) for number in range(len(case.demands))]
        self.programme.objective(self._aim(held))

    def _add(self, row: Row) -> None:
        case, key = self._case, row["row"]
        name = f"{row['class']}_{row['role']}_{row['machine']}_{key}"
        workers = self.workers[key] = self.programme.integer(f"workers_{name}")
        if case.limits.configurations is not None or case.spares[row["class"]]:
            most = int(case.machines[row["machine"]] // row["devices"])
            use = self._uses[key] = self.programme.binary(f"use_{name}")
            link = self.programme.total([(workers, 1), (use, -most)])
            self.programme.require(f"used_{name}", link <= 0)

    def _share(self) -> None:
        """No machine lends more devices than it has; all pools keep the fleet's limits."""
        limits = self._case.limits
        for machine, most in enumerate(self._case.machines):
            own = [(self.workers[r["row"]], r["devices"])
                   for r in self._rows if r["machine"] == machine]  # fmt: skip
            if own:
                self.programme.require(f"machine_{machine}", self.programme.total(own) <= most)
        for name, column in (("devices", None), ("power_w", "device_w"),
                             ("usd_per_hour", "device_hour_usd")):  # fmt: skip
            value = getattr(limits, name)
            if value is not None:
                self.programme.require(name, self._weighed(column) <= value)
        if limits.configurations is not None:
            counted = self.programme.total([(use, 1) for use in self._uses.values()])
            self.programme.require("configurations", counted <= limits.configurations)

    def _weighed(self, column: str | None) -> Expression:
        """Devices in use, each times a column."""
        return self.programme.total(
            (self.workers[r["row"]], r["devices"] * (r[column] if column else 1.0))
            for r in self._rows
        )

    def _serve(self, number: int) -> Expression:
        case, programme = self._case, self.programme
        demand = case.demands[number]
        most = demand if self._capped else None
        served = programme.number(f"served_{number}", 0, most)
        shared = programme.total([(served, 1), (self.worst, -demand)])
        programme.require(f"worst_{number}", shared >= 0)
        roles = {
            role: [r for r in self._rows if r["class"] == number and r["role"] == role]
            for role in ("agg", "prefill", "decode")
        }
        paired = programme.number(f"paired_{number}", 0, most)
        self._carried(f"served_by_{number}", [(served, 1), (paired, -1)], roles["agg"])
        for role in ("prefill", "decode"):
            self._carried(f"{role}_by_{number}", [(paired, 1)], roles[role])
        return served

    def _carried(self, name: str, asked: list[tuple[Expression, float]], rows: list[Row]) -> None:
        """What is asked is at most what these workers do, `spare` of any one column failing."""
        rates = [(self.workers[r["row"]], -r["request_rate_typical"]) for r in rows]
        total = self.programme.total([*asked, *rates])
        self.programme.require(name, total <= 0)
        for row in rows:
            spare = self._case.spares[row["class"]]
            if spare:
                lost = [(self._uses[row["row"]], spare * row["request_rate_typical"])]
                without = self.programme.total([*asked, *rates, *lost])
                self.programme.require(f"{name}_without_{row['row']}", without <= 0)

    def _aim(self, held: float | None) -> Expression:
        case = self._case
        if case.objective != "served":
            return self._weighed(WEIGHT.get(case.objective))
        if held is None:
            return self.programme.total([(self.worst, 1)])
        shares = [(served, 1 / (demand * len(case.demands)))
                  for served, demand in zip(self.served, case.demands, strict=True)]  # fmt: skip
        used = [(self.workers[r["row"]], -TINY * r["devices"] / sum(case.machines))
                for r in self._rows]  # fmt: skip
        return self.programme.total([*shares, *used])

    def workers_of(self, solution: Solution) -> dict[int, int]:
        """Whole workers by row, those in use."""
        found = {key: round(solution.values[str(v)]) for key, v in self.workers.items()}
        return {key: count for key, count in found.items() if count > 0}

    def served_of(self, solution: Solution) -> tuple[float, ...]:
        """Requests per second of each class."""
        return tuple(solution.values[str(served)] for served in self.served)
