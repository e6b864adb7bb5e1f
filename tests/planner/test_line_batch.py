"""A batch answers every line as if it were asked alone, to the bit, whatever stands beside it."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from planner.estimate import estimate_one, estimate_rows
from planner.model_library import load_model

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios" / "points").glob("*.yaml"))
QWEN = {"model": "Qwen/Qwen3-30B-A3B", "device": "h100-sxm", "backend": "vllm", "tp": 2,
        "isl": 1024, "osl": 256, "concurrency": 24}  # fmt: skip
V3 = {"model": "deepseek-v3", "device": "h200-sxm", "backend": "sglang", "precision": "fp8",
      "dp": 8, "moe_ep": 8, "isl": 2048, "osl": 512, "concurrency": 512}  # fmt: skip
APART = {"mode": "disagg", "prefill": {"tp": 2, "moe_ep": 2}, "decode": {"tp": 4, "batch": 32}}
KINDS = [
    QWEN,
    QWEN | {"moe_ep": 2, "request_rate": 2.0, "concurrency": None},
    QWEN | {"request_rate": 1e6, "concurrency": None},
    QWEN | APART,
    QWEN | APART | {"concurrency": None},
    QWEN | {"routing": {"kind": "zipf", "alpha": 0.6}, "prefix_tokens": 256},
    QWEN | {"prefix_tokens": 512, "prefix_bytes_per_s": "10 GB/s"},
    QWEN | {"experts": {"overlap": "micro_batch"}},
    QWEN | {"experts": {"redundant_experts": 4}, "tp": 4, "moe_ep": 4},
    QWEN | {"lengths": {"kind": "summary", "isl_tokens": 1000, "osl_tokens": 300,
                        "isl_variation_ratio": 0.8}, "isl": None, "osl": None},
    QWEN | {"device": "ascend-a2-376t", "backend": "mindie", "tp": 4},
    QWEN | {"tp": 3},
    QWEN | {"precision": "fp5"},
    QWEN | {"isl": "many"},
    QWEN | {"backend_version": "0.8.1", "mtp_tokens": 1, "mtp_acceptance": 0.7},
    V3,
    V3 | {"dp": 32, "moe_ep": 32, "backend": "trtllm", "concurrency": 100_000},
    V3 | {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "precision": None, "dp": 1, "tp": 4,
          "moe_ep": 1, "concurrency": 4},
]  # fmt: skip


def one(line):
    """The answer of a line that is asked alone."""
    return estimate_rows([line], load_model)[0]


@pytest.fixture(scope="module")
def alone():
    """Answers of lines that were asked alone, by what they say."""
    return {}


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(range(len(KINDS))), st.sampled_from([100, 3000]),
                  st.sampled_from([1, 7, 400])),
        min_size=2, max_size=14,
    ),
)  # fmt: skip
def test_a_line_is_answered_the_same_to_the_bit_in_any_company(asked, alone):
    lines = []
    for i, (kind, isl, concurrency) in enumerate(asked):
        line = {k: v for k, v in KINDS[kind].items() if v is not None} | {"id": i}
        if isinstance(line.get("isl"), int):
            line["isl"] = isl + line.get("prefix_tokens", 0)
        if "concurrency" in line:
            line["concurrency"] = concurrency
        lines.append(line)
    for line, together, key in zip(lines, estimate_rows(lines, load_model), asked, strict=True):
        if key not in alone:
            alone[key] = {**one(line), "id": ""}
        assert to_json({**together, "id": ""}) == to_json(alone[key])


def test_every_scenario_is_answered_by_a_batch_as_alone():
    lines = [{**read_document(path), "id": path.stem} for path in SCENARIOS]
    mixed = [{**line, "id": i} for i, line in enumerate(KINDS[:3])]
    together = estimate_rows([*mixed, *lines], load_model)[len(mixed) :]
    assert len(together) == len(SCENARIOS) > 0
    for line, row in zip(lines, together, strict=True):
        single = estimate_one(line, load_model).model_dump_json(exclude_none=True)
        assert to_json(row).decode() == single


def test_bad_lines_stay_in_their_places_and_cost_no_other_line_its_answer():
    good = [QWEN | {"id": f"good-{i}", "isl": 500 + i} for i in range(3)]
    bad = [QWEN | {"id": "b1", "tp": 3}, {"id": "b2"}, MoesaicError("invalid", "line 5: no JSON"),
           QWEN | {"id": "b4", "precision": "fp5"}, QWEN | {"id": "b5", "model": "no-such"},
           QWEN | {"id": "b6", "request_rate": 1e9, "concurrency": None}]  # fmt: skip
    lines = [line for pair in itertools.zip_longest(good, bad) for line in pair if line]
    lines = [{k: v for k, v in x.items() if v is not None} if isinstance(x, dict) else x
             for x in lines]  # fmt: skip
    rows = estimate_rows(lines, load_model)
    assert [row["id"] for row in rows] == [
        line["id"] if isinstance(line, dict) else "" for line in lines
    ]
    assert [row["id"] for row in rows if "error" not in row] == ["good-0", "good-1", "good-2"]
    kinds = {row["id"]: row["error"]["kind"] for row in rows if "error" in row}
    assert kinds == {"b1": "invalid", "b2": "invalid", "": "invalid", "b4": "unknown_name",
                     "b5": "unknown_name", "b6": "infeasible"}  # fmt: skip


def test_a_rate_needs_the_fewest_callers_that_reach_it():
    line = QWEN | {"request_rate": 2.0}
    del line["concurrency"]
    rate = one(line)["output_tokens_per_s_per_device"]["typical"] * 2 / QWEN["osl"]
    assert rate == pytest.approx(2.0, rel=1e-6)


def test_pools_that_starve_each_other_settle_as_alone():
    """Lines that move at other turns, or still move at the last, beside lines that never do."""
    pools = {k: v for k, v in (QWEN | APART).items() if v is not None}
    lines = [
        pools | {"id": f"{isl}-{callers}", "isl": isl, "concurrency": callers}
        for isl, callers in itertools.product((200, 2000, 20_000), (2, 300, 5000))
    ]
    rows = estimate_rows(lines, load_model)
    held_up = [row["id"] for row in rows if "requests run at once" in str(row["assumptions"])]
    assert 0 < len(held_up) < len(lines)
    for line, row in zip(lines, rows, strict=True):
        assert to_json(row) == to_json(one(line))
