"""One engine rank: continuous batching with chunked prefill over its own KV blocks.

Order of a step as in vLLM's V1 scheduler: running sequences first (one token each, then the prompts
under way), then the waiting ones while slots, tokens and blocks last. When blocks run out the
newest running sequence is preempted and recomputed later, and nobody is admitted in that step.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import MoesaicError
from planner.simulation.calendar import DecodeCalendar, DecodePlan, draw_accepted
from planner.simulation.kv import KvPool
from planner.simulation.sequence import Sequence
from planner.simulation.step_seconds import Iteration


@dataclass(frozen=True)
class EngineLimits:
    """What an engine is started with; the names are vLLM's where it has one."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_blocks: int = 65536
    block_tokens: int = 16
    prefix_cache: bool = False
    mtp_tokens: int = 0
    mtp_acceptance_ratio: float = 0.0
    prefill_first: bool = False
    """Whether prompts get iterations of their own while decoding pauses, instead of sharing."""
    async_scheduling: bool = False
    """Whether an iteration is planned while the one before it runs: arrivals and freed slots then
    count one iteration later (vLLM's default since 0.14, TensorRT-LLM's overlap scheduler)."""


class Rank:
    """Scheduler state of one rank.

    Args:
        limits: what the engine was started with.
        random: draws accepted speculated tokens.
        on_finish: called with a sequence and the time of its last token.
        hand_over: prefill-only ranks give a finished prompt to this instead of decoding it; the
            sequence keeps its blocks until `drop` is called.
    """

    def __init__(
        self,
        limits: EngineLimits,
        random: np.random.Generator,
        on_finish: Callable[[Sequence, float], None],
        hand_over: Callable[[Sequence, Rank], None] | None = None,
    ) -> None:
        self.limits = limits
        self.kv = KvPool(limits.kv_blocks, limits.block_tokens, keep_prefixes=limits.prefix_cache)
        self.waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._chunks: list[tuple[Sequence, int]] = []
        self._decoding: dict[Sequence, None] = {}
        self._handed: dict[Sequence, None] = {}
        self._finishes: list[tuple[int, int, int, Sequence]] = []
        self._calendar = DecodeCalendar(limits.block_tokens)
        self._step = 0
        self._context_tokens = 0
        self._preempted = False
        self._fresh: deque[Sequence] = deque()
        self._admitting = False
        self._decode_paused = False
        self._planned_running = 0
        self._random = random
        self._on_finish = on_finish
        self._hand_over = hand_over
        self._queries = 1 + limits.mtp_tokens
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Sequences admitted and not finished."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def decoding(self) -> int:
        """Sequences in decode."""
        return len(self._decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            MoesaicError: `infeasible` when the whole KV cache cannot hold it.
        """
        request = sequence.request
        tokens = request.isl_tokens + request.osl_tokens + self._queries
        if self.kv.blocks_for(tokens) > self.kv.blocks:
            where = f" (trace line {request.line})" if request.line else ""
            raise MoesaicError(
                "infeasible",
                f"request {sequence.index}{where} needs {tokens} tokens of KV cache; a rank holds "
                f"{self.kv.blocks * self.kv.block_tokens}",
            )
        self._fresh.append(sequence)

    @property
    def queued(self) -> int:
        """Sequences not admitted yet."""
        return len(self.waiting) + len(self._fresh)

    def plan(self, now_s: float, *, idle: bool = False) -> Iteration:
        """Choose what the next iteration holds and take its blocks.

        Args:
            now_s: when the iteration starts.
            idle: whether nothing ran before it, so that nothing was planned ahead.
        """
        lag = self.limits.async_scheduling and not idle
        if not lag:
            self._take_in(now_s)
        alone = self.limits.prefill_first
        preempted = self._preempted = not alone and self._make_room()
        self._chunks = []
        shared = 0 if alone else len(self._decoding) * self._queries
        budget = self.limits.max_num_batched_tokens - shared
        for sequence in self._prefilling:
            budget = self._chunk(sequence, budget)
        running = self.running
        if self.waiting and not preempted:
            slots = self.limits.max_num_seqs - (
                max(running, self._planned_running) if lag else running
            )
            self._admit(budget, now_s, slots)
        self._admitting = lag and bool(
            self._fresh or (self.waiting and self._planned_running > running)
        )
        self._decode_paused = alone and bool(self._chunks)
        if alone and not self._decode_paused:
            self._preempted = self._make_room()
        self._planned_running = self.running
        if lag:
            self._take_in(now_s)
        return self._shape()

    def _take_in(self, now_s: float) -> None:
        """Move arrivals to the queue; they were in the socket until now."""
        for sequence in self._fresh:
            sequence.queued_s = now_s
        self.waiting.extend(self._fresh)
        self._fresh.clear()

    def _make_room(self) -> bool:
        needed = self._calendar.blocks_at(self._step) if self._decoding else 0
        preempted = False
        while needed > self.kv.available:
            self._preempt()
            preempted = True
            needed = self._calendar.blocks_at(self._step)
        if needed:
            self.kv.take(needed)
        return preempted

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        tokens = min(sequence.prompt_tokens - sequence.done_tokens, budget)
        if tokens > 0:
            self._chunks.append((sequence, tokens))
            return budget - tokens
        return budget

    def _admit(self, budget: int, now_s: float, slots: int) -> None:
        """Admit in order of arrival; a prompt's blocks are reserved as a whole."""
        while self.waiting and slots > 0:
            sequence = self.waiting[0]
            ready = sequence.done_tokens >= sequence.prompt_tokens
            if budget < (self._queries if ready else 1) or not self._reserve(sequence, ready=ready):
                return
            self.waiting.popleft()
            slots -= 1
            if sequence.scheduled_s < 0:
                sequence.scheduled_s = now_s
            if ready:
                self._start_decode(sequence)
                budget -= self._queries
            else:
                self._prefilling.append(sequence)
                budget = self._chunk(sequence, budget)

    def _reserve(self, sequence: Sequence, *, ready: bool) -> bool:
        kv, request = self.kv, sequence.request
        units: list[int] = []
        if kv.keep_prefixes and request.prefix_ids and not ready:
            units = kv.match(request.prefix_ids, request.prefix_block_tokens)
        shared = len(units) * kv.unit_blocks()
        # A sequence that starts to decode in this step also needs room for the tokens of the step.
        tokens = sequence.prompt_tokens + (self._queries if ready else 0)
        needed = max(kv.blocks_for(tokens) - shared, 0)
        if needed > kv.available:
            kv.release(units)
            return False
        held = max(kv.blocks_for(sequence.prompt_tokens) - shared, 0)
        kv.take(needed)
        sequence.units, sequence.blocks = units, held
        if units:
            cached = min(len(units) * request.prefix_block_tokens, sequence.prompt_tokens - 1)
            sequence.done_tokens = cached
            sequence.cached_tokens = max(sequence.cached_tokens, cached)
        return True

    def _shape(self) -> Iteration:
        count = 0 if self._decode_paused else len(self._decoding)
        context = self._context_tokens + count * self._queries if count else 0
        if not self._chunks:
            return Iteration(decode_sequences=count, decode_context_tokens=context)
        tokens = pairs = finishing = 0
        for sequence, chunk in self._chunks:
            tokens += chunk
            pairs += chunk * sequence.done_tokens + chunk * (chunk + 1) // 2
            finishing += sequence.done_tokens + chunk == sequence.prompt_tokens
        return Iteration(tokens, len(self._chunks), pairs, count, context, finishing)

    def quiet_steps(self, most: int) -> int:
        """Steps, this one included, after which something can change at the earliest."""
        if self._chunks or self._preempted or self._admitting:
            return 1
        if not self._decoding:
            return most
        steps = min(most, self._next_finish() - self._step + 1)
        if steps > 1:
            room = self.kv.available
            for ahead, needed in enumerate(self._calendar.blocks(self._step + 1, steps - 1), 1):
                room -= needed
                if room < 0:
                    return ahead
        return steps

    def coming(self, steps: int) -> list[Iteration]:
        """Shapes of this step and the next ones, when only decoding goes on."""
        count = len(self._decoding)
        context = self._context_tokens + count * self._queries
        shapes = []
        for gained in self._calendar.tokens(self._step, steps):
            shapes.append(Iteration(0, 0, 0, count, context))
            context += gained
        return shapes

    def advance(self, steps: int, end_s: float) -> None:
        """Close `steps` iterations that ended at `end_s`: finish, hand over, start decoding."""
        if self._decode_paused:
            self._decode_paused = False
        else:
            self._decode(steps, end_s)
        for sequence, tokens in self._chunks:
            sequence.done_tokens += tokens
            if sequence.done_tokens == sequence.prompt_tokens:
                self._prefilling.remove(sequence)
                self._prompt_done(sequence, end_s)
        self._chunks = []

    def _decode(self, steps: int, end_s: float) -> None:
        if self._decoding:
            if steps > 1:
                self.kv.take(sum(self._calendar.blocks(self._step + 1, steps - 1)))
                self._context_tokens += sum(self._calendar.tokens(self._step, steps))
            else:
                self._context_tokens += self._calendar.tokens_at(self._step)
        self._step += steps
        self._finish_decodes(end_s)

    def _prompt_done(self, sequence: Sequence, end_s: float) -> None:
        self._keep_prefix(sequence)
        sequence.emitted_tokens += 1
        if sequence.first_token_s < 0:
            sequence.first_token_s = end_s
        if sequence.emitted_tokens == sequence.request.osl_tokens:
            self.drop(sequence)
            self._on_finish(sequence, end_s)
        elif self._hand_over is not None:
            self._handed[sequence] = None
            self._hand_over(sequence, self)
        else:
            self._start_decode(sequence)

    def _keep_prefix(self, sequence: Sequence) -> None:
        request = sequence.request
        if not (self.kv.keep_prefixes and request.prefix_ids):
            return
        full = request.isl_tokens // request.prefix_block_tokens
        new = self.kv.keep(request.prefix_ids[:full])
        sequence.units.extend(new)
        sequence.blocks -= len(new) * self.kv.unit_blocks()

    def _start_decode(self, sequence: Sequence) -> None:
        remaining = sequence.request.osl_tokens - sequence.emitted_tokens
        gains = None
        if self.limits.mtp_tokens:
            gains = draw_accepted(
                remaining, self.limits.mtp_tokens, self.limits.mtp_acceptance_ratio, self._random
            )
        steps = remaining if gains is None else len(gains)
        plan = DecodePlan(self._step, sequence.prompt_tokens, steps, gains, self._queries)
        sequence.plan = plan
        self._calendar.enter(self._step, plan)
        self._decoding[sequence] = None
        self._context_tokens += sequence.prompt_tokens
        heapq.heappush(
            self._finishes, (self._step + steps - 1, sequence.index, sequence.epoch, sequence)
        )

    def _next_finish(self) -> int:
        while True:
            step, _, epoch, sequence = self._finishes[0]
            if epoch == sequence.epoch:
                return step
            heapq.heappop(self._finishes)

    def _finish_decodes(self, end_s: float) -> None:
        while self._decoding and self._next_finish() < self._step:
            sequence = heapq.heappop(self._finishes)[3]
            self._leave_decode(sequence)
            self.drop(sequence)
            self._on_finish(sequence, end_s)

    def _leave_decode(self, sequence: Sequence) -> None:
        """Take a sequence out of decode, its tokens and blocks counted up to this step."""
        plan = sequence.plan
        assert plan is not None  # noqa: S101 - decoding sequences have a plan
        taken = self._step - plan.start_step
        gained = plan.gained(taken)
        if taken < plan.steps:
            self._calendar.enter(self._step, plan, sign=-1)
        del self._decoding[sequence]
        sequence.epoch += 1
        self._context_tokens -= plan.context_tokens + gained
        sequence.emitted_tokens += gained
        block_tokens = self.limits.block_tokens
        sequence.blocks += plan.blocks_after(taken, block_tokens) - plan.blocks_after(
            0, block_tokens
        )
        sequence.plan = None

    def _preempt(self) -> None:
        """Throw the newest running sequence back to the head of the queue, its KV lost."""
        if self._prefilling:
            sequence = self._prefilling.pop()
        else:
            sequence = next(reversed(self._decoding))
            self._leave_decode(sequence)
        self._forget(sequence)
        self.waiting.appendleft(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """Give a sequence's cache up; what it has computed and emitted is a prompt again."""
        self.drop(sequence)
        sequence.prompt_tokens = sequence.request.isl_tokens + sequence.emitted_tokens
        sequence.done_tokens = 0
        sequence.preemptions += 1
        self.preemptions += 1

    def evict_all(self) -> list[Sequence]:
        """Give up every sequence, running ones to be recomputed: in order of admission, then wait.

        Caches on their way to another pool are lost, too. To be called between iterations.
        """
        while self.running:
            self._preempt()
        travelling = list(self._handed)
        for sequence in travelling:
            sequence.epoch += 1
            self._forget(sequence)
        gone = [*travelling, *self.waiting, *self._fresh]
        self.waiting.clear()
        self._fresh.clear()
        return gone

    def drop(self, sequence: Sequence) -> None:
        """Give a sequence's blocks back; its prefix units stay cached."""
        self._handed.pop(sequence, None)
        self.kv.give(sequence.blocks)
        self.kv.release(sequence.units)
        sequence.blocks, sequence.units = 0, []
