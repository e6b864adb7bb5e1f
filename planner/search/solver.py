"""Integer programmes stated with PuLP and solved by HiGHS; the only file that knows either.

A solution carries status, bound and gap, read from the solver itself: on a time limit PuLP reports
"Optimal", and on an infeasible model it still returns numbers. Larger programmes can be solved in a
process of their own (`solver_process`), which is killed beyond its limits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pulp

from hwprofiles.errors import MoesaicError
from planner.recent import Recent
from planner.search import solver_process
from planner.search.solver_process import Asked, Ended, Model, read_end, run, solve_apart

Status = Literal["optimal", "feasible", "infeasible", "unbounded", "open"]
"""Open: a limit on nodes ended the search before anything was found; only the bound is known."""
Expression = Any
"""A linear expression of PuLP; it carries no types of its own."""


@dataclass(frozen=True)
class Solution:
    """What the solver found and proved.

    `bound` is the best objective any solution could have; `gap_ratio` is the distance to it as a
    share of the objective. Both are nan when nothing was found.
    """

    status: Status
    objective: float
    bound: float
    gap_ratio: float
    solve_s: float
    values: dict[str, float]


@dataclass(frozen=True)
class Relaxed:
    """A programme without its whole numbers."""

    infeasible: bool
    objective: float
    """No solution in whole numbers can be better."""
    reduced_costs: dict[str, float]
    """What a unit of each variable at its lower bound worsens the objective by, at least."""
    shadow_prices: dict[str, float]
    """What a unit more of each constraint's right-hand side adds to the objective."""
    solve_s: float


MOST_HERE = 500
"""Variables up to which a guarded programme is solved in the asking process: milliseconds."""
MEMORY_BYTES = 8 * 2.0**30
"""Address space of a solver's process where nothing else is said."""
LEAST_S = 0.1
"""Seconds that a programme gets when the time is over: enough for a first answer."""
SMALL = 100
"""Variables up to which the feasibility jump costs more than it saves (6 ms of 8 for 19)."""


