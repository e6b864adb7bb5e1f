"""Why compression loses what it loses: against brute force, and contradictions with a way out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.model_library import load_model
from planner.search import solver, solver_process
from planner.search.compressing import compress, parse_body
from planner.search.compressing_reasons import OBJECTIVE, compress_explained

SHARE = st.floats(0.01, 1)
LOSSES = st.lists(st.tuples(SHARE, SHARE, SHARE), min_size=4, max_size=4)


def bits_body(rows, budget, **more):
    """Two layers of two experts, alike in use."""
    factors = [{"layer": i // 2, "expert": i % 2, "activation_count": 1, "routing_weight_sum": 1,
                "quant_loss": dict(zip((1, 2, 3), row, strict=True))}
               for i, row in enumerate(rows)]  # fmt: skip
    return parse_body({"method": "bits", "factors": factors, "budget_bits": budget} | more)


def allocations(rows, budget, *, joint, high):
    """Error of every allocation within the budget, least first."""
    scale = 0.5 * 0.5**1.5
    found = []
    for picks in itertools.product((1, 2, 3), repeat=4):
        layers = picks[:2], picks[2:]
        fits = sum(picks) <= 2 * budget if joint else all(sum(x) <= budget for x in layers)
        kept = not high or all(2 in x and 3 in x for x in layers)
        if fits and kept:
            found.append(scale * sum(row[j - 1] for row, j in zip(rows, picks, strict=True)))
    return sorted(found)


@settings(max_examples=100, deadline=None)
@given(LOSSES, st.integers(2, 6), st.booleans(), st.booleans())
def test_bits_that_bind_equal_brute_force(rows, budget, joint, high):
    body = bits_body(rows, budget, scope="model" if joint else "layer", keep_high=high)
    values = allocations(rows, budget, joint=joint, high=high)
    if not values:
        with pytest.raises(MoesaicError, match="in conflict: budget_bits and keep_high"):
            compress_explained(body)
        return
    answer = compress_explained(body).answer
    assert answer.objective == pytest.approx(values[0], rel=1e-6)
    found = {item.limit: item for item in answer.binding}
    freed = {
        "budget_bits": allocations(rows, 6, joint=joint, high=high)[0],
        "keep_high": allocations(rows, budget, joint=joint, high=False)[0] if high else values[0],
        "scope": values[0] if joint else allocations(rows, budget, joint=True, high=high)[0],
    }
    for name, value in freed.items():
        if value < values[0] * (1 - 1e-5):
            assert found[name].without_objective == pytest.approx(value, rel=1e-6)
        if value >= values[0] * (1 - 1e-9):
            assert name not in found
    if "budget_bits" in found:
        more = allocations(rows, budget + 1, joint=joint, high=high)[0]
        assert found["budget_bits"].one_percent_more_objective == pytest.approx(more, rel=1e-6)
    if len(values) == 1:
        assert answer.runner_up is None
    else:
        lost = float(answer.runner_up.split("error ")[1].split()[0])
        assert lost == pytest.approx(values[1] - values[0], rel=0.006, abs=2e-7)


def kept(shares, keep, least, coverage, *, uniform):
    """Every choice of experts within the limits: score kept, most first."""
    layers = [
        [(n, shares[i, list(s)].sum()) for n in range(least, 4)
         for s in itertools.combinations(range(3), n)
         if shares[i, list(s)].sum() >= coverage - 1e-12]
        for i in range(2)
    ]  # fmt: skip
    return sorted(
        (a[1] + b[1] for a in layers[0] for b in layers[1]
         if a[0] + b[0] <= keep and (a[0] == b[0] or not uniform)), reverse=True,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(SHARE, min_size=6, max_size=6), st.integers(2, 6), st.integers(1, 3),
       st.sampled_from([0.0, 0.5, 0.8]), st.booleans())  # fmt: skip
def test_experts_that_are_kept_equal_brute_force(values, keep, least, coverage, uniform):
    scores = np.array(values).reshape(2, 3)
    shares = scores / scores.sum(axis=1, keepdims=True)
    body = parse_body({"method": "prune", "scores": scores, "keep_experts": keep, "top_k": least,
                       "coverage": coverage, "uniform": uniform})  # fmt: skip
    now = kept(shares, keep, least, coverage, uniform=uniform)
    if not now:
        with pytest.raises(MoesaicError, match="would do") as caught:
            compress_explained(body)
        assert "in conflict: keep_experts and" in caught.value.message
        return
    answer = compress_explained(body).answer
    assert answer.status == "optimal"
    found = {item.limit: item for item in answer.binding}
    freed = {
        "keep_experts": kept(shares, 6, least, coverage, uniform=uniform)[0],
        "top_k": kept(shares, keep, 1, coverage, uniform=uniform)[0],
        "coverage": kept(shares, keep, least, 0.0, uniform=uniform)[0],
        "uniform": kept(shares, keep, least, coverage, uniform=False)[0],
    }
    for name, value in freed.items():
        if value > now[0] * (1 + 1e-5):
            assert found[name].without_objective == pytest.approx(value, rel=1e-6)
        if value <= now[0] * (1 + 1e-9):
            assert name not in found
    if "keep_experts" in found:
        more = kept(shares, keep + 1, least, coverage, uniform=uniform)[0]
        assert found["keep_experts"].one_percent_more_objective == pytest.approx(more, rel=1e-6)
    if answer.runner_up is not None:
        lost = float(answer.runner_up.split(": ")[1].split()[0])
        assert now[0] - lost <= now[1] + 0.006 * lost + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(SHARE, min_size=8, max_size=8), st.sampled_from([0.0, 0.3, 0.5, 0.9]),
       st.sampled_from([1, 2]), st.booleans())  # fmt: skip
def test_units_and_their_tiles(values, cut, tile, uniform):
    asked = {"method": "atomic", "saliency": np.array(values).reshape(1, 2, 4), "cut_ratio": cut,
             "tile": tile, "uniform": uniform}  # fmt: skip
    answer = compress_explained(parse_body(asked)).answer
    found = {item.limit: item for item in answer.binding}
    assert ("cut_ratio" in found) == (cut > 0)
    for name, free in (("tile", {"tile": 1}), ("uniform", {"uniform": False})):
        other = compress(parse_body(asked | free)).answer.lost_saliency_share
        if other < answer.lost_saliency_share * (1 - 1e-5):
            assert found[name].without_objective == pytest.approx(other)
        else:
            assert name not in found
    assert (answer.runner_up is None) == uniform


@settings(max_examples=40, deadline=None)
@given(st.lists(SHARE, min_size=24, max_size=24), st.integers(2, 8), st.booleans())
def test_merging_says_what_its_rule_costs(drawn, groups, keep_first):
    asked = {"method": "merge", "logits": np.array(drawn).reshape(3, 2, 4), "groups": groups,
             "top_k": 2, "keep_first": keep_first}  # fmt: skip
    if groups < (5 if keep_first else 2):
        with pytest.raises(MoesaicError, match=r"groups 5 in place of .* would do"):
            compress_explained(parse_body(asked))
        return
    rule = compress_explained(parse_body(asked)).answer
    best = compress_explained(parse_body(asked | {"by": "loss"})).answer
    assert rule.bound_share <= best.lost_likeness_share + 1e-6
    found = {item.limit: item for item in rule.binding}
    if best.lost_likeness_share < rule.lost_likeness_share * (1 - 1e-5):
        assert found["by"].without_objective == pytest.approx(best.lost_likeness_share)
    assert f"{rule.lost_likeness_share:.6g} against {best.lost_likeness_share:.6g}" in (
        best.runner_up
    )
    freed = {item.limit: item for item in best.binding}
    if "groups" in freed:
        more = compress(parse_body(asked | {"by": "loss", "groups": groups + 1})).answer
        assert freed["groups"].one_percent_more_objective == pytest.approx(
            more.lost_likeness_share, abs=1e-7
        )


def test_fitting_says_which_memory_would_help():
    body = parse_body({"method": "fit", "devices": 1, "device_bytes": "40 GB"})
    answer = compress_explained(body, load_model("mixtral-8x7b")).answer
    found = {item.limit: item for item in answer.binding}
    assert set(found) == {"device_bytes", "memory_share", "devices"}
    assert found["device_bytes"].one_percent_more_objective < answer.lost_share
    assert found["devices"].one_percent_more_value == 2
    assert found["device_bytes"].without_objective == 0
    assert "in every layer" in answer.runner_up
    small = parse_body({"method": "fit", "devices": 1, "device_bytes": "6 GB", "uniform": True})
    with pytest.raises(MoesaicError, match=r"device_bytes [\d.]+ GiB in place of 5\.588 GiB"):
        compress_explained(small, load_model("mixtral-8x7b"))


def test_a_trace_is_scored_once():
    """Another top_k asks for other counts, not for other scores."""
    logits = np.random.default_rng(1).normal(size=(20, 2, 6))
    asked = {"method": "prune", "logits": logits, "keep_experts": 7, "top_k": 3}
    answer = compress_explained(parse_body(asked)).answer
    found = {item.limit: item for item in answer.binding}
    assert found["keep_experts"].without_objective == pytest.approx(2)
    assert set(OBJECTIVE) == {"bits", "prune", "atomic", "merge", "fit"}


def test_a_solver_without_memory_or_time_is_named(monkeypatch):
    monkeypatch.setattr(solver, "MOST_HERE", 0)
    solver_process.end_all()  # a process that has solved before holds enough memory for this one
    rows = [(0.9, 0.5, 0.1)] * 4
    with pytest.raises(MoesaicError, match="had found nothing") as caught:
        compress(bits_body(rows, 5, memory_limit_bytes=1))
    assert caught.value.kind == "internal"
    assert compress(bits_body(rows, 5, time_limit_s=1e-6)).answer.status == "optimal"


def test_bits_beyond_the_time_limit_are_flagged_with_their_gap():
    """Ninety experts a layer by eight layers at once: some answer in a tenth of a second."""
    rng = np.random.default_rng(3)
    factors = [{"layer": i // 90, "expert": i % 90, "activation_count": rng.uniform(1, 2),
                "routing_weight_sum": rng.uniform(1, 2),
                "quant_loss": dict(zip((1, 2, 3, 4), np.sort(rng.uniform(0, 1, 4))[::-1],
                                       strict=True))} for i in range(720)]  # fmt: skip
    asked = {"method": "bits", "factors": factors, "budget_bits": 201, "uniform": True}
    try:
        answer = compress(parse_body(asked | {"time_limit_s": 0.3})).answer
    except MoesaicError as error:
        said = error.message
        assert "no solution within" in said or "had found nothing" in said
        return
    assert answer.bound <= answer.objective + 1e-12
    assert (answer.status == "optimal") == (answer.gap_ratio <= 1e-6)
