"""Many classes that share a fleet, solved by patterns: what one class uses to be served a share.

The programme of `fleets` falls apart by class but for its shared limits. With the share t fixed, a
class takes one of its patterns p (whole workers that serve t of its demand):

    Σ_k Σ_p use_p,l y_kp <= limit_l for every shared limit l,  Σ_p y_kp = 1,  y_kp in {0, 1}

Patterns are made as prices of the limits ask for them (Dantzig and Wolfe, Operations Research 8,
1960; Gilmore and Gomory, Operations Research 9, 1961): each class's cheapest pattern is a knapsack.
As a class's workers stay whole there, the bound is tighter than the relaxed programme's, and few
classes are fractional: no more than there are limits. At prices λ with Σ λ_l limit_l = 1 no share t
is possible at which the classes' cheapest patterns together cost more than 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.search.cover import Cover, Floats, Whole
from planner.search.solver import Expression, Programme, Relaxed

Row = dict[str, Any]
GRID = 2**20
"""Levels of all classes' grids together."""
FINEST, COARSEST = 2**17, 2**14
ROUNDS = 40
"""Rounds of pricing; 5 to 10 are the rule."""
NEAR = 3e-4
"""Share of the demand that rounding to the grid may cost a pattern."""
SPREAD = (0.0, 3e-4, 1e-3, 3e-3)
"""Patterns that serve this much more are made too: whole ones must fit each other."""
KEPT_PRICES = 4
"""Price vectors, the last ones, that whole patterns are made for."""
ROOM = 1.005
"""Grids reach this far above the highest share, for patterns that truly serve it."""
VARIED = (0.97, 1.03)
NODES = 2_000
"""Nodes of the tree over whole patterns: the same question ends at the same answer."""
TRIES = 3
WHOLE, HALF = 1e-7, 0.5
ANY = 0.5
"""Distance to the bound at which the first whole patterns found are near enough."""


@dataclass(frozen=True)
class Limited:
    """Columns with what they use of each shared limit."""

    rows: list[Row]
    names: tuple[str, ...]
    """Of the limits."""
    use: Floats
    """Rows × limits, of one worker."""
    limit: Floats
    weight: Floats
    """What one worker of each row costs in the objective; zeros: nothing but the share counts."""
    most_configurations: int | None = None
    """Columns in use together at most; patterns are not made for it, only chosen."""


@dataclass(frozen=True)
class Pattern:
    """Workers of one class."""

    workers: tuple[tuple[int, int], ...]
    """Row numbers and counts."""
    use: tuple[float, ...]
    share: float
    weight: float


@dataclass(frozen=True)
class Packed:
    """One whole pattern a class."""

    workers: dict[int, int]
    """By number of the row."""
    shares: tuple[float, ...]
    """Of each class; more than one where its workers could serve more."""
    weight: float


class ClassColumns:
    """The columns of one class by role, on a grid whose top is the highest share asked for."""

    def __init__(
        self, limited: Limited, number: int, demand: float, grid: tuple[float, int]
    ) -> None:  # fmt: skip
        top_share, self._top = grid
        self._demand, self._limited = demand, limited
        step = demand * top_share / self._top
        self._own: dict[str, tuple[Whole, Whole]] = {}
        for role in ("agg", "prefill", "decode"):
            rows = [i for i, row in enumerate(limited.rows)
                    if row["class"] == number and row["role"] == role]  # fmt: skip
            rates = np.array([limited.rows[i]["request_rate_typical"] for i in rows], float)
            levels = np.maximum(np.ceil(rates / step - 1e-9), 1).astype(np.int64)
            self._own[role] = np.array(rows, np.int64), np.minimum(levels, self._top)

    def priced(self, costs: Floats) -> Curve:
        """Least cost of every level when each row costs this."""
        covers = {
            role: Cover(levels, costs[rows], self._top)
            for role, (rows, levels) in self._own.items()
        }
        return Curve(self, covers)

    def pattern(self, found: dict[str, dict[int, int]]) -> Pattern:
        """Workers by role as a pattern, with what it truly serves."""
        workers: dict[int, int] = {}
        rates = {}
        for role, counts in found.items():
            rows, _ = self._own[role]
            own = {int(rows[column]): count for column, count in counts.items()}
            rates[role] = sum(n * self._limited.rows[i]["request_rate_typical"]
                              for i, n in own.items())  # fmt: skip
            workers |= own
        served = rates["agg"] + min(rates["prefill"], rates["decode"])
        use = sum(
            (n * self._limited.use[i] for i, n in workers.items()),
            np.zeros(len(self._limited.limit)),
        )
        weight = sum(n * self._limited.weight[i] for i, n in workers.items())
        return Pattern(tuple(sorted(workers.items())), tuple(use.tolist()),
                       served / self._demand, float(weight))  # fmt: skip