class Programme:
    """One programme under construction: variables, named constraints, one objective."""

    def __init__(self, name: str, *, maximise: bool) -> None:
        self._problem: Any = pulp.LpProblem(name, pulp.LpMaximize if maximise else pulp.LpMinimize)

    def binary(self, name: str) -> Expression:
        """Add a variable that is 0 or 1."""
        return self._problem.add_variable(name, cat="Binary")

    def integer(self, name: str, low: float = 0, high: float | None = None) -> Expression:
        """Add a whole-number variable."""
        return self._problem.add_variable(name, low, high, "Integer")

    def number(self, name: str, low: float | None = 0, high: float | None = None) -> Expression:
        """Add a continuous variable."""
        return self._problem.add_variable(name, low, high)

    def total(self, terms: Iterable[tuple[Expression, float]]) -> Expression:
        """Sum variable × coefficient pairs in PuLP's list form."""
        return pulp.LpAffineExpression(list(terms))

    def variable(self, name: str) -> Expression:
        """The variable of a name."""
        return next(v for v in self._problem.variables() if v.name == name)

    def require(self, name: str, constraint: Expression) -> None:
        """Add a constraint under a name that explanations may use."""
        self._problem.addConstraint(constraint, name)

    def objective(self, expression: Expression) -> None:
        """Set what is maximised or minimised."""
        self._problem.setObjective(expression)

    def write_lp(self, path: Path) -> None:
        """Write the programme in LP format, for review."""
        self._problem.writeLP(str(path))

    def solve(
        self,
        *,
        time_limit_s: float = 60.0,
        gap_ratio: float = 1e-6,
        threads: int = 1,
        most_nodes: int | None = None,
    ) -> Solution:
        """Solve with HiGHS in this process, fixed seed and threads.

        Args:
            time_limit_s: how long it may take; what is found then depends on the machine.
            gap_ratio: distance to the bound that is near enough.
            threads: how many work.
            most_nodes: of the branching tree; the same question ends at the same answer.

        Raises:
            MoesaicError: `internal` when the time limit comes before any solution, or the solver
                fails.
        """
        model = model_of(self._problem)
        options = _options(model, gap_ratio, threads, most_nodes) | {"time_limit": time_limit_s}
        if len(model.names) > SMALL:
            return self._solved(model, options)
        key = (model, tuple(options.items()))
        return RECENT.get(key, lambda: self._solved(model, options), lambda _: model.bytes)

    def _solved(self, model: Model, options: dict[str, Any]) -> Solution:
        highs = run(model, options)
        values = dict(zip(model.names, highs.getSolution().col_value, strict=False))
        return self._solution(read_end(highs), values, options["time_limit"])

    def relax(self) -> Relaxed:
        """Solve without whole numbers: a bound, and what variables and constraints are worth.

        Raises:
            MoesaicError: `internal` when the solver fails.
        """
        model = replace(model_of(self._problem), whole=())
        highs = run(model, {"threads": 1, "random_seed": 0})
        ended = read_end(highs)
        sign = -1.0 if self._problem.sense == pulp.LpMaximize else 1.0
        if ended.status != "kOptimal":
            return Relaxed(ended.status == "kInfeasible", math.nan, {}, {}, ended.run_s)
        duals = highs.getSolution()
        rows = [constraint.name for constraint in self._problem.constraints()]
        return Relaxed(
            infeasible=False, objective=sign * ended.objective,
            reduced_costs=dict(zip(model.names, duals.col_dual, strict=True)),
            shadow_prices={row: sign * price for row, price in
                           zip(rows, duals.row_dual, strict=True)},
            solve_s=ended.run_s,
        )  # fmt: skip

    def solve_guarded(
        self, *, time_limit_s: float = 60.0, gap_ratio: float = 1e-6, most_nodes: int | None = None
    ) -> Solution:
        """Solve small programmes here, larger ones in a kept process, within the limits set.

        `limited` sets time and memory for all programmes of a question.

        Raises:
            MoesaicError: as `solve_apart`.
        """
        until, memory_limit_bytes = _LIMITS.get()
        left_s = max(min(time_limit_s, until - time.perf_counter()), LEAST_S)
        if len(self._problem.variables()) <= MOST_HERE:
            return self.solve(time_limit_s=left_s, gap_ratio=gap_ratio, most_nodes=most_nodes)
        return self.solve_apart(
            time_limit_s=left_s, memory_limit_bytes=memory_limit_bytes, gap_ratio=gap_ratio,
            most_nodes=most_nodes,
        )  # fmt: skip

    def attempt(
        self, *, time_limit_s: float, gap_ratio: float = 1e-6, most_nodes: int | None = None
    ) -> Solution | None:
        """As `solve_guarded`; none where its limits ended it before anything was found."""
        try:
            return self.solve_guarded(
                time_limit_s=time_limit_s, gap_ratio=gap_ratio, most_nodes=most_nodes
            )
        except MoesaicError:
            return None

    def solve_apart(
        self, *, time_limit_s: float, memory_limit_bytes: float, gap_ratio: float = 1e-6,
        most_nodes: int | None = None,
    ) -> Solution:  # fmt: skip
        """Solve as `solve` does, in a process of its own that is killed beyond its limits.

        The process is kept for the next programme. What it found before it was killed or died is
        the answer, flagged `feasible` with its gap.

        Raises:
            MoesaicError: as `solve`, and `internal` when the process had to be killed, or died,
                before it had found a solution and a bound.
        """
        model = model_of(self._problem)
        options = _options(model, gap_ratio, 1, most_nodes) | {"time_limit": time_limit_s}
        said = solve_apart(Asked(model, options, memory_limit_bytes))
        if said.status in ("died", "killed") and not (said.found and math.isfinite(said.bound)):
            limit_s = time_limit_s + solver_process.GRACE_S
            why = f"was killed after {limit_s:g} s" if said.status == "killed" else "died"
            raise MoesaicError(
                "internal",
                f"{self._problem.name}: the solver's process {why} and had found nothing; it may "
                f"use {memory_limit_bytes / 2**30:.2f} GiB and {time_limit_s:g} s",
            )
        values = dict(zip(model.names, said.values, strict=False))
        return self._solution(said, values, time_limit_s)

    def _solution(self, ended: Ended, values: dict[str, float], time_limit_s: float) -> Solution:
        if ended.status in ("kInfeasible", "kUnboundedOrInfeasible"):
            return Solution("infeasible", math.nan, math.nan, math.nan, ended.run_s, {})
        if ended.status == "kUnbounded":
            return Solution("unbounded", math.nan, math.nan, math.nan, ended.run_s, {})
        # PuLP hands HiGHS a minimisation, whichever was asked.
        sign = -1.0 if self._problem.sense == pulp.LpMaximize else 1.0
        whole = any(v.cat == "Integer" for v in self._problem.variables())
        objective = sign * ended.objective
        bound = sign * ended.bound if whole else objective
        if ended.status == "kMemoryLimit":
            raise MoesaicError(
                "internal", f"{self._problem.name}: the memory limit ended the search; allow more "
                "GiB or ask for less"
            )  # fmt: skip
        if not ended.found and ended.status == "kSolutionLimit":
            return Solution("open", math.nan, bound, math.nan, ended.run_s, {})
        if not ended.found:
            raise MoesaicError(
                "internal",
                f"{self._problem.name}: no solution within {time_limit_s:g} s ({ended.status}), "
                f"none can be better than {bound:.6g}; allow more time or ask for less",
            )
        gap = abs(bound - objective) / max(abs(objective), 1e-12)
        status: Status = "optimal" if ended.status == "kOptimal" else "feasible"
        return Solution(status, objective, bound, gap, ended.run_s, values)


