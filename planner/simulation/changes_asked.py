"""A question's scale events, failures and controller as layout changes of one pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hwprofiles.errors import MoesaicError
from planner.simulation.autoscale import Autoscale, Bounds, policy
from planner.simulation.elastic import ScaleCosts, Scaling, WorkerBytes, scale
from planner.simulation.failures import Loss, RelayoutPlanner, lost_ranks
from planner.simulation.planned_steps import PlannedSteps, Side
from planner.simulation.question import PoolLayout, PoolName, ScaleEvent, SimulationQuestion
from planner.simulation.rank import EngineLimits
from planner.simulation.scaling import LayoutChange
from planner.simulation.sequence import Sequence as Request
from planner.simulation.summary import Slo
from planner.simulation.told import EventCost, told

StepsOf = Callable[[int], PlannedSteps]
"""Priced passes of a pool's layout with so many data-parallel ranks."""
_OWN_DEVICES = ("horizontal",)
COLOCATED = "colocated"
RESTART = "cold_restart"


@dataclass(frozen=True)
class ScaledPool:
    """A pool whose ranks may change.

    Args:
        name: which of the question's pools.
        layout: its layout at the start.
        first_group: its first group among all groups of the run.
        steps_of: prices a number of ranks; called once for each.
        block_bytes: one KV block on one device.
    """

    name: PoolName
    layout: PoolLayout
    first_group: int
    steps_of: StepsOf
    block_bytes: float


