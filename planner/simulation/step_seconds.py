"""What one engine iteration holds, and the only way seconds enter the simulation.

The simulation prices nothing itself. It hands the shape of an iteration to a `StepSeconds` (a
closed form in a test, a measured table, or the planner's timed work sheet) and adds only waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Iteration(NamedTuple):
    """What one rank computes in one engine iteration; whole numbers, so sums stay exact."""

    prefill_tokens: int = 0
    prefill_sequences: int = 0
    prefill_pairs: int = 0
    """Query-key pairs of the prefill chunks: each token sees its past and itself."""
    decode_sequences: int = 0
    decode_context_tokens: int = 0
    """Keys seen by the decoding sequences together, their new token included."""
    finishing_prefills: int = 0
    """Prompts whose last chunk this is; they and the decoding sequences need the output layer."""


class StepSeconds(Protocol):
    """Seconds of one iteration of ranks that step together."""

    def __call__(self, ranks: Sequence[Iteration]) -> float:
        """Return seconds, at least 0, for one lockstep iteration; one entry a rank."""
        ...


class SlowestRank:
    """Lockstep ranks without shared work: all wait for the slowest.

    Args:
        rank_s: seconds of one rank's iteration on its own.
        exchange_s: seconds that every lockstep iteration adds, e.g. its all-to-all.
    """

    def __init__(self, rank_s: Callable[[Iteration], float], exchange_s: float = 0.0) -> None:
        self._rank_s = rank_s
        self._exchange_s = exchange_s

    def __call__(self, ranks: Sequence[Iteration]) -> float:
        """Return the slowest rank's seconds plus the exchange."""
        if len(ranks) == 1:
            return self._rank_s(ranks[0]) + self._exchange_s
        return max(map(self._rank_s, ranks)) + self._exchange_s


class LinearSteps:
    """Seconds linear in what an iteration holds: the closed form that tests and sketches use."""

    def __init__(
        self,
        fixed_s: float,
        prefill_token_s: float = 0.0,
        decode_sequence_s: float = 0.0,
        context_token_s: float = 0.0,
        pair_s: float = 0.0,
    ) -> None:
        self._fixed_s = fixed_s
        self._prefill_token_s = prefill_token_s
        self._decode_sequence_s = decode_sequence_s
        self._context_token_s = context_token_s
        self._pair_s = pair_s

    def __call__(self, work: Iteration) -> float:
        """Return the seconds of one rank."""
        return (
            self._fixed_s
            + work.prefill_tokens * self._prefill_token_s
            + work.prefill_pairs * self._pair_s
            + work.decode_sequences * self._decode_sequence_s
            + work.decode_context_tokens * self._context_token_s
        )
