"""Experts outside the device's memory in `estimate` and `plan`: what they cost, and bad input."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.estimate import estimate_many, estimate_one
from planner.pipeline import make_plan, parse_scenario

PHONE = {"model": "smallthinker-21b-a3b", "device": "snapdragon-8-gen4", "backend": "llama-cpp",
         "precision": "q4_0", "isl": 64, "osl": 256, "concurrency": 1}  # fmt: skip
HYBRID = {"model": "deepseek-v3", "device": "rtx-4090d", "backend": "ktransformers",
          "precision": "q4_k_m", "isl": 500, "osl": 300, "concurrency": 1}  # fmt: skip
SSD = {"experts_in": "ssd", "memory_bytes": "8 GiB"}
HOST = {"experts_in": "ram", "host": "xeon-6454s-x2"}


def step_s(point, **offload):
    return estimate_one(point | {"offload": offload}).tpot_s.typical


def test_enough_memory_costs_nothing():
    whole = estimate_one(PHONE)
    kept = estimate_one(PHONE | {"offload": SSD | {"memory_bytes": "20 GB"}})
    assert kept.tpot_s == whole.tpot_s
    assert kept.offload.missed_share == 0
    assert whole.offload is None


def test_less_memory_and_slower_storage_never_help():
    rates = [step_s(PHONE, **SSD | {"memory_bytes": size}) for size in ("2 GiB", "5 GiB", "9 GiB")]
    assert rates == sorted(rates, reverse=True)
    slow = [step_s(PHONE, **SSD, storage_bytes_per_s=rate) for rate in (1e8, 1e9, 4e9)]
    assert slow == sorted(slow, reverse=True)


def test_the_limited_memory_is_what_the_answer_fills():
    answer = estimate_one(PHONE | {"offload": SSD})
    assert answer.memory.capacity_bytes == 8 * 2**30
    assert answer.memory.total_bytes == pytest.approx(8 * 2**30)
    assert answer.fits
    assert {"fetch", "experts"} <= {part.stage for part in answer.breakdown}


def test_forms_of_waiting_order():
    """Nothing hidden takes longest, everything hidden shortest."""
    serial, some, most = (step_s(PHONE, **SSD, waiting=form)
                          for form in ("serial", "prefetch", "overlapped"))  # fmt: skip
    assert serial > some >= most
    assert step_s(PHONE, **SSD) == serial


def test_a_measured_step_takes_the_place_of_the_kernels():
    measured = step_s(PHONE, **SSD, miss_ratio=0.0, memory_step_s="40 ms")
    assert measured == pytest.approx(0.040, rel=1e-6)


def test_a_host_computes_what_the_device_does_not_keep():
    alone = estimate_one(HYBRID)
    answer = estimate_one(HYBRID | {"offload": HOST})
    assert not alone.fits
    assert answer.fits
    assert answer.offload.storage_bytes_per_s is None
    assert {"crossing", "experts"} <= {part.stage for part in answer.breakdown}
    assert any("xeon-6454s-x2 computes" in text for text in answer.assumptions)


def test_experts_on_the_device_relieve_the_host():
    """Both work at once: best where neither waits long for the other."""
    none, some, most = (step_s(HYBRID | {"model": "deepseek-v2-lite"}, **HOST, resident_share=share)
                        for share in (0.0, 0.3, 0.9))  # fmt: skip
    assert some < most < none


@pytest.mark.parametrize(
    ("point", "offload", "kind", "says"),
    [
        (PHONE, SSD | {"memory_bytes": "0.5 GiB"}, "infeasible", "without its experts"),
        (PHONE | {"model": "qwen3-1.7b"}, SSD, "invalid", "no experts to offload"),
        (PHONE, SSD | {"storage_bytes_per_s": 0}, "invalid", "above zero"),
        (PHONE, SSD | {"memory_step_s": 1e-6}, "invalid", "host time"),
        (PHONE, {"experts_in": "tape"}, "invalid", "experts_in"),
        (PHONE, {"experts_in": "ram", "memory_bytes": "8 GiB"}, "outside_evidence", "give offload"),
        (PHONE, HOST, "outside_evidence", "no link to a host"),
        (HYBRID, HOST | {"host": "xeon"}, "unknown_name", "xeon"),
        (
            HYBRID | {"precision": "bf16", "device": "h100-sxm"},
            HOST,
            "infeasible",
            "memory of host",
        ),
    ],
)
def test_bad_questions_say_what_would_work(point, offload, kind, says):
    with pytest.raises(MoesaicError, match=says) as error:
        estimate_one(point | {"offload": offload})
    assert error.value.kind == kind
    (line,) = estimate_many([point | {"offload": offload}])
    assert line.error is not None


def test_a_plan_within_a_limit_keeps_fewer_sequences():
    asked = {"model": PHONE["model"], "cluster": "snapdragon-8-gen4-x1",
             "workload": {"isl": 64, "osl": 256}, "offload": SSD,
             "choices": {"backend": "llama-cpp", "precision": "q4_0",
                         "modes": ["agg"]}}  # fmt: skip
    free = make_plan(parse_scenario(asked))
    quick = make_plan(parse_scenario(asked | {"limits": {"tpot_s": 0.1}}))
    assert quick.pools[0].batch < free.pools[0].batch
    assert quick.pools[0].memory.total_bytes <= 0.9 * 8 * 2**30 * (1 + 1e-9)
    assert any(part.stage == "fetch" for part in quick.pools[0].breakdown["decode"])
