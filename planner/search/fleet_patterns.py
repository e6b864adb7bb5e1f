"""A fleet of many classes solved by patterns: its best whole workers, and the bound on any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.search.cover import Floats
from planner.search.fleet_programme import WEIGHT, Case, Row
from planner.search.patterns import NEAR, Limited, Packed, PatternSearch
from planner.search.solver import Relaxed

BELOW = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Parts of the highest share by which less is tried, until whole patterns fit."""
VARIED_FROM = 2
"""The step of `BELOW` before which more patterns are made."""
ENOUGH = 1e-9


@dataclass(frozen=True)
class Packing:
    """What patterns say of a fleet."""

    packed: Packed | None
    """None where no whole patterns were found."""
    objective: float
    """The worst served share, or the weight of all devices in use; nan where none was found."""
    bound: float
    columns: frozenset[int] = frozenset()
    """Numbers of the rows that some pattern uses."""
    impossible: bool = False
    """Proven: not all of the demand can be served."""

    @property
    def gap_ratio(self) -> float:
        """Distance to the bound as a share of the objective."""
        if self.packed is None:
            return float("inf")
        return abs(self.bound - self.objective) / max(abs(self.objective), 1e-12)


def pack_fleet(rows: list[Row], case: Case, relaxed: Relaxed) -> Packing:
    """Solve a fleet in which no worker may fail by patterns.

    Args:
        rows: the columns.
        case: demands and limits; how many configurations are used is only checked.
        relaxed: of the whole programme, uncapped: its prices are where pricing begins.
    """
    limited = limited_of(rows, case)
    most = min(relaxed.objective, 1.0) if case.objective == "served" else 1.0
    if most <= ENOUGH:
        return Packing(None, 0.0, 0.0)
    search = PatternSearch(limited, case.demands, most)
    highest = search.highest_share(_first_prices(limited, relaxed))
    if case.objective == "served":
        return _most_served(search, case, highest)
    if highest < 1.0 - ENOUGH:
        return Packing(None, np.nan, np.nan, impossible=True)
    bound = search.least_weight()
    packed = search.packed(1.0, case.limits.search_s)
    if packed is None or packed.weight > bound * (1 + NEAR):
        search.vary(1.0)
        packed = search.packed(1.0, case.limits.search_s) or packed
    weight = np.nan if packed is None else packed.weight
    return Packing(packed, weight, bound, search.columns())


def _most_served(search: PatternSearch, case: Case, highest: float) -> Packing:
    """Whole patterns at the highest share at which they are found."""
    for less in BELOW:
        if less == BELOW[VARIED_FROM]:
            search.vary(highest)
        packed = search.packed(highest * (1 - less), case.limits.search_s / len(BELOW))
        if packed is not None:
            worst = min(*packed.shares, highest)
            return Packing(packed, worst, highest, search.columns())
    return Packing(None, np.nan, highest, search.columns())


def _first_prices(limited: Limited, relaxed: Relaxed) -> Floats:
    """Prices of limits in the relaxed programme; where it has none, all limits alike."""
    prices = np.array([abs(relaxed.shadow_prices.get(name, 0.0)) for name in limited.names])
    return prices if prices @ limited.limit > 0 else 1.0 / np.maximum(limited.limit, 1e-12)


def limited_of(rows: list[Row], case: Case) -> Limited:
    """What a worker of each column uses of each shared limit, and what it weighs."""
    devices = np.array([row["devices"] for row in rows], float)
    machines = np.array([row["machine"] for row in rows])
    use = {f"machine_{m}": devices * (machines == m) for m in sorted(set(machines.tolist()))}
    limit = {name: float(case.machines[int(name.removeprefix("machine_"))]) for name in use}
    for name, column in (("devices", None), ("power_w", "device_w"),
                         ("usd_per_hour", "device_hour_usd")):  # fmt: skip
        value = getattr(case.limits, name)
        if value is not None:
            use[name], limit[name] = _weighed(rows, devices, column), float(value)
    weight = np.zeros(len(rows))
    if case.objective != "served":
        weight = _weighed(rows, devices, WEIGHT.get(case.objective))
    names = tuple(use)
    return Limited(rows, names, np.stack([use[n] for n in names], axis=1),
                   np.array([limit[n] for n in names]), weight,
                   case.limits.configurations)  # fmt: skip


def _weighed(rows: list[Row], devices: Floats, column: str | None) -> Floats:
    return devices if column is None else devices * np.array([row[column] for row in rows], float)