def model_of(problem: Any) -> Model:  # noqa: ANN401 - PuLP carries no types
    """What PuLP holds; its own hand-over, value by value, costs 1 ms more."""
    variables = problem.variables()
    place = {id(variable): number for number, variable in enumerate(variables)}
    sign = -1.0 if problem.sense == pulp.LpMaximize else 1.0
    cost = [0.0] * len(variables)
    for variable, worth in problem.objective.items():
        cost[place[id(variable)]] = sign * worth
    rows = problem.constraints()
    whole = tuple(v.cat == "Integer" for v in variables)
    return Model(
        names=tuple(v.name for v in variables), cost=tuple(cost),
        bounds=tuple((v.lowBound, v.upBound) for v in variables),
        whole=whole if any(whole) else (),
        sides=tuple((row.getLb(), row.getUb()) for row in rows),
        terms=tuple(
            tuple((place[id(v)], float(k)) for v, k in row.items() if k != 0) for row in rows
        ),
    )  # fmt: skip


RECENT: Recent[Solution] = Recent(most_bytes=8 * 2.0**20)
"""Small programmes solved of late: questions that differ in a limit often come to the same one."""


def _options(
    model: Model, gap_ratio: float, threads: int, most_nodes: int | None
) -> dict[str, Any]:
    """What HiGHS is told, here as in a process of its own."""
    limit = {} if most_nodes is None else {"mip_max_nodes": most_nodes}
    return {
        "mip_rel_gap": gap_ratio, "threads": threads, "random_seed": 0,
        "mip_heuristic_run_feasibility_jump": len(model.names) > SMALL, **limit,
    }  # fmt: skip


_LIMITS: ContextVar[tuple[float, float]] = ContextVar("limits", default=(math.inf, MEMORY_BYTES))


@contextlib.contextmanager
def limited(time_limit_s: float, memory_limit_bytes: float) -> Iterator[None]:
    """Limit all programmes that are solved guarded inside, together."""
    until = min(time.perf_counter() + time_limit_s, _LIMITS.get()[0])
    token = _LIMITS.set((until, memory_limit_bytes))
    try:
        yield
    finally:
        _LIMITS.reset(token)
