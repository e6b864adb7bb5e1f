"""The busiest rank is what tokens drawn one by one say, and bad loads are refused by name."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.moe_model import MoeFfn
from planner.routing import (
    DirichletRouting,
    HotRouting,
    MeasuredRouting,
    UniformRouting,
    ZipfRouting,
    device_load,
    expert_shares,
)
from planner.routing.busiest import _known
from planner.routing.draws import Shares, chances
from planner.routing.imbalance import (
    chosen_max_over_mean,
    expected_imbalance_score,
    imbalance_score,
    max_over_mean,
)

FINE = MoeFfn(experts=64, top_k=8, width=1344)
GROUPED = MoeFfn(experts=64, top_k=8, width=1344, router="grouped", groups=8)


def load_of(shares, moe, ep, tokens, redundant=0):
    return device_load(shares, moe, np.array([ep]), np.array([tokens]), redundant)


@settings(max_examples=30, deadline=None)
@given(
    alpha=st.floats(0, 3), ep=st.sampled_from([1, 2, 4, 8, 16]), tokens=st.integers(1, 5000),
    moe=st.sampled_from([FINE, GROUPED]),
)  # fmt: skip
def test_ratio_lies_between_balance_and_one_rank_doing_all(alpha, ep, tokens, moe):
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=alpha), moe, 2)
    load = load_of(shares, moe, ep, tokens)
    assert 1 - 1e-9 <= load.busy_ratio[0] <= ep + 1e-9
    assert 0 < load.active_experts[0] <= 64 / ep + 1e-9


def test_few_tokens_are_less_even_than_many():
    shares = expert_shares(UniformRouting(), FINE, 40)
    ratios = [load_of(shares, FINE, 8, tokens).busy_ratio[0] for tokens in (1, 8, 64, 512, 65536)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 2
    assert ratios[-1] == pytest.approx(1, abs=0.01)


def test_one_group_a_rank_is_balanced_by_construction():
    """MoGE: every token takes one expert of each group (arXiv:2505.21411)."""
    shares = expert_shares(ZipfRouting(kind="zipf", alpha=1.2), GROUPED, 3)
    for tokens in (1, 7, 1000):
        assert load_of(shares, GROUPED, 8, tokens).busy_ratio[0] == pytest.approx(1)


@pytest.mark.parametrize("top_k", [1, 8, 32, 64])
@pytest.mark.parametrize(
    "routing",
    [ZipfRouting(kind="zipf", alpha=10), DirichletRouting(kind="dirichlet", alpha=1e-6),
     DirichletRouting(kind="dirichlet", alpha=1e-3), DirichletRouting(kind="dirichlet", alpha=1e6),
     HotRouting(kind="hot", hottest_share=0.999)],
)  # fmt: skip
def test_extreme_loads_stay_within_what_a_token_can_choose(routing, top_k):
    """No expert is chosen more than once a token, and every token chooses top_k."""
    moe = MoeFfn(experts=64, top_k=top_k, width=10)
    shares = expert_shares(routing, moe, 5)
    assert shares.sum(axis=1) == pytest.approx(1)
    found = chances(Shares.of(shares), moe)
    assert found.max() <= 1 + 1e-9
    assert found.sum(axis=1) == pytest.approx(top_k, rel=1e-6)
    ranks = np.array([1, 8, 64, 64])
    load = device_load(shares, moe, ranks, np.array([100, 100, 1, 10**9]))
    assert np.isfinite(load.busy_ratio).all()
    assert (load.busy_ratio >= 1 - 1e-9).all()
    assert (load.busy_ratio <= 64 / top_k + 1e-6).all()


def test_copies_of_hot_experts_even_the_load():
    shares = expert_shares(HotRouting(kind="hot", hottest_share=0.1), FINE, 4)
    plain = load_of(shares, FINE, 8, 10**7).busy_ratio[0]
    copied = load_of(shares, FINE, 8, 10**7, redundant=8).busy_ratio[0]
    assert plain == pytest.approx(8 * (0.1 + 7 * 0.9 / 63), rel=1e-3)
    assert copied < 1.1


def test_ranks_that_do_not_divide_are_refused_with_both_numbers():
    shares = expert_shares(UniformRouting(), FINE, 1)
    with pytest.raises(MoesaicError, match="moe_ep 7 does not divide 64 experts"):
        load_of(shares, FINE, 7, 10)
    assert load_of(shares, FINE, 9, 10, redundant=8).busy_ratio[0] >= 1


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "x"])
def test_bad_counts_are_refused(bad):
    with pytest.raises(MoesaicError) as caught:
        MeasuredRouting.parse({"kind": "measured", "counts": [[1, bad]]}, what="load")
    assert "/counts/0/1" in caught.value.path


def test_counts_of_another_model_name_both_sides():
    routing = MeasuredRouting(kind="measured", counts=((1.0, 2.0),))
    with pytest.raises(MoesaicError, match="2 experts, the model has 64"):
        expert_shares(routing, FINE, 3)
    deep = MeasuredRouting(kind="measured", counts=((1.0,) * 64,) * 2)
    with pytest.raises(MoesaicError, match="2 layers with tokens, the model has 3"):
        expert_shares(deep, FINE, 3)


def test_score_and_ratio_of_a_known_load():
    counts = np.array([[4.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert max_over_mean(counts, 4) == pytest.approx([2, 1])
    assert max_over_mean(counts, 2) == pytest.approx([1, 1])
    assert imbalance_score(counts, 4) == pytest.approx([1, 0])
    for bad, devices in ((counts, 3), (-counts, 2), (counts * np.nan, 2)):
        with pytest.raises(MoesaicError):
            max_over_mean(bad, devices)


@pytest.mark.parametrize(("batch", "printed"), [(16, 0.669), (128, 0.241), (456, 0.124)])
def test_mean_imbalance_score_of_uniform_top_8_of_64_on_8_devices(batch, printed):
    """Pangu Pro MoE's Monte Carlo: within three standard errors and 2 %."""
    shares = np.full((600, 64), 1 / 64)
    mean, error = expected_imbalance_score(shares, FINE, 8, batch)
    assert error < 0.01 * printed * 1.5
    assert mean == pytest.approx(printed, abs=3 * error + 0.005)
    assert expected_imbalance_score(shares[:4], GROUPED, 8, batch) == (0, 0)