class Curve:
    """What a class costs at some prices, by level of its grid."""

    def __init__(self, columns: ClassColumns, covers: dict[str, Cover]) -> None:
        self._columns, self._covers = columns, covers
        self._paired = covers["prefill"].costs + covers["decode"].costs

    def _split(self, level: int) -> tuple[float, int]:
        """Least cost, and the part of a level that aggregated workers carry in it."""
        costs = self._covers["agg"].costs[: level + 1] + self._paired[level::-1]
        alone = int(np.argmin(costs))
        return float(costs[alone]), alone

    def cost(self, level: int) -> float:
        """Least cost of a level: never above the true one."""
        return self._split(level)[0]

    def pattern(self, level: int) -> Pattern:
        """The cheapest pattern of a level."""
        _, alone = self._split(level)
        parts = {"agg": alone, "prefill": level - alone, "decode": level - alone}
        return self._columns.pattern({r: self._covers[r].workers(x) for r, x in parts.items()})


class PatternSearch:
    """Patterns of all classes, made as prices ask for them."""

    def __init__(self, limited: Limited, demands: tuple[float, ...], most: float) -> None:
        """Prepare.

        Args:
            limited: columns; each class can be served by some of them.
            demands: requests per second of each class.
            most: no class need be served a greater share.
        """
        self._limited, self._most = limited, most
        self._top = max(COARSEST, min(FINEST, GRID // len(demands)))
        self._top_share = most * ROOM
        grid = (self._top_share, self._top)
        self._classes = [ClassColumns(limited, k, d, grid) for k, d in enumerate(demands)]
        self._patterns: list[dict[Pattern, None]] = [{} for _ in demands]
        self._curves: list[list[Curve]] = []
        self._prices, self._weighs = np.zeros(len(limited.limit)), 0.0

    def highest_share(self, prices: Floats) -> float:
        """The highest share that no prices forbid, by better and better prices.

        Args:
            prices: of a unit of each limit, to begin with; not all zero.
        """
        share = self._most
        for _ in range(ROUNDS):
            unit = prices / float(prices @ self._limited.limit)
            curves = self._priced(unit, 0.0)
            level = self._level(share)
            cost = _total(curves, level)
            if cost > 1 + WHOLE:
                share = self._possible(curves, level)
            self._add(curves, share, (0.0, NEAR))
            filled, prices = self._filled(share * (1 - NEAR))
            if filled <= 1 or not prices.any() or filled - cost < NEAR / 10:
                break
        return share

    def least_weight(self) -> float:
        """A bound on the weight of serving all of it, by better and better prices."""
        bound, prices = -np.inf, np.zeros(len(self._limited.limit))
        for _ in range(ROUNDS):
            curves = self._priced(prices, 1.0)
            level = self._level(1.0)
            bound = max(bound, _total(curves, level) - float(prices @ self._limited.limit))
            known = self._count
            self._add(curves, 1.0, (0.0, NEAR))
            least, prices = self._lightest()
            if self._count == known or least - bound <= NEAR / 3 * abs(least):
                break
        return bound

    def packed(self, share: float, time_limit_s: float) -> Packed | None:
        """One whole pattern a class that serve a share within every limit; none if none is found.

        The last prices make more patterns first, that serve a little more than the share.
        """
        for curves in self._curves[-KEPT_PRICES:]:
            self._add(curves, share, SPREAD)
        able = self._able(share)
        if not all(able):
            return None
        programme = Programme("patterns", maximise=False)
        chosen = self._state(programme, able, None, 1.0)
        most = self._limited.most_configurations
        if most is not None:
            counted = programme.total((y, len(p.workers)) for y, p in chosen)
            programme.require("configurations", counted <= most)
        programme.objective(programme.total(
            (y, p.weight or sum(p.use)) for y, p in chosen))  # fmt: skip
        near = NEAR / 3 if self._limited.weight.any() else ANY
        try:
            solution = programme.solve(time_limit_s=time_limit_s, gap_ratio=near, most_nodes=NODES)
        except MoesaicError:  # the time ended before any was found
            return None
        taken = [p for y, p in chosen if solution.values and solution.values[str(y)] > HALF]
        if not taken:
            return None
        return Packed(
            workers={i: n for pattern in taken for i, n in pattern.workers},
            shares=tuple(p.share for p in taken), weight=sum(p.weight for p in taken),
        )  # fmt: skip

    def columns(self) -> frozenset[int]:
        """Numbers of the rows that some pattern uses."""
        return frozenset(i for own in self._patterns for p in own for i, _ in p.workers)

    @property
    def _count(self) -> int:
        return sum(len(own) for own in self._patterns)

    def _level(self, share: float) -> int:
        """The level of a share, rounded down: what it costs is a bound."""
        return min(int(share / self._top_share * self._top * (1 + 1e-12)), self._top)

    def vary(self, share: float) -> None:
        """Make patterns that the last prices nearly ask for: each limit a little dearer, cheaper.

        Whole patterns must fit each other, for which more ways to use a limit are of help.
        """
        for at, factor in itertools.product(range(len(self._prices)), VARIED):
            prices = self._prices.copy()
            prices[at] *= factor
            if prices[at]:
                self._add(self._at(prices), share, (0.0,))

    def _priced(self, prices: Floats, weighs: float) -> list[Curve]:
        """Every class at prices of the limits, and of the objective's weight."""
        self._prices, self._weighs = prices, weighs
        curves = self._at(prices)
        self._curves = [*self._curves[1 - KEPT_PRICES :], curves]
        return curves

    def _at(self, prices: Floats) -> list[Curve]:
        costs = self._weighs * self._limited.weight + self._limited.use @ prices
        return [columns.priced(costs) for columns in self._classes]

    def _possible(self, curves: list[Curve], level: int) -> float:
        """The share just above the highest level whose cost the limits bear."""
        low, high = 0, level
        while high - low > 1:
            middle = (low + high) // 2
            if _total(curves, middle) > 1 + WHOLE:
                high = middle
            else:
                low = middle
        return high / self._top * self._top_share

    def _add(self, curves: list[Curve], share: float, more: tuple[float, ...]) -> None:
        """Make each class's cheapest patterns that truly serve a share, and a little more."""
        for made, curve in zip(self._patterns, curves, strict=True):
            for extra in more:
                aim = share * (1 + extra)
                level = self._level(aim)
                for _ in range(TRIES):  # rates are rounded up: it may truly serve less
                    pattern = curve.pattern(level)
                    made[pattern] = None
                    if pattern.share >= aim or level >= self._top or not pattern.workers:
                        break
                    level = min(int(level * aim / pattern.share) + 1, self._top)

    def _able(self, share: float) -> list[list[Pattern]]:
        return [[p for p in own if p.share >= share * (1 - 1e-9)] for own in self._patterns]

    def _filled(self, share: float) -> tuple[float, Floats]:
        """How full patterns in parts make the fullest limit, and what a unit of each is worth."""
        able = self._able(share)
        if not all(able):
            return np.inf, np.zeros(len(self._limited.limit))
        programme = Programme("patterns", maximise=False)
        fullest = programme.number("fullest")
        self._state(programme, able, fullest)
        programme.objective(programme.total([(fullest, 1)]))
        return self._worth(programme.relax())

    def _lightest(self) -> tuple[float, Floats]:
        """Weight of the lightest patterns in parts, and what a unit of each limit is worth.

        Where not even parts fit, limits are stretched at a price above any weight, so that their
        prices ask for patterns that do.
        """
        able = self._able(1.0)
        if not all(able):
            return np.inf, np.zeros(len(self._limited.limit))
        programme = Programme("patterns", maximise=False)
        beyond = programme.number("beyond")
        chosen = self._state(programme, able, beyond, 1.0)
        dear = 10 * sum(max(p.weight for p in own) for own in able)
        weighed = [(y, p.weight) for y, p in chosen]
        programme.objective(programme.total([*weighed, (beyond, dear)]))
        return self._worth(programme.relax())

    def _worth(self, relaxed: Relaxed) -> tuple[float, Floats]:
        if relaxed.infeasible:
            return np.inf, np.zeros(len(self._limited.limit))
        prices = [-relaxed.shadow_prices.get(name, 0.0) for name in self._limited.names]
        return relaxed.objective, np.maximum(np.array(prices), 0.0)

    def _state(
        self, programme: Programme, able: list[list[Pattern]],
        stretch: Expression | None, limit: float = 0.0,
    ) -> list[tuple[Expression, Pattern]]:  # fmt: skip
        """State choices of a pattern a class; limits hold `limit + stretch` times what they do."""
        chosen = []
        for number, own in enumerate(able):
            named = [(programme.binary(f"take_{number}_{i}"), p) for i, p in enumerate(own)]
            programme.require(f"one_{number}", programme.total([(y, 1) for y, _ in named]) == 1)
            chosen += named
        for at, name in enumerate(self._limited.names):
            most = float(self._limited.limit[at])
            used = [(y, p.use[at]) for y, p in chosen if p.use[at]]
            used += [] if stretch is None else [(stretch, -most)]
            programme.require(name, programme.total(used) <= most * limit)
        return chosen


def _total(curves: list[Curve], level: int) -> float:
    return sum(curve.cost(level) for curve in curves)
