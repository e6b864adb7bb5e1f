"""Integer programmes stated with PuLP and solved by HiGHS; the only file that knows either.

A solution carries status, bound and gap, read from the solver itself: on a time limit PuLP reports
"Optimal", and on an infeasible model it still returns numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pulp

from hwprofiles.errors import MoesaicError

Status = Literal["optimal", "feasible", "infeasible", "unbounded"]
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
        self, *, time_limit_s: float = 60.0, gap_ratio: float = 1e-6, threads: int = 1
    ) -> Solution:
        """Solve with HiGHS, fixed seed and threads.

        Raises:
            MoesaicError: `internal` when the solver itself fails.
        """
        solver = pulp.HiGHS(
            msg=False, timeLimit=time_limit_s, gapRel=gap_ratio, threads=threads, random_seed=0
        )
        self._problem.solve(solver)
        return _read(self._problem)


def _read(problem: Any) -> Solution:  # noqa: ANN401 - PuLP has no types
    highs = problem.solverModel
    info, model_status = highs.getInfo(), str(highs.getModelStatus()).rpartition(".")[2]
    if model_status in ("kInfeasible", "kUnboundedOrInfeasible"):
        return Solution("infeasible", math.nan, math.nan, math.nan, highs.getRunTime(), {})
    if model_status == "kUnbounded":
        return Solution("unbounded", math.nan, math.nan, math.nan, highs.getRunTime(), {})
    if str(info.primal_solution_status) not in ("2", "SolutionStatus.kSolutionStatusFeasible"):
        raise MoesaicError("internal", f"the solver stopped ({model_status}) without any solution")
    sign = -1.0 if problem.sense == pulp.LpMaximize else 1.0  # PuLP hands HiGHS a minimisation
    objective = sign * float(info.objective_function_value)
    whole = any(v.cat == "Integer" for v in problem.variables())
    bound = sign * float(info.mip_dual_bound) if whole else objective
    gap = abs(bound - objective) / max(abs(objective), 1e-12)
    status: Status = "optimal" if model_status == "kOptimal" else "feasible"
    values = {v.name: float(v.varValue or 0.0) for v in problem.variables()}
    return Solution(status, objective, bound, gap, highs.getRunTime(), values)
