"""The closed form: identities that hold whatever the seconds are."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.timing.serving import SERVING, serving_table
from tests.planner.work.test_sheet import point

SECONDS = st.floats(1e-4, 10)


def passes(prefill_s, decode_s, batch=8, osl=100, step_tokens=1):
    both = pl.concat([
        point(phase="prefill", batch=1),
        point(phase="decode", batch=batch, new_tokens=1, osl=osl, step_tokens=step_tokens),
    ]).with_columns(point=pl.Series([0, 1], dtype=pl.UInt32), osl=float(osl),
                    total_bytes=1.0, activation_bytes=0.0, launch_count=1.0)  # fmt: skip
    seconds = pl.Series([float(prefill_s), float(decode_s)])
    return both.with_columns(
        low_s=seconds * 0.8, typical_s=seconds, raw_s=seconds, high_s=seconds * 1.3
    )


@given(SECONDS, SECONDS)
def test_a_lone_request_waits_only_for_its_own_passes(prefill_s, decode_s):
    row = serving_table(passes(prefill_s, decode_s, batch=1, osl=10**9), ("agg",)).row(
        0, named=True
    )
    assert row["tpot_s_typical"] == pytest.approx(decode_s, rel=1e-6, abs=1e-7)
    assert row["ttft_s_typical"] == pytest.approx(prefill_s + decode_s / 2, rel=1e-3, abs=1e-6)


@given(SECONDS, SECONDS, st.integers(1, 512))
def test_littles_law(prefill_s, decode_s, batch):
    table = serving_table(passes(prefill_s, decode_s, batch), ("agg",))
    row = table.row(0, named=True)
    latency = row["ttft_s_typical"] + 99 * row["tpot_s_typical"]
    assert row["request_rate_typical"] * latency == pytest.approx(row["inflight"])


@given(SECONDS, SECONDS, st.integers(1, 512))
def test_sides_are_ordered(prefill_s, decode_s, batch):
    table = serving_table(passes(prefill_s, decode_s, batch), ("agg", "disagg"))
    for name in ("ttft_s", "tpot_s", "request_rate"):
        sides = table.select(f"{name}_low", f"{name}_typical", f"{name}_high").drop_nulls()
        assert all(low <= mid <= high for low, mid, high in sides.iter_rows())


def test_pools_do_one_phase_each():
    table = serving_table(passes(2.0, 0.05), ("disagg",))
    assert table.columns == list(SERVING)
    prefill, decode = (table.filter(role=r).row(0, named=True) for r in ("prefill", "decode"))
    assert prefill["ttft_s_typical"] == 2.0
    assert prefill["request_rate_typical"] == 0.5
    assert decode["request_rate_typical"] == pytest.approx(8 / (100 * 0.05))


def test_accepted_drafts_shorten_the_token_time():
    plain, drafted = (
        serving_table(passes(1, 0.05, step_tokens=n), ("disagg",)).filter(role="decode")
        for n in (1, 1.9)
    )
    ratio = plain["tpot_s_typical"].item() / drafted["tpot_s_typical"].item()
    assert ratio == pytest.approx(1.9)
