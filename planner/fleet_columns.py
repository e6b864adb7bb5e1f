"""What the fleet programme sees: columns that keep their class's limits, and the case."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.fleet import Fleet
from planner.scenario import Limits
from planner.search.assignment import within_limits
from planner.search.explanation import why_infeasible
from planner.search.fleet_programme import Case
from planner.search.fleets import undominated


@dataclass(frozen=True)
class Candidates:
    """Priced candidates of all classes; columns are made once for each class and its limits."""

    table: pl.DataFrame
    """Columns `row`, `CANDIDATE`, `class`."""
    _made: dict[tuple[int, Limits], pl.DataFrame | MoesaicError] = field(default_factory=dict)

    def columns(self, fleet: Fleet) -> pl.DataFrame:
        """Undominated candidates that keep the limits of their class.

        Raises:
            MoesaicError: `infeasible`, naming the class that no candidate can serve, and its limit.
        """
        kept = []
        for number, one in enumerate(fleet.classes):
            key = number, one.limits
            if key not in self._made:
                self._made[key] = self._own(fleet, number)
            found = self._made[key]
            if isinstance(found, MoesaicError):
                raise found
            kept.append(found)
        return pl.concat(kept)

    def _own(self, fleet: Fleet, number: int) -> pl.DataFrame | MoesaicError:
        own = self.table.filter(pl.col("class") == number)
        asked = fleet.scenario(number)
        checked = within_limits(own, asked)
        allowed = checked.filter(pl.col("broken").is_null())
        if can_serve(allowed):
            return undominated(allowed)
        why = why_infeasible(checked, asked)
        return MoesaicError(
            "infeasible", f"class {fleet.classes[number].name}: {why.message}",
            f"/classes/{number}/limits",
        )  # fmt: skip


def can_serve(columns: pl.DataFrame) -> bool:
    """Whether columns of one class have workers for both phases."""
    roles = set(columns["role"].unique())
    return "agg" in roles or {"prefill", "decode"} <= roles


def case_of(fleet: Fleet, counts: tuple[int, ...] | None = None) -> Case:
    """Demands and limits of a fleet; `counts`: devices of each machine, where others are asked."""
    owned = tuple(machine.cluster.device_count for machine in fleet.machines)
    return Case(
        demands=tuple(one.demand_rate for one in fleet.classes),
        spares=tuple(one.limits.spare_workers for one in fleet.classes),
        machines=counts or owned, limits=fleet.limits, objective=fleet.objective,
    )  # fmt: skip
