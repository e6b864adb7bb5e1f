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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from planner.fleet import FleetLimits
from planner.search.solver import Expression, Programme, Solution

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


class StatedFleet:
    """The programme of the module's docstring, with the variables that an answer is read from."""

    def __init__(
        self, rows: list[Row], case: Case, held: float | None = None, *, capped: bool = True,
        there: dict[int, int] | None = None,
    ) -> None:  # fmt: skip
        """State it.

        Args:
            rows: columns of the programme.
            case: demands and limits.
            held: worst served share that is already sure; then the sum of shares is maximised.
            capped: serve no class more than its demand; where a worst share is maximised, the
                programme without this is a relaxation.
            there: workers by row that are there already.
        """
        self._case, self._rows = case, rows
        self._there = there or {}
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
        workers = self.workers[key] = self.programme.integer(
            f"workers_{name}", self._there.get(key, 0)
        )
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