@pytest.fixture(scope="module", params=["translation", "summary", "intent"])
def choices(request, shared):
    """Experts of each token, [layers, tokens, top_k], DeepSeek-V2-Lite."""
    folder = shared / "data" / "traces" / "routing_tokens_deepseek_v2_lite"
    with np.load(folder / f"{request.param}.npz", allow_pickle=False) as held:
        return held["expert_ids"].astype(np.int64)


@pytest.mark.parametrize("devices", [8, 32])
@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256, 1024, 8192])
def test_counts_alone_foretell_the_busiest_device_of_mixed_batches(choices, devices, batch):
    """Batches of tokens from anywhere in the trace: within 7 % at EP8 and 12 % at EP32."""
    moe = load_model("deepseek-v2-lite").moe
    counts = np.stack([np.bincount(layer.ravel(), minlength=64) for layer in choices])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mixed = choices[:, np.random.default_rng(0).permutation(choices.shape[1])][:, :8192]
    truth = chosen_max_over_mean(mixed[:, : 64 * batch], 64, devices, batch)
    load = load_of(shares, moe, devices, batch)
    noise = 3 * truth.std() / truth.size**0.5 / truth.mean() + 3 * load.error_ratio[0] / 2
    allowed = (0.04 if devices == 8 else 0.06) + noise
    assert load.busy_ratio[0] == pytest.approx(truth.mean(), rel=allowed)
    assert allowed < 0.4


@pytest.mark.parametrize(
    ("name", "printed"),
    [("decode_in1000out1000", (2.014, 2.880, 3.360)), ("prefill_in1024", (1.672, 2.289, 2.903)),
     ("prefill_in512", (1.547, 2.081, 2.665))],
)  # fmt: skip
def test_deepseek_v3_traces_on_8_32_and_64_devices(name, printed, shared):
    """Many tokens: the drawn load meets the recorded counts' busiest over mean."""
    path = shared / "data" / "traces" / "expert_load_deepseek_v3" / f"{name}.json"
    counts = np.array(json.loads(path.read_text())["logical_count"], dtype=float)
    used = counts[counts.sum(axis=1) > 0]
    shares, moe = used / used.sum(axis=1, keepdims=True), load_model("deepseek-v3").moe
    recorded = [max_over_mean(used, devices).mean() for devices in (8, 32, 64)]
    assert recorded == pytest.approx(printed, abs=5e-4)
    load = device_load(shares, moe, np.array([8, 32, 64]), np.array([10**9] * 3))
    assert load.busy_ratio == pytest.approx(recorded, rel=1e-3)


@given(
    asked=st.lists(
        st.tuples(st.sampled_from([1, 2, 8]), st.integers(1, 5000), st.sampled_from([0, 8])),
        min_size=2, max_size=12,
    ),
    alpha=st.sampled_from([0.0, 0.7]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_a_load_is_the_same_to_the_bit_whatever_is_asked_beside_it(asked, alpha):
    shares = np.arange(1, 65) ** -alpha * np.ones((3, 1))
    shares /= shares.sum(axis=1, keepdims=True)
    ranks, tokens, copies = (np.array(column) for column in zip(*asked, strict=True))
    _known.cache_clear()
    together = device_load(shares, FINE, ranks, tokens, copies)
    for at in range(len(asked)):
        _known.cache_clear()
        one = slice(at, at + 1)
        alone = device_load(shares, FINE, ranks[one], tokens[one], copies[one])
        for name in ("busy_ratio", "active_experts", "error_ratio"):
            assert getattr(alone, name)[0] == getattr(together, name)[at]
