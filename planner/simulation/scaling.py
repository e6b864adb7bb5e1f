"""Scale operations and failures while requests are served: intake, service and ranks change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprofiles.errors import MoesaicError
from planner.simulation.clock import ARRIVAL, Clock
from planner.simulation.group import Group
from planner.simulation.rank import Rank
from planner.simulation.sequence import Sequence
from planner.simulation.step_seconds import StepSeconds


@dataclass(frozen=True)
class LayoutChange:
    """One change of a group's data-parallel ranks.

    Args:
        at_s: when it begins.
        duration_s: until the new layout serves.
        dp: ranks afterwards.
        seconds: step seconds of the new layout.
        down: whether nothing is served meanwhile.
        caches_lost: whether all running sequences lose their caches when it is down.
        hold: whether arrivals wait outside meanwhile.
        lost_ranks: ranks whose caches are gone (a failure, or devices taken away).
        group: which group changes.
        kv_blocks: of each new rank, where engines start again and size their caches anew; none:
            as at the start of the run.
    """

    at_s: float
    duration_s: float
    dp: int
    seconds: StepSeconds
    down: bool = False
    caches_lost: bool = True
    hold: bool = True
    lost_ranks: tuple[int, ...] = ()
    group: int = 0
    kv_blocks: int | None = None


class LayoutChanges:
    """Carries changes out on a clock.

    A change takes effect between two iterations: its start and end wait for the boundary.

    Args:
        clock: the simulation's clock.
        groups: groups that may change.
        changes: what happens; those of one group in order of time and not overlapping.
        new_rank: builds an empty rank for a group, with so many KV blocks or as many as its pool.
        elsewhere: takes a sequence whose cache is gone from a group, or says false.
    """

    def __init__(
        self,
        clock: Clock,
        groups: list[Group],
        changes: tuple[LayoutChange, ...],
        new_rank: Callable[[Group, int | None], Rank],
        elsewhere: Callable[[Group, Sequence], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._groups = groups
        self._new_rank = new_rank
        self._elsewhere = elsewhere
        self._due: dict[int, Callable[[Group], None]] = {}
        self.spans: list[tuple[float, float]] = []
        self.running: set[int] = set()
        ends: dict[int, float] = {}
        for change in changes:
            early = change.at_s < ends.get(change.group, 0.0)
            if early or change.dp < 1 or change.group >= len(groups):
                raise MoesaicError(
                    "invalid",
                    f"layout change at {change.at_s} s: changes follow one another, keep at least "
                    f"one rank, and name one of {len(groups)} groups",
                )
            ends[change.group] = change.at_s + change.duration_s
            clock.call_at(change.at_s, self._starter(change), ARRIVAL)

    def _starter(self, change: LayoutChange) -> Callable[[], None]:
        return lambda: self.begin(change)

    def begin(self, change: LayoutChange) -> None:
        """Begin a change now."""
        group = self._groups[change.group]
        self.running.add(group.index)
        if change.hold or change.down:
            group.hold()
        if change.down:
            group.pause()
        self._clock.call_at(
            self._clock.now + change.duration_s, lambda: self._finish(change), ARRIVAL
        )

    def _finish(self, change: LayoutChange) -> None:
        group = self._groups[change.group]
        self.spans.append((change.at_s, self._clock.now))
        self._due[group.index] = lambda at: self._apply(at, change)
        if group.between:
            self.boundary(group)
        else:
            group.wake()

    def boundary(self, group: Group) -> None:
        """Apply what is due for a group; to be called between its iterations."""
        if self._due:
            apply = self._due.pop(group.index, None)
            if apply is not None:
                apply(group)

    def _apply(self, group: Group, change: LayoutChange) -> None:
        ranks = list(group.ranks)
        everything = change.down and change.caches_lost
        gone = set(range(len(ranks))) if everything else set(change.lost_ranks)
        leaving = max(len(ranks) - change.dp, 0)
        removed = [rank for rank in sorted(gone) if not everything][:leaving]
        removed += [i for i in reversed(range(len(ranks))) if i not in removed][
            : leaving - len(removed)
        ]
        moved = [s for i in sorted(gone | set(removed)) for s in ranks[i].evict_all()]
        # Engines that start again have no cached prefixes either.
        kept = [] if everything else [r for i, r in enumerate(ranks) if i not in removed]
        kept += [self._new_rank(group, change.kv_blocks) for _ in range(change.dp - len(kept))]
        self.running.discard(group.index)
        moved.sort(key=lambda s: s.index)
        leave = self._elsewhere
        back = [s for s in moved if leave is None or s.done_tokens or not leave(group, s)]
        group.resume(kept, change.seconds, back)
