"""Serving on Ascend: Pangu Pro MoE, CloudMatrix384 and xDeepServe against the engine layer.

The layer's numbers are fitted on the dense models of Pangu's tables (planner/engines/fitted/
mindie.yaml); everything else here is predicted. Acceptance of Pangu's drafts is not published: 0.7,
the lower end of what DeepSeek's reach on these machines.
"""

from functools import cache

import numpy as np
import pytest

from planner.estimate import Group, estimate_one
from planner.model_library import resolve_model
from planner.point import Point
from planner.pricing import price
from planner.timing.engine_layer import load_fit
from planner.validation.ascend_fit import fit_ascend
from planner.validation.papers import paper_figures


def test_the_shipped_numbers_are_those_of_the_dense_rows():
    fit, shipped = fit_ascend(), load_fit("mindie")
    assert [t.log_ratio for t in shipped.tpot.terms] == pytest.approx(
        [t.log_ratio for t in fit.tpot.terms], abs=2e-3
    )
    assert shipped.tpot.rows_count == 6


@pytest.mark.parametrize(
    "name",
    ["pangu-moe-prefill", "pangu-moe-decode-456", "pangu-moe-mtp-decode-584"],
)
def test_pangu_pro_moe_within_12_percent(error_of, name):
    """4,828, 1,148 and 1,528 tokens/s a card; reached +3.4, +2.8 and +7.9 %."""
    assert abs(error_of(name)) < 0.12


@pytest.mark.parametrize(
    "name",
    [f"pangu-{size}-{what}" for size, most in (("32b", 336), ("72b", 228))
     for what in ("prefill", "decode-1", f"decode-{most}")],
)  # fmt: skip
def test_dense_controls_within_12_percent(error_of, name):
    """At most 8.8 % (one sequence of the 32B model)."""
    assert abs(error_of(name)) < 0.12


@pytest.mark.xfail(
    strict=True,
    reason="reached +60 %: 18.4 ms a token at batch 1 is 0.2 ms a layer beyond what dense layers "
    "take, kernels that dense rows say nothing of",
)
def test_one_sequence_of_pangu_pro_moe_within_12_percent(error_of):
    assert abs(error_of("pangu-moe-decode-1")) < 0.12


@pytest.mark.parametrize(
    "name",
    ["cm384-prefill-balanced", "cm384-decode-4096", "cm384-decode-2048", "cm384-decode-1024",
     "xdeepserve-decode"],
)  # fmt: skip
def test_deepseek_r1_within_15_percent(error_of, name):
    """6,688 with perfect balance -1.8 %; 1,943, 2,360 and 2,733 -9.8, -5.1 and -7.2 %; 2,400
    (93 ms and a gap of 2 ms) +1.3 %."""
    assert abs(error_of(name)) < 0.15


@pytest.mark.xfail(
    strict=True,
    reason="reached -37 %: with 8 tokens a die every kernel's fixed time counts, and those of "
    "Ascend's fused operators are not published",
)
def test_deepseek_r1_at_15_ms_within_15_percent(error_of):
    assert abs(error_of("cm384-decode-15ms")) < 0.15


def test_deepseek_r1_prefill_with_real_balance_within_15_percent(served_elsewhere):
    """5,655: layouts that DeepSeek's balancer made from one published load serve another.

    32 redundant experts, mean over ordered pairs of three loads; reached +7 to +8 %.
    """
    point = paper_figures()["cm384-prefill-balanced"].point
    answers = (estimate_one(point | {"routing": routing}) for routing in served_elsewhere)
    rates = [2 * answer.prefill_tokens_per_s_per_device.typical for answer in answers]
    assert np.mean(rates) == pytest.approx(5655, rel=0.15)


def prompt_rate(share, **changed):
    """Prompt tokens a second of a die, cached ones counted, with a share of each prompt cached."""
    tokens = int(4096 * share)
    point = paper_figures()["cm384-prefill-balanced"].point | {"prefix_tokens": tokens} | changed
    computed = estimate_one(point).prefill_tokens_per_s_per_device.typical
    return computed / (1 - tokens / 4096)


def test_context_cache_of_cloudmatrix():
    """Half of a prompt cached: 1.42 times the prefill; the rate of the pool that this means (0.75
    GB/s a die) gives 2.41 times at 90 %, published 2.28. Local hits would give 1.8 and 8."""
    plain = prompt_rate(0.0)
    pool = {"prefix_bytes_per_s": "0.75 GB/s"}
    assert prompt_rate(0.5, **pool) / plain == pytest.approx(1.42, rel=0.02)
    assert prompt_rate(0.9, **pool) / plain == pytest.approx(2.28, rel=0.10)
    assert prompt_rate(0.9) / plain > 5


def test_gain_of_drafts_on_cloudmatrix():
    """One draft, 70 % accepted: 6 to 49 % more tokens over batches; reached 13 to 55 %."""
    gains = []
    for name in ("cm384-decode-4096", "cm384-decode-1024", "cm384-decode-15ms"):
        point = paper_figures()[name].point
        plain = {k: v for k, v in point.items() if not k.startswith("mtp")}
        rates = [estimate_one(p).decode_tokens_per_s_per_device.typical for p in (plain, point)]
        gains.append(rates[1] / rates[0] - 1)
    assert 0.06 < min(gains) < 0.49
    assert max(gains) == pytest.approx(0.49, abs=0.1)


KERNELS = {  # xDeepServe, Figure 20: percent of an iteration
    "quant_matmul": 22.1, "mla": 21.8, "combine": 20.4, "dispatch": 15.3, "others": 11.7,
    "mla_preprocess": 8.7,
}  # fmt: skip


STAGES = {"dispatch": "dispatch", "combine": "combine", "experts": "quant_matmul",
          "dense": "quant_matmul", "shared": "quant_matmul"}  # fmt: skip


@cache
def shares():
    """Percent of kernel time by the figure's names.

    The matrix products before the attention core are its preprocess; experts, the output
    projection, dense and shared blocks are quantised products.
    """
    group = Group.of([Point.model_validate(paper_figures()["xdeepserve-decode"].point)],
                     resolve_model)  # fmt: skip
    priced = price(group.passes({0: 1.0}), group.question)
    point = priced.passes.filter(phase="decode")["point"][0]
    found = dict.fromkeys(KERNELS, 0.0)
    for row in priced.timed.filter(point=point).iter_rows(named=True):
        name = STAGES.get(row["stage"], "others")
        if row["stage"] == "attention":
            output = row["kernel"] == "gemm" and row["k"] > row["n"] and row["n"] > 4096
            name = "mla_preprocess" if row["kernel"] == "gemm" else "mla"
            name = "quant_matmul" if output else name
        found[name] += row["typical_s"] * row["repeat_count"]
    total = sum(found.values())
    return {name: 100 * value / total for name, value in found.items()}


@pytest.mark.parametrize("name", ["others", "mla_preprocess"])
def test_shares_of_an_iteration_within_15_percent(name):
    assert shares()[name] == pytest.approx(KERNELS[name], rel=0.15)


@pytest.mark.xfail(
    strict=True,
    reason="reached 29.8, 31.9, 10.9 and 6.7 %: the published dispatch and combine wait for "
    "stragglers (185 to 1,231 and 165 to 2,939 us), and attention there runs above 65 % of peak",
)
@pytest.mark.parametrize("name", ["quant_matmul", "mla", "combine", "dispatch"])
def test_shares_of_exchange_and_products_within_15_percent(name):
    assert shares()[name] == pytest.approx(KERNELS[name], rel=0.15)
