"""What a failure takes from a pool, and how long experts need to be whole again without a restart.

Engines, attention weights and caches of what is left stay where they are. Every expert must be
somewhere before anybody can go on, so service stops until the experts are laid out anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from planner.routing import expert_shares
from planner.simulation.elastic import ScaleCosts, Scaling, WorkerBytes
from planner.simulation.priced import spare_experts
from planner.simulation.question import PoolLayout, ScaleEvent, SimulationQuestion
from planner.simulation.relayout import Array, Ints, Relayout, balance, in_order, relayout
from planner.simulation.told import NewLayout


@dataclass(frozen=True)
class Loss:
    """What a failure took and what it leaves."""

    ranks: tuple[int, ...]
    layout: NewLayout | None = None
    """None after a restart: engines lay experts out in order again."""
    factor: float = 1.0
    """Busiest rank's experts, as placed over in order."""


def lost_ranks(event: ScaleEvent, layout: PoolLayout, cluster: Cluster) -> tuple[int, ...]:
    """Ranks that a failure takes: as listed, or all with a device on the lost node."""
    if event.lost_node is None:
        return tuple(sorted(set(event.lost_ranks))) or (event.lost_rank,)
    width = cluster.devices_per_node
    first, last = event.lost_node * width, (event.lost_node + 1) * width
    return tuple(
        rank for rank in range(layout.dp)
        if rank * layout.tp < last and (rank + 1) * layout.tp > first
    )  # fmt: skip


class RelayoutPlanner:
    """Follows where each replica's experts are.

    Args:
        question: the question; its routing says which experts are loaded.
        pool: layout at the start.
        costs: rates of the machine.
    """

    def __init__(self, question: SimulationQuestion, pool: PoolLayout, costs: ScaleCosts) -> None:
        self._question, self._pool, self._costs = question, pool, costs
        self._at: dict[int, tuple[int, Ints]] = {}
        self._known: dict[tuple[object, ...], Relayout] = {}

    def start(self) -> None:
        """Put every replica's experts back in order."""
        self._at.clear()

    def forget(self, replica: int) -> None:
        """Put one replica's experts back in order, as engines do when they scale."""
        self._at.pop(replica, None)

    def plan(
        self, event: ScaleEvent, ranks: tuple[int, ...], before: int, held: WorkerBytes
    ) -> tuple[Scaling, Loss]:
        """What laying experts out anew takes after a failure of these ranks.

        Raises:
            MoesaicError: `invalid` where experts are cut (moe_tp), or more ranks leave than fail;
                `infeasible` from the move limit.
        """
        model, tp = self._question.model, self._pool.tp
        if model.moe is None or self._pool.moe_tp not in (None, 1) or before * tp == 1:
            raise MoesaicError(
                "invalid", "a new layout after a failure needs whole experts on several ranks "
                "(moe_tp 1); recover: restart would work", "/events",
            )  # fmt: skip
        if event.dp != before - len(ranks):
            raise MoesaicError(
                "invalid",
                f"{before} ranks without {len(ranks)} keep {before - len(ranks)}, not {event.dp}: "
                "a new layout stops no others; scale in an event of its own",
                "/events",
            )
        loads = expert_shares(self._question.routing, model.moe, len(model.moe_layers))
        found = self._laid_out(event, ranks, before, loads)
        devices, spare = event.dp * tp, self._spare(event.dp)
        slots = (model.moe.experts + spare) // devices * len(loads)
        one = held.expert_bytes / self._slots(before, len(loads))
        factor = found.max_over_mean / balance(in_order(loads, devices, spare), loads)
        layout = NewLayout(
            lost_experts_count=found.lost_count, moves_count=found.moves,
            busy_kept_ratio=found.max_over_mean_kept, busy_ratio=found.max_over_mean,
        )  # fmt: skip
        resident = devices * (held.attention_bytes + held.kv_bytes + slots * one)
        return self._cost(found, one, devices, resident), Loss(ranks, layout, factor)

    def _cost(self, found: Relayout, one: float, devices: int, resident: float) -> Scaling:
        costs = self._costs
        phases = (
            ("regroup", costs.regroup_s),
            ("disk", found.disk_experts * one / costs.disk_bytes_per_s),
            ("p2p", found.peer_experts * one / costs.link_bytes_per_s),
            ("warm-up", costs.warm_up_s),
        )
        duration = sum(seconds for _, seconds in phases)
        return Scaling("relayout", phases, duration, duration, devices, resident)

    def _laid_out(
        self, event: ScaleEvent, ranks: tuple[int, ...], before: int, loads: Array
    ) -> Relayout:
        """The new layout; the same failure of the same layout is placed once."""
        tp = self._pool.tp
        lost = tuple(rank * tp + part for rank in ranks for part in range(tp))
        at = self._at.get(event.replica)
        old = at[1] if at and at[0] == before else in_order(loads, before * tp, self._spare(before))
        key = (old.tobytes(), lost, event.dp, event.max_moves)
        if key not in self._known:
            self._known[key] = relayout(loads, old, lost, self._spare(event.dp), event.max_moves)
        found = self._known[key]
        self._at[event.replica] = (event.dp, found.layout)
        return found

    def _spare(self, dp: int) -> int:
        return spare_experts(self._question.model, dp * self._pool.tp, self._pool.redundant_experts)

    def _slots(self, dp: int, layers: int) -> int:
        assert self._question.model.moe is not None  # noqa: S101 - looked at before
        return (self._question.model.moe.experts + self._spare(dp)) * layers
