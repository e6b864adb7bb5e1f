"""Parameter counts that papers print: the survey's table, Q4_0 residency, PreMoe's kept experts."""

from __future__ import annotations

import csv

import pytest

from planner.compression.costs import costs_of, stored_bytes
from planner.compression.experts import expert_table
from planner.compression.formats import stored_bits
from planner.compression.transforms import keep_highest, masked, with_bits
from planner.model_library import load_model
from planner.parameters import count_parameters

SURVEY = {
    "Mixtral-8x7B": "mixtral-8x7b", "Mixtral-8x22B": "mixtral-8x22b",
    "DeepSeekMoE-16B": "deepseekmoe-16b", "Qwen1.5-MoE-A2.7B": "qwen1.5-moe-a2.7b",
    "DBRX": "dbrx", "OLMoE-1B-7B": "olmoe-1b-7b", "Skywork-MoE": "skywork-moe",
    "LLaMA-MoE 2/16": "llama-moe-2-16", "LLaMA-MoE 4/16": "llama-moe-4-16",
    "Yuan 2.0-M32": "yuan-2.0-m32", "DeepSeek-V3": "deepseek-v3",
}  # fmt: skip


@pytest.mark.parametrize(("row", "name"), SURVEY.items())
def test_survey_table_2(shared, row, name):
    """Totals within 0.6 %, active counts within 3.1 % (arXiv:2407.06204)."""
    with (shared / "data/papers/moe_survey.csv").open() as stream:
        printed = {(r["metric"], r["setting"]): r["value"] for r in csv.DictReader(stream)}
    count = count_parameters(load_model(name))
    total, active = (float(printed[(f"{kind} parameters", row)]) for kind in ("total", "activated"))
    assert count.total / 1e9 == pytest.approx(total, rel=6.5e-3)
    exact = float(printed["total parameters recomputed", row])
    assert count.total / 1e9 == pytest.approx(exact, rel=1e-3)
    assert count.active / 1e9 == pytest.approx(active, rel=3.5e-2)


@pytest.mark.parametrize(
    ("name", "gib"),
    [("smallthinker-4b-a0.6b", 2.24), ("smallthinker-21b-a3b", 11.47), ("qwen3-30b-a3b", 16.20)],
)
def test_q4_0_residency(name, gib):
    """PowerInfer's README, every weight at 4.5 bits; within 2 %."""
    total = count_parameters(load_model(name)).total
    assert total * stored_bits("q4_0") / 8 / 2**30 == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kept", "billions"),
    [
        ("deepseek-r1", 256, 671.0), ("deepseek-r1", 176, 466.7), ("deepseek-r1", 128, 344.0),
        ("deepseek-r1", 64, 180.6), ("deepseek-r1", 32, 98.8),
        ("pangu-ultra-moe", 128, 367.7), ("pangu-ultra-moe", 64, 192.5),
    ],
)  # fmt: skip
def test_premoe_memory_in_bf16(name, kept, billions):
    """arXiv:2505.17639: bytes = 2 (total - removed experts); Pangu 4/64 is printed as 390 GB."""
    table = expert_table(load_model(name))
    mask = keep_highest(table.popularity, kept)
    small = masked(with_bits(table, 16), mask, refill=True)
    costs = costs_of(small)
    # a router keeps a row for each kept expert only, which the paper's formula leaves out
    assert costs.stored_parameters_count / 1e9 == pytest.approx(billions, rel=6e-3)
    assert 2 * costs.stored_parameters_count == pytest.approx(2e9 * billions, rel=6e-3)
    if (name, kept) == ("pangu-ultra-moe", 64):
        assert 2 * costs.stored_parameters_count / 1e9 == pytest.approx(390, rel=0.02)


def test_stored_bytes_fall_with_the_mask():
    table = with_bits(expert_table(load_model("deepseek-r1")), 16)
    half = masked(table, keep_highest(table.popularity, 128), refill=True)
    removed = 128 * 58 * 3 * 7168 * 2048 * 2
    assert stored_bytes(table) - stored_bytes(half) == pytest.approx(removed, rel=1e-3)