class ScalePlanner:
    """Turns changes of one pool's `dp` into layout changes."""

    def __init__(self, question: SimulationQuestion, pool: ScaledPool) -> None:
        rates = question.scale_rates
        assert rates is not None  # noqa: S101 - the document says so
        tier = question.cluster.tier_for(question.cluster.device_count)
        self._question = question
        self._pool = pool
        self._kv_blocks = 0
        self._steps: dict[int, PlannedSteps] = {}
        self._costs = ScaleCosts(
            link_bytes_per_s=rates.link_bytes_per_s or tier.bandwidth_bytes_per_s.value,
            disk_bytes_per_s=rates.disk_bytes_per_s,
            boot_s=rates.boot_s,
            warm_up_s=rates.warm_up_s,
            regroup_s=rates.regroup_s,
        )
        self._relayout = RelayoutPlanner(question, pool.layout, self._costs)

    @property
    def name(self) -> PoolName:
        """Which pool."""
        return self._pool.name

    def steps(self, dp: int) -> PlannedSteps:
        """Priced passes with so many ranks."""
        if dp not in self._steps:
            self._steps[dp] = self._pool.steps_of(dp)
        return self._steps[dp]

    def limits(self, limits: EngineLimits) -> EngineLimits:
        """Limits with the KV blocks that are left when a second copy of the weights must fit.

        Colocated scaling boots the next layout beside the running one, on the same devices: its
        room is kept free from the start (arXiv:2510.02613, section 7.1).

        Raises:
            MoesaicError: `infeasible` when no block is left.
        """
        blocks, stages = limits.kv_blocks, self._pool.layout.pp
        after = self._beside()
        if after:
            beside = max(self.steps(dp).worker_bytes(0.0).weight_bytes for dp in after)
            blocks -= math.ceil(beside / self._pool.block_bytes / stages)
        if blocks < 1:
            raise MoesaicError(
                "infeasible",
                "colocated scaling keeps room for a second copy of the weights; no KV block is "
                "left beside it; elastic or cold_restart would work", "/events",
            )  # fmt: skip
        self._kv_blocks = blocks
        return replace(limits, kv_blocks=blocks)

    def _blocks(self, strategy: str, dp: int) -> int:
        """KV blocks of a rank and batch in flight after a change to so many ranks.

        Engines that start again have the memory that they had before, and fewer experts a device
        leave more of it; a stated number of blocks and caches that stay are kept.

        Raises:
            MoesaicError: `infeasible` when the new weights leave no block.
        """
        if strategy != RESTART or self._question.engine.kv_blocks is not None:
            return self._kv_blocks
        first, then = (
            self.steps(n).worker_bytes(0.0).weight_bytes for n in (self._pool.layout.dp, dp)
        )
        stages = self._pool.layout.pp
        blocks = self._kv_blocks + math.floor((first - then) / self._pool.block_bytes / stages)
        if blocks < 1:
            raise MoesaicError(
                "infeasible", f"the weights of dp {dp} leave no KV block; more ranks would work",
                "/events",
            )  # fmt: skip
        return blocks

    def _held(self, dp: int, blocks: int) -> WorkerBytes:
        """What a worker of so many ranks holds with so many KV blocks a rank and batch."""
        kv_bytes = blocks * self._pool.layout.pp * self._pool.block_bytes
        return self.steps(dp).worker_bytes(kv_bytes)

    def _beside(self) -> set[int]:
        """Ranks of the layouts that boot beside another one on the same devices."""
        found = {e.dp for e in self._events() if e.kind == "scale" and e.strategy == COLOCATED}
        controller = self._question.autoscale
        mine = controller is not None and controller.pool == self.name
        if controller is not None and mine and controller.strategy == COLOCATED:
            found.add(controller.fewest)  # the fewest ranks hold the most weights each
        return found

    def cost(self, strategy: str, before: int, after: int) -> Scaling:
        """What going from so many ranks to so many takes."""
        if strategy in _OWN_DEVICES:
            raise MoesaicError(
                "invalid",
                "horizontal scaling adds a replica and keeps dp; simulate it with replicas",
                "/events",
            )
        held = self._held(before, self._kv_blocks)
        return scale(strategy, held, self._held(after, self._blocks(strategy, after)), self._costs)

    def change(self, event: ScaleEvent, before: int, side: Side) -> tuple[LayoutChange, ...]:
        """One event as layout changes, one for each batch in flight, all alike."""
        cost, loss = self._taken(event, before)
        keeps = loss is not None and loss.layout is not None
        steps = self.steps(event.dp)
        blocks = None if keeps else self._blocks(cost.strategy, event.dp)
        seconds = steps.weighed(side, loss.factor) if loss and keeps else steps.seconds(side)
        return tuple(
            LayoutChange(
                at_s=event.at_s, duration_s=cost.duration_s, dp=event.dp, seconds=seconds,
                down=cost.downtime_s > 0, caches_lost=not keeps, hold=cost.intake_paused_s > 0,
                lost_ranks=loss.ranks if loss else (), group=group, kv_blocks=blocks,
            )
            for group in self.groups(event.replica)
        )  # fmt: skip

    def groups(self, replica: int) -> range:
        """Groups of a replica: one, or one for each batch in flight."""
        stages = self._pool.layout.pp
        first = self._pool.first_group + replica * stages
        return range(first, first + stages)

    def _taken(self, event: ScaleEvent, before: int) -> tuple[Scaling, Loss | None]:
        """What an event takes, and for a failure what it took away."""
        if event.kind == "failure":
            return self._failure(event, before)
        self._relayout.forget(event.replica)
        return self.cost(event.strategy, before, event.dp), None

    def _failure(self, event: ScaleEvent, before: int) -> tuple[Scaling, Loss]:
        """A failure boots what is left again, or lays its experts out anew."""
        ranks = lost_ranks(event, self._pool.layout, self._question.cluster)
        if not ranks or max(ranks) >= before or event.dp > before - len(ranks):
            raise MoesaicError(
                "invalid",
                f"a failure of rank {', '.join(map(str, ranks))} among {before} cannot leave "
                f"{event.dp}",
                "/events",
            )
        if event.recover == "restart":
            return self.cost(RESTART, before, event.dp), Loss(ranks)
        held = self._held(before, self._kv_blocks)
        return self._relayout.plan(event, ranks, before, held)

    def _events(self) -> list[ScaleEvent]:
        return [event for event in self._question.events if event.pool == self.name]

    def events(self, side: Side) -> tuple[LayoutChange, ...]:
        """All events of the pool."""
        return tuple(
            change
            for event, before in self._in_order()
            for change in self.change(event, before, side)
        )

    def costs(self) -> tuple[EventCost, ...]:
        """What each event takes, for the answer."""
        found = []
        for event, before in self._in_order():
            cost, loss = self._taken(event, before)
            found.append(EventCost(
                kind=event.kind, pool=event.pool, replica=event.replica, at_s=event.at_s,
                dp_before=before, dp=event.dp, cost=told(cost),
                layout=None if loss is None else loss.layout,
            ))  # fmt: skip
        return tuple(found)

    def _in_order(self) -> Sequence[tuple[ScaleEvent, int]]:
        """Events with the ranks that their replica has before them."""
        ranks = dict.fromkeys(range(self._pool.layout.replicas), self._pool.layout.dp)
        self._relayout.start()
        found = []
        for event in self._events():
            if event.replica not in ranks:
                raise MoesaicError(
                    "invalid",
                    f"no replica {event.replica} among {len(ranks)} of {self.name}",
                    "/events",
                )
            found.append((event, ranks[event.replica]))
            ranks[event.replica] = event.dp
        return found

    def autoscale(self, side: Side) -> Autoscale | None:
        """The question's controller, if it is this pool's."""
        asked = self._question.autoscale
        if asked is None or asked.pool != self.name:
            return None
        policy(asked.policy)
        limits = self._question.slo
        bounds = Bounds(asked.fewest, asked.most, asked.rank_request_rate)
        slo = Slo(limits.ttft_s, limits.tpot_s, limits.e2e_s)

        def change(before: int, after: int, now_s: float) -> tuple[LayoutChange, ...]:
            event = ScaleEvent(at_s=now_s, dp=after, strategy=asked.strategy)
            return self.change(event, before, side)

        def meets(sequence: Request, end_s: float) -> bool:
            return slo.holds(
                sequence.first_token_s - sequence.arrival_s,
                end_s - sequence.arrival_s,
                sequence.request.osl_tokens,
            )

        return Autoscale(asked.policy, bounds, asked.every_s, change, meets)
