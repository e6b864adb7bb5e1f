"""What the coming decode steps of a rank already owe: tokens that will be stored, blocks needed.

Every sequence writes its future in when it starts to decode, so that one step costs the same for
one sequence as for a thousand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_INITIAL_STEPS = 4096
Counts = NDArray[np.int64]


class DecodeCalendar:
    """Per step, the sums over sequences of stored tokens and of newly needed KV blocks."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._first = 0
        self._tokens: Counts = np.zeros(_INITIAL_STEPS, dtype=np.int64)
        self._blocks: Counts = np.zeros(_INITIAL_STEPS, dtype=np.int64)

    def enter(self, step: int, plan: DecodePlan, sign: int = 1) -> None:
        """Add (or with `sign` -1 take away) a plan's steps from `step` on."""
        skip = step - plan.start_step
        count = plan.steps - skip
        self._reach(step, step + count)
        low = step - self._first
        if plan.tokens is None:
            self._tokens[low : low + count] += sign
            first = (-(plan.context_tokens + skip)) % self._block_tokens
            self._blocks[low + first : low + count : self._block_tokens] += sign
        else:
            self._tokens[low : low + count] += sign * plan.tokens[skip:]
            self._blocks[low : low + count] += sign * plan.new_blocks(self._block_tokens)[skip:]

    def tokens_at(self, step: int) -> int:
        """Tokens stored in one step."""
        at = step - self._first
        return self._tokens.item(at) if at < len(self._tokens) else 0

    def blocks_at(self, step: int) -> int:
        """Blocks newly needed in one step."""
        at = step - self._first
        return self._blocks.item(at) if at < len(self._blocks) else 0

    def tokens(self, step: int, count: int) -> list[int]:
        """Tokens stored in each of `count` steps from `step`."""
        self._reach(step, step + count)
        low = step - self._first
        return self._tokens[low : low + count].tolist()  # type: ignore[no-any-return]

    def blocks(self, step: int, count: int) -> list[int]:
        """Blocks newly needed in each of `count` steps from `step`."""
        self._reach(step, step + count)
        low = step - self._first
        return self._blocks[low : low + count].tolist()  # type: ignore[no-any-return]

    def _reach(self, now: int, end: int) -> None:
        """Keep the arrays long enough; steps before `now` are forgotten when they must grow."""
        if end - self._first <= len(self._tokens):
            return
        size = max(2 * (end - now), _INITIAL_STEPS)
        keep = max(len(self._tokens) - (now - self._first), 0)
        for name in ("_tokens", "_blocks"):
            fresh: Counts = np.zeros(max(size, keep), dtype=np.int64)
            if keep:
                fresh[:keep] = getattr(self, name)[-keep:]
            setattr(self, name, fresh)
        self._first = now


class DecodePlan:
    """The steps one sequence will decode: one token each, or what speculation yields.

    Args:
        start_step: the rank's step in which it decodes first.
        context_tokens: tokens in its KV cache before that step.
        steps: steps until its last token.
        tokens: tokens gained in each step; null means one.
        queries: tokens computed in each step (1 plus the speculated ones).
    """

    __slots__ = ("context_tokens", "queries", "start_step", "steps", "tokens")

    def __init__(
        self,
        start_step: int,
        context_tokens: int,
        steps: int,
        tokens: Counts | None = None,
        queries: int = 1,
    ) -> None:
        self.start_step = start_step
        self.context_tokens = context_tokens
        self.steps = steps
        self.tokens = tokens
        self.queries = queries

    def gained(self, steps: int) -> int:
        """Tokens gained in the first `steps` steps."""
        return steps if self.tokens is None else int(self.tokens[:steps].sum())

    def blocks_after(self, steps: int, block_tokens: int) -> int:
        """KV blocks held after `steps` steps."""
        held = -(-self.context_tokens // block_tokens)
        if not steps:
            return held
        top = self.context_tokens + self.gained(steps - 1) + self.queries
        return max(held, -(-top // block_tokens))

    def new_blocks(self, block_tokens: int) -> Counts:
        """Blocks newly needed in each step."""
        tokens = np.ones(self.steps, dtype=np.int64) if self.tokens is None else self.tokens
        before = self.context_tokens + np.concatenate(([0], np.cumsum(tokens)[:-1]))
        held: Counts = np.concatenate(
            ([-(-self.context_tokens // block_tokens)], -(-(before + self.queries) // block_tokens))
        )
        fresh: Counts = np.diff(np.maximum.accumulate(held))
        return fresh


def draw_accepted(
    remaining_tokens: int, mtp_tokens: int, acceptance_ratio: float, random: np.random.Generator
) -> Counts:
    """Draw tokens gained a step until `remaining_tokens` are there.

    Each step yields one token plus the leading speculated ones that are accepted, each with
    probability `acceptance_ratio` (Leviathan et al. 2023, section 3.1).
    """
    accepted = random.random((remaining_tokens, mtp_tokens)) < acceptance_ratio
    gains: Counts = 1 + np.cumprod(accepted, axis=1).sum(axis=1, dtype=np.int64)
    total = np.cumsum(gains)
    steps = int(np.searchsorted(total, remaining_tokens)) + 1
    gains = gains[:steps].copy()
    gains[-1] -= total[steps - 1] - remaining_tokens
    return gains
