"""Candidates that no other beats, and the quickest of equals, against looking at every pair."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.dominance import Equals, undominated

ROW = st.fixed_dictionaries({
    "role": st.sampled_from(["agg", "prefill", "decode"]), "machine": st.integers(0, 1),
    "model_variant": st.integers(0, 1), "devices": st.sampled_from([1.0, 2.0, 4.0]),
    "inflight": st.sampled_from([4.0, 8.0]), "request_rate_typical": st.sampled_from([1.0, 2, 3]),
    "ttft_s_typical": st.sampled_from([0.1, 0.2]), "tpot_s_typical": st.sampled_from([0.01, 0.02]),
})  # fmt: skip
KEYS = ("machine", "model_variant", "role", "devices")


def table_of(rows):
    return pl.DataFrame([{"row": number, **row} for number, row in enumerate(rows)])


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.sampled_from([None, 8]))
def test_the_first_of_the_best_of_each_kind_is_kept(rows, concurrency):
    table = table_of(rows)
    keys = [*KEYS, *(["inflight"] if concurrency else [])]
    best = {}
    for row in table.iter_rows(named=True):
        kind = tuple(row[key] for key in keys)
        if kind not in best or row["request_rate_typical"] > best[kind]["request_rate_typical"]:
            best[kind] = row
    kept = undominated(table, concurrency)
    assert kept["row"].to_list() == [best[kind]["row"] for kind in sorted(best)]


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(0, 11))
def test_the_quickest_stands_in_for_its_equals(rows, number):
    table = table_of(rows)
    asked = table.row(number % table.height, named=True)
    prefill = asked["role"] == "prefill"
    name = "ttft_s_typical" if prefill else "tpot_s_typical"
    equals = [
        row for row in table.iter_rows(named=True)
        if all(row[key] == asked[key] for key in KEYS) and row["request_rate_typical"] >= 2
        and (prefill or row["inflight"] >= asked["inflight"])
    ]  # fmt: skip
    if equals:
        best = min(equals, key=lambda row: (row[name], row["row"]))
        assert Equals(table).quickest(asked, 2.0) == best["row"]


def test_a_slower_candidate_of_shorter_requests_is_kept_where_seconds_count():
    base = {"role": "agg", "machine": 0, "model_variant": 0, "devices": 1.0, "inflight": 4.0}
    rows = [base | {"request_rate_typical": rate, "ttft_s_typical": s, "tpot_s_typical": 0.01}
            for rate, s in ((3.0, 0.2), (2.0, 0.1), (1.0, 0.1))]  # fmt: skip
    kept = undominated(table_of(rows), None, pl.col("ttft_s_typical"))
    assert kept["row"].to_list() == [0, 1]
