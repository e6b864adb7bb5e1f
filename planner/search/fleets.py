"""Whole workers chosen for a fleet, with a bound over all columns.

Few columns are solved as one programme. Of many, patterns (`patterns`) first give a bound and, with
many classes, an answer within it. Where a gap is left, the programme is solved over the columns
that patterns use and those of least reduced cost in the relaxed programme. A column left out whose
reduced cost is above the distance between relaxed and found objective cannot improve it
(reduced-cost fixing: Nemhauser and Wolsey, Integer and Combinatorial Optimization, 1988, II.5.4);
where that holds for all of them the proof covers every column, else the tighter of the relaxed
programme's and the patterns' bound stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from hwprofiles.errors import MoesaicError
from planner.search.fleet_patterns import Packing, pack_fleet
from planner.search.fleet_programme import WEIGHT, Case, Row, StatedFleet
from planner.search.patterns import Packed
from planner.search.solver import Relaxed, Solution

FEW = 400
"""Columns up to which the whole programme is solved at once."""
KEPT = 600
"""Columns of least reduced cost that are solved in whole numbers."""
GAP_RATIO = 5e-4
NEAR_ENOUGH = 1e-3
"""Gap of patterns that the programme, which takes far longer, would hardly better."""
WHOLE = 1e-6
"""A served share this close to all of it is all of it."""
SLACK = 1e-7
"""Room under the worst share when more is sought, so that rounding cannot forbid it."""


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


def all_served(choice: FleetChoice) -> bool:
    """Whether every class is served its whole demand."""
    return choice.worst_ratio >= 1 - WHOLE


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
    able = not any(case.spares)
    packing = pack_fleet(rows, case, relaxed) if able and len(rows) > FEW else None
    if packing is not None and packing.impossible:
        return None
    if packing is not None and packing.gap_ratio <= NEAR_ENOUGH:
        return _of_packing(rows, case, relaxed, packing)
    part = _least_reduced(rows, whole, relaxed, packing)
    try:
        choice = _in_whole_numbers(part, case, relaxed)
    except MoesaicError:  # the time ended before any was found
        if packing is None or packing.packed is None:
            raise
        choice = None
    if packing is None and able and choice is not None and choice.solution.gap_ratio > GAP_RATIO:
        packing = pack_fleet(rows, case, relaxed)
    return choice if packing is None else _tighter(rows, case, relaxed, (packing, choice))


def _in_whole_numbers(part: Part, case: Case, relaxed: Relaxed) -> FleetChoice | None:
    """The programme over some columns; the bound covers those left out too."""
    kept, least_left = part
    stated = StatedFleet(kept, case)
    limit_s = case.limits.search_s
    solution = stated.programme.solve(time_limit_s=limit_s, gap_ratio=GAP_RATIO)
    if not solution.values and least_left is not None:
        raise MoesaicError("internal", f"no answer was found among {len(kept)} columns of many; "
                           "state fewer choices, or ask for less")  # fmt: skip
    if not solution.values:
        return None
    if least_left is not None:
        solution = _against_all(solution, relaxed, least_left, case)
    chosen, last = _what_is_left(kept, case, stated, solution)
    return FleetChoice(
        workers=chosen.workers_of(last), served=chosen.served_of(last),
        worst_ratio=min(last.values["worst"], 1.0), solution=solution, relaxed=relaxed,
        columns_count=len(kept), solved_columns_count=len(kept),
    )  # fmt: skip


def _tighter(
    rows: list[Row], case: Case, relaxed: Relaxed, both: tuple[Packing, FleetChoice | None]
) -> FleetChoice | None:
    """The better of what patterns and the programme found, against the tighter bound."""
    packing, choice = both
    sign = 1.0 if case.objective == "served" else -1.0
    if choice is None:
        return None if packing.packed is None else _of_packing(rows, case, relaxed, packing)
    found = choice.solution
    bound = sign * min(sign * found.bound, sign * packing.bound)
    if packing.packed is not None and sign * packing.objective > sign * found.objective:
        return _of_packing(rows, case, relaxed, replace(packing, bound=bound))
    gap = abs(bound - found.objective) / max(abs(found.objective), 1e-12)
    status = "optimal" if gap <= GAP_RATIO else found.status
    solution = replace(found, bound=bound, gap_ratio=gap, status=status)
    return replace(choice, solution=solution, columns_count=len(rows))


def _of_packing(rows: list[Row], case: Case, relaxed: Relaxed, packing: Packing) -> FleetChoice:
    """Patterns as the choice; what is left goes to the classes, or less is spent."""
    packed = packing.packed
    assert packed is not None  # noqa: S101 - asked only where one was found
    solution = Solution(
        "optimal" if packing.gap_ratio <= GAP_RATIO else "feasible", packing.objective,
        packing.bound, packing.gap_ratio, 0.0, {},
    )  # fmt: skip
    workers, shares = _workers(rows, packed), [min(share, 1.0) for share in packed.shares]
    if case.objective == "served":
        workers, shares = _rest_of_packing(rows, case, relaxed, (workers, shares))
    return FleetChoice(
        workers=workers, worst_ratio=min(shares),
        served=tuple(s * d for s, d in zip(shares, case.demands, strict=True)),
        solution=solution, relaxed=relaxed, columns_count=len(rows),
        solved_columns_count=len(packing.columns),
    )  # fmt: skip


def _what_is_left(
    kept: list[Row], case: Case, stated: StatedFleet, solution: Solution
) -> tuple[StatedFleet, Solution]:
    """With the worst share sure: the least price (else devices) if all is served, else more."""
    if case.objective != "served":
        return stated, solution
    held = solution.values["worst"]
    if held >= 1 - WHOLE:
        then = StatedFleet(kept, _then(kept, case))
    else:
        then = StatedFleet(kept, case, held=max(held - SLACK, 0.0))
    last = then.programme.solve(time_limit_s=case.limits.search_s, gap_ratio=GAP_RATIO)
    return (then, last) if last.values else (stated, solution)


def _workers(rows: list[Row], packed: Packed) -> dict[int, int]:
    return {rows[i]["row"]: n for i, n in packed.workers.items()}


Shares = tuple[dict[int, int], list[float]]
"""Workers by row, and the served share of each class."""


def _rest_of_packing(rows: list[Row], case: Case, relaxed: Relaxed, sure: Shares) -> Shares:
    """As `_what_is_left`, with the workers that patterns take as the least of each."""
    workers, shares = sure
    worst = min(shares)
    if worst >= 1 - WHOLE:
        cheap = pack_fleet(rows, _then(rows, case), relaxed).packed
        return sure if cheap is None else (_workers(rows, cheap), [1.0] * len(shares))
    then = StatedFleet(rows, case, held=max(worst - SLACK, 0.0), there=workers)
    last = then.programme.solve(time_limit_s=case.limits.search_s, gap_ratio=GAP_RATIO)
    if not last.values:
        return sure
    served = then.served_of(last)
    return then.workers_of(last), [s / d for s, d in zip(served, case.demands, strict=True)]


def _then(rows: list[Row], case: Case) -> Case:
    """What is asked once all is served: the least price, else the fewest devices."""
    priced = all(row["device_hour_usd"] is not None for row in rows)
    return replace(case, objective="cost" if priced else "devices")


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


Part = tuple[list[Row], float | None]
"""The columns to solve in whole numbers, and the least reduced cost of those left out."""


def _least_reduced(
    rows: list[Row], stated: StatedFleet, relaxed: Relaxed, packing: Packing | None
) -> Part:
    """The columns of patterns, and those of least reduced cost."""
    if len(rows) <= FEW:
        return rows, None
    costs = [relaxed.reduced_costs[str(stated.workers[row["row"]])] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (costs[i], i))
    kept = set(order[:KEPT]) | (packing.columns if packing is not None else frozenset())
    left = [costs[i] for i in order if i not in kept]
    return [rows[i] for i in sorted(kept)], min(left, default=None)


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
