"""MC-MoE's 288 published block allocations, reproduced exactly from the published factors."""

import polars as pl

from planner.search.bits import BitsQuestion, choose_bits

PAPERS = "data/papers"


def test_all_blocks_are_identical(shared):
    factors = pl.read_csv(shared / PAPERS / "mc_moe_mixtral8x7b_factors.csv")
    published = pl.read_csv(shared / PAPERS / "mc_moe_mixtral8x7b_bits.csv")
    same = 0
    for (budget,), rows in published.group_by("block_bit_budget"):
        answer = choose_bits(factors, BitsQuestion(budget_bits=budget))
        assert answer.gap_ratio <= 1e-7
        found: dict[int, list[int]] = {}
        for cell in answer.allocation:
            found.setdefault(cell.layer, []).append(cell.bits)
        for _, layer, *bits in rows.iter_rows():
            same += found[layer] == bits
    assert same == published.height == 288


def test_one_budget_over_all_layers_is_a_third_lower(shared):
    """reference/other-systems.md, section 3: another 35 % below the layer-wise optimum."""
    factors = pl.read_csv(shared / PAPERS / "mc_moe_mixtral8x7b_factors.csv")
    layer, model = (
        choose_bits(factors, BitsQuestion(budget_bits=16, scope=scope)).objective
        for scope in ("layer", "model")
    )
    assert abs((1 - model / layer) - 0.35) <= 0.02
