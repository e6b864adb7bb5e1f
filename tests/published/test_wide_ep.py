"""DeepSeek's published profile and SGLang on 96 H100: wide expert parallelism, nothing fitted.

Kernels as measured (H800: DeepGEMM and FlashMLA from InferSim; H100: tables of its own), exchanges
of DeepEP, two micro-batches that hide one another's exchange. 62,713 and 18,598 tokens/s a node are
of balanced routing, the decode one at EP128; EP144 is the online service, whose 14,800 mix loads.
"""

import numpy as np
import pytest

from planner.estimate import estimate_one
from planner.validation.papers import paper_figures


@pytest.mark.parametrize(
    "name",
    ["deepseek-profile-prefill", "deepseek-profile-decode", "sglang96-prefill-balanced",
     "sglang96-decode-4000-mtp"],
)  # fmt: skip
def test_tokens_of_a_node_within_15_percent(error_of, name):
    """Reached +10.3, +11.7, -6.0 and +7.5 %."""
    assert abs(error_of(name)) < 0.15


@pytest.mark.xfail(
    strict=True,
    reason="reached +19 %: with 256 sequences a GPU two micro-batches hide nearly all of the "
    "exchange here; published, two-batch overlap gives +25.5 % where it gives +76 % here",
)
def test_tokens_of_a_decoding_node_at_256_sequences_within_15_percent(error_of):
    assert abs(error_of("sglang96-decode-2000")) < 0.15


def node_rate(name, role, **changed):
    figure = paper_figures()[name]
    answer = estimate_one(figure.point | changed)
    return 8 * getattr(answer, f"{role}_tokens_per_s_per_device").typical


def test_without_two_micro_batches():
    """12,929 tokens/s a node: reached -13 %; with them 17,552: +6 %."""
    plain = node_rate("sglang96-decode-4000-mtp", "decode", experts={"overlap": "none"})
    assert plain == pytest.approx(12929, rel=0.15)
    assert node_rate("sglang96-decode-4000-mtp", "decode") == pytest.approx(17552, rel=0.15)


def test_two_micro_batches_do_not_pay_with_few_sequences():
    """At 32 sequences a GPU overlap loses (-27 % published; reached -4 %), at 256 it wins."""
    pool = paper_figures()["sglang96-decode-2000"].point["decode"]
    gains = []
    for batch in (32, 256):
        sized = pool | {"batch": batch}
        rates = [
            node_rate("sglang96-decode-2000", "decode", decode=sized, experts={"overlap": way})
            for way in ("none", "micro_batch")
        ]
        gains.append(rates[1] / rates[0] - 1)
    assert gains[0] < 0 < gains[1]


@pytest.mark.parametrize(("isl", "rate"), [(1024, 57674), (2048, 54543), (4096, 50302)])
def test_prefill_as_routed_within_15_percent(served_elsewhere, isl, rate):
    """16,384 tokens a GPU, the load of other requests than the layout was balanced for."""
    pool = paper_figures()["sglang96-prefill-balanced"].point["prefill"]
    batched = pool | {"batch": 16384 // isl}
    rates = [
        node_rate("sglang96-prefill-balanced", "prefill", routing=r, isl=isl, prefill=batched)
        for r in served_elsewhere
    ]
    assert np.mean(rates) == pytest.approx(rate, rel=0.15)
