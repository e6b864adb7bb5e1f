"""Expert caches against exact references on a real routing trace, and what misses cost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hwprofiles.errors import MoesaicError
from planner.simulation.offload import (
    Choices,
    OffloadCosts,
    build_cache,
    cache_misses,
    token_seconds,
)


@pytest.fixture(scope="module")
def traces(shared: Path) -> dict[str, Choices]:
    folder = shared / "data/traces/routing_tokens_deepseek_v2_lite"
    return {
        task: np.load(folder / f"{task}.npz")["expert_ids"]
        for task in ("translation", "summary", "intent")
    }


def uses(choices: Choices) -> list[tuple[int, int]]:
    layers, tokens, _ = choices.shape
    return [
        (layer, int(expert))
        for token in range(tokens)
        for layer in range(layers)
        for expert in choices[layer, token]
    ]


def lru_by_stack_distance(choices: Choices, capacity: int) -> int:
    """LRU by definition: a hit has seen fewer than `capacity` other units since the last use."""
    stack: list[tuple[int, int]] = []
    misses = 0
    for unit in uses(choices):
        if unit in stack:
            misses += stack.index(unit) >= capacity
            stack.remove(unit)
        else:
            misses += 1
        stack.insert(0, unit)
    return misses


def lfu_by_scan(choices: Choices, capacity: int) -> int:
    held: dict[tuple[int, int], tuple[int, int]] = {}
    misses = 0
    for now, unit in enumerate(uses(choices)):
        count = held.get(unit, (0, 0))[0]
        if not count:
            misses += 1
            if len(held) >= capacity:
                del held[min(held, key=lambda u: held[u])]
        held[unit] = (count + 1, now)
    return misses


@pytest.mark.parametrize("capacity", [100, 416, 1000])
def test_caches_equal_exact_references(traces: dict[str, Choices], capacity: int) -> None:
    part = traces["translation"][:, :120]
    assert cache_misses(part, build_cache("lru", capacity)).sum() == lru_by_stack_distance(
        part, capacity
    )
    assert cache_misses(part, build_cache("lfu", capacity)).sum() == lfu_by_scan(part, capacity)


def test_a_pinned_cache_never_misses_what_it_pins(traces: dict[str, Choices]) -> None:
    history, later = traces["summary"][:, :2000], traces["summary"][:, 2000:4000]
    pinned = cache_misses(later, build_cache("pinned", 1000, history)).mean()
    counts = Counter(uses(history))
    kept = {unit for unit, _ in counts.most_common(750)}
    others = sum(unit not in kept for unit in uses(later[:, :200]))
    assert cache_misses(later[:, :200], build_cache("pinned", 1000, history)).sum() <= others
    assert pinned < cache_misses(later, build_cache("lru", 1000)).mean()


def test_more_room_never_hurts_lru(traces: dict[str, Choices]) -> None:
    part = traces["intent"][:, :500]
    found = [cache_misses(part, build_cache("lru", n)).sum() for n in (100, 300, 600, 1200, 1664)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == len(set(uses(part)))


def test_a_task_switch_costs_misses_for_a_while(traces: dict[str, Choices]) -> None:
    both = np.concatenate([traces["translation"][:, :3000], traces["intent"][:, :3000]], axis=1)
    missed = cache_misses(both, build_cache("lru", 700)).sum(axis=1)
    before, just_after, later = missed[2500:3000], missed[3000:3030], missed[5000:]
    assert just_after.mean() > 1.5 * before.mean()
    assert just_after.mean() > later.mean()


COSTS = OffloadCosts(1e-4, 2e-4, 1e-3, 1e6, 1e9)


def test_misses_wait_behind_attention() -> None:
    misses = np.array([[0, 0], [1, 0], [1, 1], [3, 0]])
    base = 2 * 3e-4 + 1e-3
    hidden = token_seconds(misses, COSTS)
    assert hidden == pytest.approx([base, base + 9e-4, base + 18e-4, base + 29e-4])
    exposed = token_seconds(misses, OffloadCosts(1e-4, 2e-4, 1e-3, 1e6, 1e9, prefetch=False))
    assert exposed - hidden == pytest.approx([0, 1e-4, 2e-4, 1e-4])


def test_slow_storage_collapses(traces: dict[str, Choices]) -> None:
    misses = cache_misses(traces["summary"][:, :1000], build_cache("lru", 416))
    rates = [
        1 / token_seconds(misses, OffloadCosts(1e-4, 5e-4, 1e-3, 6e5, bandwidth)).mean()
        for bandwidth in (5e9, 0.5e9, 0.1e9)
    ]
    assert rates[0] > 2 * rates[1] > 4 * rates[2]


def test_impossible_caches_are_refused(traces: dict[str, Choices]) -> None:
    with pytest.raises(MoesaicError, match="at least one"):
        build_cache("lru", 0)
    with pytest.raises(MoesaicError, match="no expert cache policy 'fifo'"):
        build_cache("fifo", 5)
    with pytest.raises(MoesaicError, match="history"):
        build_cache("pinned", 5)
    with pytest.raises(MoesaicError, match="leave no room"):
        build_cache("pinned", 5, traces["intent"][:, :9], pinned_share=1.0)
    with pytest.raises(MoesaicError, match="bandwidth"):
        token_seconds(np.array([[1]]), OffloadCosts(1, 1, 1, 1, 0))
