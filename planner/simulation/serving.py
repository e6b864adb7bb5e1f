"""Serving in motion: requests, a router, groups of ranks, and links between pools, on one clock."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.simulation.arrivals import ClosedLoop
from planner.simulation.autoscale import Autoscale, Autoscaler
from planner.simulation.clock import ARRIVAL, Clock
from planner.simulation.group import Group
from planner.simulation.links import KvLinks
from planner.simulation.rank import EngineLimits, Rank
from planner.simulation.record import RequestLog
from planner.simulation.scaling import LayoutChange, LayoutChanges
from planner.simulation.sequence import Sequence
from planner.simulation.stages import Stages
from planner.simulation.step_seconds import StepSeconds
from planner.simulation.timeline import LoadTimeline

ROUTERS = ("least_loaded", "round_robin", "shared_queue")


@dataclass(frozen=True)
class Pool:
    """Engines of one kind: `replicas` groups of `dp` ranks that step together.

    With `pp` stages a replica has as many groups, one for each batch in flight, and the limits are
    those of one batch.
    """

    limits: EngineLimits
    seconds: StepSeconds
    replicas: int = 1
    dp: int = 1
    router: str = "least_loaded"
    pp: int = 1


@dataclass(frozen=True)
class Split:
    """Prefill and decode on pools of their own, and the link KV caches travel on."""

    decode: Pool
    kv_bytes_per_token: float
    link_bytes_per_s: float
    link_latency_s: float = 0.0


@dataclass
class Options:
    """How to run, as against what to simulate."""

    seed: int = 0
    max_requests: int | None = None
    skip_quiet: bool = True
    timeline_step_s: float = 0.0
    changes: tuple[LayoutChange, ...] = ()
    """Scale operations and failures."""
    autoscale: Autoscale | None = None
    autoscaled: tuple[int, ...] = (0,)
    """Groups that the controller looks at and changes together."""
    on_progress: Callable[[int, float], None] | None = None
    log: RequestLog = field(default_factory=RequestLog)


class Serving:
    """One run.

    Args:
        pool: the engines, or the prefill engines when `split` is given.
        source: requests in order of arrival, or a closed loop.
        split: decode pool and link, for disaggregated serving.
        options: seed, limits, where results go.
    """

    def __init__(
        self,
        pool: Pool,
        source: Iterator[Request] | ClosedLoop,
        split: Split | None = None,
        options: Options | None = None,
    ) -> None:
        self.options = options or Options()
        self.clock = Clock()
        self.log = self.options.log
        self.timeline = LoadTimeline(self.options.timeline_step_s)
        self._random = np.random.default_rng(self.options.seed)
        self._source = source
        self._next: Request | None = None
        self._sent = 0
        self._split = split
        self.links: KvLinks | None = None
        self.groups = self._build(pool, 0, self._hand_over if split else None)
        self._front = Router(self.groups, pool.router)
        self._back: Router | None = None
        if split is not None:
            decode = self._build(split.decode, len(self.groups), None)
            self._back = Router(decode, split.decode.router)
            self.links = KvLinks(
                self.clock, split.link_bytes_per_s, split.link_latency_s,
                len(self.groups) * pool.dp,
            )  # fmt: skip
            self.groups = [*self.groups, *decode]
        self.changes = self._changes(pool)
        self._scaler: Autoscaler | None = None
        if self.options.autoscale is not None:
            looked_at = [self.groups[index] for index in self.options.autoscaled]
            self._scaler = Autoscaler(
                self.clock, looked_at, self.changes, self.options.autoscale, self._unanswered
            )

    def _changes(self, pool: Pool) -> LayoutChanges:
        """Layout changes of both pools' groups."""
        split, first = self._split, len(self._front.groups)
        hand_over = self._hand_over if split else None

        def new_rank(group: Group, kv_blocks: int | None) -> Rank:
            decodes = split is not None and group.index >= first
            limits = split.decode.limits if split is not None and decodes else pool.limits
            if kv_blocks is not None:
                limits = replace(limits, kv_blocks=kv_blocks)
            return Rank(limits, self._random, self._finished, None if decodes else hand_over)

        def elsewhere(group: Group, sequence: Sequence) -> bool:
            """A cache lost by the decode pool is made again by the prefill pool."""
            if group.index < first:
                return False
            self._front.submit(sequence)
            return True

        return LayoutChanges(self.clock, self.groups, self.options.changes, new_rank, elsewhere)

    def _unanswered(self) -> bool:
        return self._next is not None or self.log.count < self._sent

    def run(self) -> Serving:
        """Simulate until every request is answered.

        Raises:
            MoesaicError: `infeasible` when a request can never be held, `invalid` from a trace.
        """
        if isinstance(self._source, ClosedLoop):
            users = self._source.first(self._random)
            for request in itertools.islice(users, self.options.max_requests):
                self._book(request)
        else:
            self._pull()
        self.clock.run()
        unanswered = self._sent - self.log.count
        if unanswered:
            raise MoesaicError(
                "infeasible", f"{unanswered} of {self._sent} requests were never answered"
            )
        return self

    def _build(
        self, pool: Pool, first: int, hand_over: Callable[[Sequence, Rank], None] | None
    ) -> list[Group]:
        stages: Stages | None = None
        if pool.replicas < 1 or pool.dp < 1 or pool.pp < 1:
            raise MoesaicError("invalid", f"{pool.replicas} replicas of {pool.dp} ranks; 1 or more")
        groups = []
        for place in range(pool.replicas * pool.pp):
            ranks = [
                Rank(pool.limits, self._random, self._finished, hand_over) for _ in range(pool.dp)
            ]
            if pool.pp > 1 and place % pool.pp == 0:
                stages = Stages(pool.pp)
            group = Group(
                self.clock, first + place, ranks, pool.seconds, self._next_arrival_s,
                skip_quiet=self.options.skip_quiet,
            )  # fmt: skip
            if stages is not None:
                group.share(stages)
            group.after_step = self._after_step
            group.after_plan = self.timeline.look
            groups.append(group)
        return groups

    def _next_arrival_s(self) -> float:
        return self._next.arrival_s if self._next is not None else math.inf

    def _pull(self) -> None:
        """Read one request ahead: it is the only one of the trace in memory."""
        self._next = None
        if self._sent == self.options.max_requests:
            return
        assert not isinstance(self._source, ClosedLoop)  # noqa: S101 - open loops only
        request = next(self._source, None)
        if request is not None:
            self._next = request
            self._book(request)

    def _book(self, request: Request) -> None:
        if self._sent == self.options.max_requests:
            return
        index = self._sent
        self._sent += 1

        def arrive() -> None:
            if not isinstance(self._source, ClosedLoop):
                self._pull()
            if self._scaler is not None:
                self._scaler.arrived()
            self._front.submit(Sequence(index, request, self.clock.now))

        self.clock.call_at(request.arrival_s, arrive, ARRIVAL)

    def _finished(self, sequence: Sequence, end_s: float) -> None:
        self.log.add(sequence, end_s)
        if self._scaler is not None:
            self._scaler.finished(sequence, end_s)
        if self.options.on_progress is not None:
            self.options.on_progress(self.log.count, end_s)
        if isinstance(self._source, ClosedLoop):
            self._book(self._source.next(end_s, self._random))

    def _after_step(self, group: Group, _: float) -> None:
        self.changes.boundary(group)
        for router in (self._front, self._back):
            if router is not None and router.queue and group in router.groups:
                router.refill(group)

    def _hand_over(self, sequence: Sequence, source: Rank) -> None:
        """Send a finished prompt's KV cache to the decode pool; the source keeps it until then."""
        split, links, back = self._split, self.links, self._back
        assert split is not None and links is not None and back is not None  # noqa: S101, PT018
        moved_bytes = sequence.prompt_tokens * split.kv_bytes_per_token
        epoch = sequence.epoch

        def arrived() -> None:
            if sequence.epoch != epoch:
                return  # its cache was lost on the way and is made again
            source.drop(sequence)
            self.groups[sequence.replica].wake()
            back.submit(sequence)

        links.send((sequence.replica, sequence.rank), moved_bytes, arrived)


class Router:
    """Spreads sequences over groups.

    `shared_queue` keeps one queue before all groups and gives each what it has slots for, as a
    central scheduler would; the other two commit a request to a group when it arrives.
    """

    def __init__(self, groups: list[Group], policy: str) -> None:
        if policy not in ROUTERS:
            raise MoesaicError("unknown_name", f"no router {policy!r}; known: {', '.join(ROUTERS)}")
        self.groups = groups
        self._policy = policy
        self._turn = 0
        self.queue: deque[Sequence] = deque()

    def submit(self, sequence: Sequence) -> None:
        """Give a sequence to a group, or queue it."""
        if self._policy == "shared_queue":
            self.queue.append(sequence)
            for group in self.groups:
                self.refill(group)
        elif self._policy == "round_robin":
            self._turn += 1
            self.groups[(self._turn - 1) % len(self.groups)].submit(sequence)
        else:
            min(self.groups, key=lambda group: group.load / len(group.ranks)).submit(sequence)

    def refill(self, group: Group) -> None:
        """Give a group what it has free slots for."""
        slots = sum(rank.limits.max_num_seqs for rank in group.ranks)
        while self.queue and group.load < slots and not group.paused:
            group.submit(self.queue.popleft())
