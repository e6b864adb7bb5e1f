"""A cache of recently used experts: bounds, monotony, and an exact cache beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.routing.cached import miss_ratio, use_probability
from planner.simulation.offload import build_cache, cache_misses


@given(st.integers(2, 128), st.floats(0.05, 0.9), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_misses_are_a_share_and_fall_with_room(experts, chosen, exponent, one, other):
    used = use_probability(experts, chosen * experts, exponent)
    assert used.sum() == pytest.approx(chosen * experts, rel=1e-6)
    less, more = sorted((one, other))
    assert 0 <= miss_ratio(used, more) <= miss_ratio(used, less) + 1e-9 <= 1 + 2e-9


def test_everything_or_nothing_resident():
    used = use_probability(64, 6, 1.0)
    assert miss_ratio(used, 1.0) == 0.0
    assert miss_ratio(used, 0.0) == 1.0


def test_a_pass_that_uses_everything_finds_nothing_of_the_last_one():
    assert use_probability(8, 8, 1.0).tolist() == [1.0] * 8
    assert miss_ratio(np.ones(8), 0.9) == 1.0


@pytest.mark.parametrize(("exponent", "share"), [(0.0, 0.25), (1.0, 0.25), (1.5, 0.6)])
def test_an_exact_cache_misses_as_often(exponent, share):
    """Independent tokens through the simulation's exact LRU cache: within 5 points."""
    rng = np.random.default_rng(3)
    layers, tokens, experts, top_k = 4, 3000, 32, 4
    weight = np.arange(1, experts + 1) ** -exponent
    keys = rng.exponential(size=(layers, tokens, experts)) / weight
    choices = np.argsort(keys, axis=-1)[..., :top_k]
    cache = build_cache("lru", round(layers * experts * share))
    exact = cache_misses(choices, cache)[500:].sum() / (layers * (tokens - 500) * top_k)
    found = miss_ratio(use_probability(experts, top_k, exponent), share)
    assert found == pytest.approx(exact, abs=0.05)
