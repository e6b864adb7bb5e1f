"""Integer programmes stated with PuLP and solved by HiGHS; the only file that knows either.

A solution carries status, bound and gap, read from the solver itself: on a time limit PuLP reports
"Optimal", and on an infeasible model it still returns numbers. `python -m planner.search.solver`
solves an MPS file in a process of its own, which can be killed.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pulp

from hwprofiles.errors import MoesaicError
from planner.recent import Recent

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
        model = Model.of(self._problem)
        small = len(model.names) <= SMALL
        limit = {} if most_nodes is None else {"mip_max_nodes": most_nodes}
        options = {
            "mip_rel_gap": gap_ratio, "threads": threads, "time_limit": time_limit_s,
            "random_seed": 0, "mip_heuristic_run_feasibility_jump": not small, **limit,
        }  # fmt: skip
        if not small:
            return self._solved(model, options)
        key = (model, tuple(options.items()))
        return RECENT.get(key, lambda: self._solved(model, options), lambda _: model.bytes)

    def _solved(self, model: Model, options: dict[str, Any]) -> Solution:
        highs = _run(model, options)
        values = dict(zip(model.names, highs.getSolution().col_value, strict=False))
        return self._solution(_ended(highs), values, options["time_limit"])

    def relax(self) -> Relaxed:
        """Solve without whole numbers: a bound, and what variables and constraints are worth.

        Raises:
            MoesaicError: `internal` when the solver fails.
        """
        model = replace(Model.of(self._problem), whole=())
        highs = _run(model, {"threads": 1, "random_seed": 0})
        ended = _ended(highs)
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

    def solve_apart(
        self,
        *,
        time_limit_s: float,
        memory_limit_bytes: float,
        gap_ratio: float = 1e-6,
        most_nodes: int | None = None,
    ) -> Solution:
        """Solve as `solve` does, in a process of its own that is killed beyond its limits.

        Starting it takes about 0.3 s; worth it where a programme may outgrow this machine.

        Raises:
            MoesaicError: as `solve`, and `internal` when the process had to be killed.
        """
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.mps"
            self._problem.writeMPS(str(model), mpsSense=pulp.LpMinimize)
            asked = {"model": str(model), "time_limit_s": time_limit_s, "most_nodes": most_nodes,
                     "gap_ratio": gap_ratio, "memory_limit_bytes": memory_limit_bytes}  # fmt: skip
            said = _run_apart(asked)
        return self._solution(Ended(**said["ended"]), said["values"], time_limit_s)

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


@dataclass(frozen=True)
class Model:
    """A programme as HiGHS is given it: a minimisation, rows in the order they were required in."""

    names: tuple[str, ...]
    cost: tuple[float, ...]
    bounds: tuple[tuple[float | None, float | None], ...]
    """Of each variable."""
    whole: tuple[bool, ...]
    """Variables in whole numbers; empty: none is."""
    sides: tuple[tuple[float | None, float | None], ...]
    """Of each row."""
    terms: tuple[tuple[tuple[int, float], ...], ...]
    """Variables and coefficients of each row."""

    @classmethod
    def of(cls, problem: Any) -> Model:  # noqa: ANN401 - PuLP carries no types
        """What PuLP holds; its own hand-over, value by value, costs 1 ms more."""
        variables = problem.variables()
        place = {id(variable): number for number, variable in enumerate(variables)}
        sign = -1.0 if problem.sense == pulp.LpMaximize else 1.0
        cost = [0.0] * len(variables)
        for variable, worth in problem.objective.items():
            cost[place[id(variable)]] = sign * worth
        rows = problem.constraints()
        whole = tuple(v.cat == "Integer" for v in variables)
        return cls(
            names=tuple(v.name for v in variables), cost=tuple(cost),
            bounds=tuple((v.lowBound, v.upBound) for v in variables),
            whole=whole if any(whole) else (),
            sides=tuple((row.getLb(), row.getUb()) for row in rows),
            terms=tuple(
                tuple((place[id(v)], float(k)) for v, k in row.items() if k != 0) for row in rows
            ),
        )  # fmt: skip

    @property
    def bytes(self) -> float:
        """Roughly what remembering it takes."""
        return 200.0 * (len(self.names) + len(self.sides)) + 100.0 * sum(map(len, self.terms))


RECENT: Recent[Solution] = Recent(most_bytes=8 * 2.0**20)
"""Small programmes solved of late: questions that differ in a limit often come to the same one."""


def _run(model: Model, options: dict[str, Any]) -> Any:  # noqa: ANN401 - highspy has no types
    """Hand HiGHS the model as arrays and run it."""
    import highspy

    inf = highspy.kHighsInf
    given: Any = highspy.HighsLp()
    given.num_col_, given.col_cost_ = len(model.names), model.cost
    given.col_lower_, given.col_upper_ = _ends(model.bounds, inf)
    if model.whole:
        kinds = highspy.HighsVarType
        given.integrality_ = [kinds.kInteger if w else kinds.kContinuous for w in model.whole]
    given.num_row_ = len(model.sides)
    given.row_lower_, given.row_upper_ = _ends(model.sides, inf)
    matrix = given.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = len(model.names), len(model.sides)
    matrix.start_ = list(itertools.accumulate(map(len, model.terms), initial=0))
    matrix.index_ = [number for row in model.terms for number, _ in row]
    matrix.value_ = [value for row in model.terms for _, value in row]
    highs: Any = highspy.Highs  # it carries no types
    highs = highs()
    for name, value in {"output_flag": False, **options}.items():
        highs.setOptionValue(name, value)
    highs.passModel(given)
    highs.run()
    return highs


def _ends(
    pairs: tuple[tuple[float | None, float | None], ...], inf: float
) -> tuple[list[float], list[float]]:
    """Lower and upper ends; none: without end."""
    lower = [-inf if low is None else low for low, _ in pairs]
    return lower, [inf if high is None else high for _, high in pairs]


@dataclass(frozen=True)
class Ended:
    """How a run of HiGHS ended, in its own minimising sense."""

    status: str
    found: bool
    objective: float
    bound: float
    run_s: float


def _ended(highs: Any) -> Ended:  # noqa: ANN401 - highspy has no types
    info = highs.getInfo()
    return Ended(
        status=str(highs.getModelStatus()).rpartition(".")[2],
        found=str(info.primal_solution_status) in ("2", "SolutionStatus.kSolutionStatusFeasible"),
        objective=float(info.objective_function_value),
        bound=float(info.mip_dual_bound),
        run_s=float(highs.getRunTime()),
    )


GRACE_S = 5.0
"""A process may take this long beyond its time limit to start, read the model and write."""


def _run_apart(asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, json.dumps(asked)]
    limit_s = asked["time_limit_s"] + GRACE_S
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise MoesaicError("internal", f"the solver was killed after {limit_s:g} s") from None
    if done.returncode:
        raise MoesaicError(
            "internal",
            f"the solver's process ended with status {done.returncode}; it may use "
            f"{asked['memory_limit_bytes'] / 2**30:.2f} GiB and {asked['time_limit_s']:g} s",
        )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _solve_file(asked: dict[str, Any]) -> dict[str, Any]:
    """Inside the process of its own: solve a file under a memory limit."""
    import resource

    import highspy

    most = int(asked["memory_limit_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    highs: Any = highspy.Highs  # it carries no types
    highs = highs()
    options = {"output_flag": False, "time_limit": asked["time_limit_s"], "threads": 1,
               "mip_rel_gap": asked["gap_ratio"], "random_seed": 0}  # fmt: skip
    if asked["most_nodes"] is not None:
        options["mip_max_nodes"] = asked["most_nodes"]
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.readModel(asked["model"])
    highs.run()
    names = highs.getLp().col_names_
    values = dict(zip(names, highs.getSolution().col_value, strict=False))
    return {"ended": asdict(_ended(highs)), "values": values}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_solve_file(json.loads(sys.argv[1]))) + "\n")
