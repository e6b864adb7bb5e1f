"""Transforms keep their promises whatever the numbers, and refuse what has no meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.compression.costs import (
    costs_of,
    engine_problems,
    flops_per_token,
    moved_bytes_per_token,
    quantisation_calibration,
    stored_bytes,
)
from planner.compression.experts import expert_table
from planner.compression.formats import stored_bits
from planner.compression.quality import quality_at, quality_rows
from planner.compression.transforms import (
    grouped_owners,
    keep_highest,
    low_rank_sparse,
    main_and_compressed,
    masked,
    merged,
    merged_to_dense,
    narrowed,
    upcycled,
    with_adapters,
    with_bits,
)
from planner.model_library import load_model
from planner.parameters import count_parameters, weight_bytes

TABLE = expert_table(load_model("olmoe-1b-7b"))


def test_an_untouched_table_costs_what_the_model_costs():
    model = load_model("olmoe-1b-7b")
    costs = costs_of(TABLE)
    assert costs.stored_parameters_count == count_parameters(model).total
    assert costs.active_parameters_count == pytest.approx(count_parameters(model).active)
    assert costs.stored_bytes == pytest.approx(sum(weight_bytes(model).values()))
    assert [(s.inter, s.experts_count) for s in costs.shapes] == [(1024, 16 * 64)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 512))
def test_fewer_experts_or_bits_never_store_more(groups, bits, batch):
    quantised = with_bits(TABLE, bits)
    small = merged(quantised, grouped_owners(TABLE.shape, groups))
    assert stored_bytes(small) <= stored_bytes(quantised) <= stored_bytes(TABLE)
    assert flops_per_token(small) == pytest.approx(flops_per_token(TABLE))
    assert moved_bytes_per_token(small, batch) <= moved_bytes_per_token(small, 1) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 64))
def test_a_mask_keeps_what_it_says(kept):
    scores = np.random.default_rng(kept).random(TABLE.shape)
    mask = keep_highest(scores, kept)
    assert (mask.sum(axis=1) == kept).all()
    small = masked(TABLE, mask, refill=True)
    assert small.popularity.sum(axis=1) == pytest.approx(np.ones(16))
    assert small.experts_per_token == 8
    assert engine_problems(small) == ()


def test_a_batch_reads_the_union_of_what_its_tokens_chose():
    whole = float((TABLE.parameters() * 2).sum())
    many = moved_bytes_per_token(TABLE, 10_000) * 10_000
    assert whole < many < whole * 1.2
    assert moved_bytes_per_token(TABLE, 1) < many


def test_uneven_layers_and_mixed_formats_are_what_engines_refuse():
    mask = np.ones(TABLE.shape)
    mask[0, :5] = 0
    bits = np.full(TABLE.shape, 4)
    bits[3, 0] = 2
    problems = engine_problems(masked(with_bits(TABLE, bits), mask))
    assert len(problems) == 2
    assert "59 to 64" in problems[0]
    assert len(engine_problems(masked(TABLE, mask), ragged=True)) == 0


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: masked(TABLE, np.zeros(TABLE.shape)), "infeasible"),
        (lambda: masked(TABLE, keep_highest(TABLE.popularity, 7), refill=True), "infeasible"),
        (lambda: masked(TABLE, np.ones((2, 2))), "invalid"),
        (lambda: with_bits(TABLE, 0), "invalid"),
        (lambda: with_bits(TABLE, np.full(TABLE.shape, np.nan)), "invalid"),
        (lambda: narrowed(TABLE, 2000), "invalid"),
        (lambda: merged(TABLE, np.full(TABLE.shape, 64)), "invalid"),
        (lambda: merged(TABLE, np.roll(np.tile(np.arange(64), (16, 1)), 1, axis=1)), "invalid"),
        (lambda: low_rank_sparse(TABLE, 0, 0.1), "invalid"),
        (lambda: main_and_compressed(TABLE, 9), "invalid"),
        (lambda: with_adapters(TABLE, 0), "invalid"),
        (lambda: expert_table(load_model("llama-3.1-8b")), "invalid"),
        (lambda: expert_table(load_model("olmoe-1b-7b"), np.zeros(TABLE.shape)), "invalid"),
        (lambda: upcycled(load_model("olmoe-1b-7b"), 4, 2), "invalid"),
        (lambda: merged_to_dense(load_model("bigmac-gpt3-xl")), "outside_evidence"),
        (lambda: stored_bits("q9"), "unknown_name"),
    ],
)
def test_what_has_no_meaning_is_refused(call, kind):
    with pytest.raises(MoesaicError) as caught:
        call()
    assert caught.value.kind == kind


def test_widths_are_padded_to_tiles():
    small = narrowed(TABLE, 1000, tile=128)
    assert set(np.unique(small.width)) == {1024}
    keep = np.tile(np.where(np.arange(64) % 2, 512, 700), (16, 1))
    ragged = narrowed(TABLE, keep, tile=256)
    assert set(np.unique(ragged.width)) == {512, 768}
    assert any("ragged" in note for note in ragged.notes)


def test_adapters_add_two_thin_matrices_for_each():
    with_lora = with_adapters(TABLE, 8)
    assert with_lora.added_parameters == 16 * 64 * 3 * 8 * (2048 + 1024)
    assert quantisation_calibration(TABLE).flops > 0


def test_upcycling_keeps_the_work_of_a_top_1_token():
    model = upcycled(load_model("llama-3.1-8b"), 8, 1)
    assert len(model.moe_layers) == 32
    count = count_parameters(model)
    assert count.routed == 8 * count_parameters(load_model("llama-3.1-8b")).dense


def test_quality_is_read_between_rows_and_never_beyond():
    found = quality_at("pmq_gptq", "Mixtral-8x7B", "WikiText2 perplexity", 2.48)
    assert found.between == (2.42, 2.54)
    assert 5.09 < found.value < 5.25
    exact = quality_at("premoe", "DeepSeek-R1", "MATH-500", 128)
    assert (exact.value, exact.between) == (97.2, (128, 128))
    for question in (
        ("pmq_gptq", "Mixtral-8x7B", "WikiText2 perplexity", 1.0),
        ("pmq_gptq", "Mixtral-8x22B", "WikiText2 perplexity", 2.0),
        ("magic", "Mixtral-8x7B", "WikiText2 perplexity", 2.0),
    ):
        with pytest.raises(MoesaicError) as caught:
            quality_at(*question)
        assert caught.value.kind == "outside_evidence"
    assert all("arXiv" in row.source and row.date for row in quality_rows())
