"""A question's scale events and controller as layout changes: bytes and seconds of each layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from hwprofiles.errors import MoesaicError
from planner.simulation.autoscale import Autoscale, Bounds, policy
from planner.simulation.elastic import ScaleCosts, Scaling, scale
from planner.simulation.planned_steps import PlannedSteps, Side
from planner.simulation.question import ScaleEvent, SimulationQuestion
from planner.simulation.rank import EngineLimits
from planner.simulation.scaling import LayoutChange
from planner.simulation.sequence import Sequence
from planner.simulation.summary import Slo

StepsOf = Callable[[int], PlannedSteps]
"""Priced passes of the first pool's layout with so many data-parallel ranks."""
_OWN_DEVICES = ("horizontal",)
COLOCATED = "colocated"


class ScalePlanner:
    """Turns changes of `dp` into layout changes.

    Args:
        question: the question, with `scale_rates`.
        steps_of: prices a layout; called once for each `dp`.
        block_bytes: one KV block on one device.
    """

    def __init__(self, question: SimulationQuestion, steps_of: StepsOf, block_bytes: float) -> None:
        rates = question.scale_rates
        assert rates is not None  # noqa: S101 - the document says so
        tier = question.cluster.tier_for(question.cluster.device_count)
        self._question = question
        self._block_bytes = block_bytes
        self._kv_bytes = 0.0
        self._steps_of = steps_of
        self._steps: dict[int, PlannedSteps] = {}
        self._costs = ScaleCosts(
            link_bytes_per_s=rates.link_bytes_per_s or tier.bandwidth_bytes_per_s.value,
            disk_bytes_per_s=rates.disk_bytes_per_s,
            boot_s=rates.boot_s,
            warm_up_s=rates.warm_up_s,
            regroup_s=rates.regroup_s,
        )

    def steps(self, dp: int) -> PlannedSteps:
        """Priced passes with so many ranks."""
        if dp not in self._steps:
            self._steps[dp] = self._steps_of(dp)
        return self._steps[dp]

    def limits(self, limits: EngineLimits) -> EngineLimits:
        """Limits with the KV blocks that are left when a second copy of the weights must fit.

        Colocated scaling boots the next layout beside the running one, on the same devices: its
        room is kept free from the start (arXiv:2510.02613, section 7.1).

        Raises:
            MoesaicError: `infeasible` when no block is left.
        """
        blocks = limits.kv_blocks
        after = self._beside()
        if after:
            beside = max(self.steps(dp).worker_bytes(0.0).weight_bytes for dp in after)
            blocks -= math.ceil(beside / self._block_bytes)
        if blocks < 1:
            raise MoesaicError(
                "infeasible",
                "colocated scaling keeps room for a second copy of the weights; no KV block is "
                "left beside it; elastic or cold_restart would work", "/events",
            )  # fmt: skip
        self._kv_bytes = blocks * self._block_bytes
        return replace(limits, kv_blocks=blocks)

    def _beside(self) -> set[int]:
        """Ranks of the layouts that boot beside another one on the same devices."""
        found = {e.dp for e in self._question.events
                 if e.kind == "scale" and e.strategy == COLOCATED}  # fmt: skip
        controller = self._question.autoscale
        if controller is not None and controller.strategy == COLOCATED:
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
        held = [self.steps(dp).worker_bytes(self._kv_bytes) for dp in (before, after)]
        return scale(strategy, held[0], held[1], self._costs)

    def change(self, event: ScaleEvent, before: int, side: Side, *, group: int = 0) -> LayoutChange:
        """One event as a layout change.

        A failure boots what is left again, with everything that was running recomputed.
        """
        failed = event.kind == "failure"
        if failed and not (event.dp < before and event.lost_rank < before):
            raise MoesaicError(
                "invalid",
                f"a failure of rank {event.lost_rank} among {before} cannot leave {event.dp}",
                "/events",
            )
        cost = self.cost("cold_restart" if failed else event.strategy, before, event.dp)
        return LayoutChange(
            at_s=event.at_s, duration_s=cost.duration_s, dp=event.dp,
            seconds=self.steps(event.dp).seconds(side), down=cost.downtime_s > 0,
            hold=cost.intake_paused_s > 0, lost_ranks=(event.lost_rank,) if failed else (),
            group=group,
        )  # fmt: skip

    def events(self, side: Side) -> tuple[LayoutChange, ...]:
        """All events of the question."""
        before = self._question.layout.dp
        changes = []
        for event in self._question.events:
            changes.append(self.change(event, before, side))
            before = event.dp
        return tuple(changes)

    def autoscale(self, side: Side) -> Autoscale | None:
        """The question's controller."""
        asked = self._question.autoscale
        if asked is None:
            return None
        policy(asked.policy)
        limits = self._question.slo
        bounds = Bounds(asked.fewest, asked.most, asked.rank_request_rate)
        slo = Slo(limits.ttft_s, limits.tpot_s, limits.e2e_s)

        def change(before: int, after: int, now_s: float) -> LayoutChange:
            event = ScaleEvent(at_s=now_s, dp=after, strategy=asked.strategy)
            return self.change(event, before, side)

        def meets(sequence: Sequence, end_s: float) -> bool:
            return slo.holds(
                sequence.first_token_s - sequence.arrival_s,
                end_s - sequence.arrival_s,
                sequence.request.osl_tokens,
            )

        return Autoscale(asked.policy, bounds, asked.every_s, change, meets)
