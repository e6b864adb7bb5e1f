"""The trade by cuts against brute force, distinct options, and the reason why one lost."""

import itertools

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.ranking import pareto_plans, ranked, why_second
from planner.search.assignment import choose
from planner.search.explanation import objective_value
from tests.planner.search.test_assignment import DEVICES, question, table_of

ROW = st.tuples(
    st.sampled_from(["agg", "prefill", "decode"]), st.integers(1, DEVICES), st.integers(1, 30),
    st.integers(1, 60), st.integers(1, 6),
)  # fmt: skip
"""Role, devices, rate, TPOT in ms, tensor-parallel ranks (what tells layouts apart)."""


def whole_table(rows):
    """Rows of `ROW` with every column that an option is written from."""
    table = table_of([(role, size, 1, float(rate)) for role, size, rate, _, _ in rows])
    tpot = [0.0 if role == "prefill" else ms / 1e3 for role, _, _, ms, _ in rows]
    rate = pl.col("request_rate_typical")
    return table.with_columns(
        pl.Series("tp", [float(tp) for *_, tp in rows]),
        *(pl.Series(f"tpot_s_{side}", tpot) for side in ("low", "typical", "high")),
        pl.lit(0.1).alias("ttft_s_low"), rate.alias("request_rate_low"),
        rate.alias("request_rate_high"),
    )  # fmt: skip


def outcomes_by_hand(rows):
    """Rate and TPOT of every choice of one candidate a role and of worker counts."""
    for role, size, rate, ms, _ in rows:
        if role == "agg":
            yield DEVICES // size * rate, ms
    pools = [[r for r in rows if r[0] == role] for role in ("prefill", "decode")]
    for (_, a, ra, _, _), (_, b, rb, ms, _) in itertools.product(*pools):
        for n in range(1, DEVICES // a + 1):
            left = (DEVICES - n * a) // b
            if left:
                yield min(n * ra, left * rb), ms


def front_by_hand(rows):
    """Outcomes that no other beats in rate and TPOT, slowest first."""
    front = []
    for rate, ms in sorted(set(outcomes_by_hand(rows)), key=lambda o: (-o[0], o[1])):
        if rate > 0 and (not front or ms < front[-1][1]):
            front.append((rate, ms))
    return front


@settings(max_examples=120, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_plans_found_by_cuts_are_the_whole_trade(rows):
    asked = question().model_copy(update={"pareto": 50})
    plans, complete = pareto_plans(asked, whole_table(rows), "modelled")
    found = [(p.objective_value / 10, p.tpot_s.typical * 1e3) for p in plans]
    expected = front_by_hand(rows)
    assert complete
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_options_are_distinct_and_never_improve(rows):
    table, asked = whole_table(rows), question()
    choice = choose(table, asked)
    if choice is None:
        return
    options, why = ranked(asked, table, choice, "modelled")
    rates = [option.output_tokens_per_s.typical for option in options]
    for better, worse in itertools.pairwise(rates):
        assert worse <= better * (1 + 1e-4)
    mains = [(o.pools[-1].role, o.pools[-1].layout) for o in options]
    assert len(set(mains)) == len(mains)
    assert (why is None) == (len(options) == 1)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (("agg", 8, 20, 10, 2), "holds its place there"),
        (("agg", 5, 30, 10, 3), "works on 5 devices, not 8"),
    ],
)
def test_the_reason_names_the_factor_that_lost_most(second, words):
    rows = [("agg", 8, 40, 10, 1), second]
    table = whole_table(rows)
    parts = [[(1, table.row(i, named=True))] for i in (0, 1)]
    said = why_second(question(), (parts[0], parts[1]), (400.0, second[2] * 10.0))
    assert words in said
    assert f"{1 - second[2] / 40:.1%} less than" in said


def test_an_objective_has_its_unit():
    table = whole_table([("agg", 8, 40, 10, 1)])
    choice = choose(table, question())
    assert objective_value(choice, table, question()) == pytest.approx(400)
    cost = question().model_copy(update={"objective": "cost"})
    assert objective_value(choice, table, cost) == pytest.approx(16 / 400 / 3600 * 1e6)
