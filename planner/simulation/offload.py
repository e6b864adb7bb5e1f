"""Experts that do not all fit: an exact cache of experts, and what its misses cost a token.

One cache is shared by all layers (SmallThinker, PowerInfer `MAX_N_CACHED`); its unit is one expert
of one layer. Tokens come in the order they were routed in, so reuse from token to token counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError, unknown_name

Choices = NDArray[np.integer]
"""Expert ids [layer, token, k]."""


class ExpertCache(Protocol):
    """A cache of (layer, expert) units."""

    def touch(self, unit: int) -> bool:
        """Use a unit; true when it was there, else it is fetched."""
        ...


class LruCache:
    """Throws out the unit used longest ago."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def touch(self, unit: int) -> bool:
        """Use a unit."""
        if unit in self._held:
            self._held.move_to_end(unit)
            return True
        if len(self._held) >= self._capacity:
            self._held.popitem(last=False)
        self._held[unit] = None
        return False


class LfuCache:
    """Throws out the unit used least often since it came in, the longest unused among equals."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._uses: dict[int, int] = {}
        self._by_uses: dict[int, OrderedDict[int, None]] = {}
        self._fewest = 1

    def touch(self, unit: int) -> bool:
        """Use a unit."""
        uses = self._uses.get(unit, 0)
        if uses:
            level = self._by_uses[uses]
            del level[unit]
            if not level and self._fewest == uses:
                self._fewest = uses + 1
        else:
            if len(self._uses) >= self._capacity:
                self._evict()
            self._fewest = 1
        self._uses[unit] = uses + 1
        self._by_uses.setdefault(uses + 1, OrderedDict())[unit] = None
        return uses > 0

    def _evict(self) -> None:
        unit, _ = self._by_uses[self._fewest].popitem(last=False)
        del self._uses[unit]


class PinnedCache:
    """Keeps chosen units for good and leaves the rest of the room to an LRU cache."""

    def __init__(self, capacity: int, pinned: Iterable[int]) -> None:
        self._pinned = frozenset(pinned)
        if len(self._pinned) >= capacity:
            raise MoesaicError(
                "invalid",
                f"{len(self._pinned)} pinned experts leave no room in a cache of {capacity}; pin "
                "fewer, others need at least one place to pass through",
            )
        self._rest = LruCache(capacity - len(self._pinned))

    def touch(self, unit: int) -> bool:
        """Use a unit."""
        return unit in self._pinned or self._rest.touch(unit)


POLICIES = ("lru", "lfu", "pinned")


def build_cache(
    policy: str, capacity: int, history: Choices | None = None, pinned_share: float = 0.75
) -> ExpertCache:
    """Make a cache.

    Args:
        policy: one of `POLICIES`.
        capacity: experts it holds.
        history: choices from which `pinned` takes the most used experts.
        pinned_share: share of the capacity that is pinned.

    Raises:
        MoesaicError: `unknown_name` for a policy, `invalid` for no room or no history.
    """
    if capacity < 1:
        raise MoesaicError("invalid", f"an expert cache of {capacity}; it must hold at least one")
    if policy == "lru":
        return LruCache(capacity)
    if policy == "lfu":
        return LfuCache(capacity)
    if policy != "pinned":
        raise unknown_name("expert cache policy", policy, POLICIES)
    if history is None:
        raise MoesaicError("invalid", "a pinned cache needs a history to choose experts from")
    units, uses = np.unique(_units(history), return_counts=True)
    order = np.lexsort((units, -uses))[: int(capacity * pinned_share)]
    return PinnedCache(capacity, (int(unit) for unit in units[order]))


def cache_misses(choices: Choices, cache: ExpertCache) -> NDArray[np.int64]:
    """Run a trace through a cache, token after token, layer after layer.

    Returns:
        Misses [token, layer].
    """
    units = _units(choices)
    layers, tokens, _ = units.shape
    misses = np.zeros((tokens, layers), dtype=np.int64)
    touch = cache.touch
    for token, rows in enumerate(units.transpose(1, 0, 2).tolist()):
        for layer, chosen in enumerate(rows):
            misses[token, layer] = sum(not touch(unit) for unit in chosen)
    return misses


def _units(choices: Choices) -> NDArray[np.int64]:
    layers = np.arange(choices.shape[0], dtype=np.int64)[:, None, None]
    units: NDArray[np.int64] = (layers << 32) | choices.astype(np.int64)
    return units


@dataclass(frozen=True)
class OffloadCosts:
    """Seconds of one decoded token with everything in memory, and the storage behind it."""

    attention_s: float
    """One layer up to its experts."""
    experts_s: float
    """One layer's experts."""
    other_s: float
    """Once a token: embedding and output layer."""
    expert_bytes: float
    storage_bytes_per_s: float
    storage_latency_s: float = 0.0
    prefetch: bool = True
    """Whether the router runs before attention, so that fetching starts with the layer."""


def token_seconds(misses: NDArray[np.int64], costs: OffloadCosts) -> NDArray[np.float64]:
    """Seconds of each token when experts wait for what they miss.

    Storage serves one fetch after another. With prefetch a layer's fetches start when the layer
    does and hide behind its attention; without, they start when attention is done.

    Args:
        misses: experts to fetch [token, layer].
        costs: seconds and storage.

    Raises:
        MoesaicError: `invalid` for storage without bandwidth.
    """
    if not costs.storage_bytes_per_s > 0:
        raise MoesaicError("invalid", "storage needs a bandwidth above zero to fetch experts")
    fetch_s = misses * (costs.expert_bytes / costs.storage_bytes_per_s)
    fetch_s = fetch_s + np.where(misses > 0, costs.storage_latency_s, 0.0)
    hidden_s = costs.attention_s if costs.prefetch else 0.0
    waited_s = np.maximum(fetch_s - hidden_s, 0.0)
    layers = misses.shape[1]
    total: NDArray[np.float64] = (
        waited_s.sum(axis=1) + layers * (costs.attention_s + costs.experts_s) + costs.other_s
    )
    return total
