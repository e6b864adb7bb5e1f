"""Expert load drawn anew for every batch: some batches hit the busy rank harder than others.

The planner prices every pass with the load that its busiest rank has on average. Here each
iteration gets a factor on its experts' time, drawn from how the busiest rank's load of one batch
spreads around that average, all layers of the batch taken together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.moe_model import MoeFfn
from planner.routing.draws import Shares, chances
from planner.routing.imbalance import max_over_mean
from planner.simulation.grid import Grid
from planner.simulation.step_seconds import Iteration, StepSeconds

_BATCHES = 64
"""Batches drawn for each number of tokens."""
_TOKENS = tuple(2**power for power in range(15))


def busy_factors(
    shares: NDArray[np.float64], moe: MoeFfn, ranks: int, seed: int
) -> dict[int, list[float]]:
    """Busiest rank's load of drawn batches over its average, by tokens of the batch.

    Args:
        shares: share of a layer's pairs that each expert takes, [layers, experts].
        moe: the expert block.
        ranks: expert-parallel ranks, which divide the experts.
        seed: of the draws.

    Returns:
        `_BATCHES` factors with mean 1 for each number of tokens; experts are chosen independently
        with their inclusion chances.
    """
    random = np.random.default_rng([seed, 2])
    chance = np.clip(chances(Shares.of(shares), moe), 0.0, 1.0)
    factors: dict[int, list[float]] = {}
    for tokens in _TOKENS:
        drawn = random.binomial(tokens, chance, size=(_BATCHES, *chance.shape)).astype(float)
        # An empty layer is balanced; it cannot be divided by its mean.
        drawn[drawn.sum(axis=-1) == 0] = 1.0
        busy = max_over_mean(drawn.reshape(-1, chance.shape[1]), ranks)
        by_batch = busy.reshape(_BATCHES, -1).mean(axis=1)
        factors[tokens] = (by_batch / by_batch.mean()).tolist()
    return factors


class DrawnLoadSeconds:
    """Adds the drawn part to planned seconds.

    The draw of a batch depends on what the batch holds, not on when it is asked for, so that runs
    that skip iterations see the same load.

    Args:
        planned: seconds with the average load.
        prefill_experts: experts' seconds of prefill passes over (tokens, past tokens).
        decode_experts: experts' seconds of decode passes over (sequences, context tokens).
        factors: of `busy_factors`.
        seed: shifts the draws.
    """

    def __init__(
        self,
        planned: StepSeconds,
        experts: tuple[Grid, Grid],
        factors: dict[int, list[float]],
        seed: int,
    ) -> None:
        self._planned = planned
        self._prefill, self._decode = experts
        self._sizes = sorted(factors)
        self._factors = factors
        self._seed = seed

    def __call__(self, ranks: Sequence[Iteration]) -> float:
        """Return seconds of the iteration with its own load."""
        tokens = sum(rank.prefill_tokens + rank.decode_sequences for rank in ranks)
        planned_s = self._planned(ranks)
        if not tokens:
            return planned_s
        at = max(bisect_right(self._sizes, tokens) - 1, 0)
        factors = self._factors[self._sizes[at]]
        pick = hash((self._seed, *ranks)) % len(factors)
        return planned_s + max(map(self._experts, ranks)) * (factors[pick] - 1)

    def _experts(self, rank: Iteration) -> float:
        count = rank.decode_sequences
        if rank.prefill_tokens:
            return self._prefill(rank.prefill_tokens + count, 0)
        return self._decode(count, rank.decode_context_tokens / count) if count else 0.0
