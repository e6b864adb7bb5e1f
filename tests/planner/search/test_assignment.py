"""The pool programme against brute force, and its text under review."""

import itertools
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.pipeline import parse_scenario
from planner.search.assignment import (
    broken_text,
    choose,
    state_programme,
    within_limits,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "pools.lp"
DEVICES = 8


def question(workload=None, **limits):
    return parse_scenario({
        "model": "mixtral-8x7b", "cluster": "dgx-h100",
        "workload": {"isl": 100, "osl": 10} | (workload or {}), "limits": limits,
    })  # fmt: skip


def table_of(rows):
    """Rows of (role, devices, inflight, rate)."""
    base = {"tp": 1.0, "dp": 1.0, "pp": 1.0, "moe_tp": 1.0, "moe_ep": 1.0, "total_bytes": 1.0,
            "batch": 1.0, "ttft_s_typical": 0.1, "tpot_s_typical": 0.01, "ttft_s_high": 0.1,
            "tpot_s_high": 0.01, "broken": None, "machine": 0, "variant": 0,
            "model_variant": 0, "machine_count": 8.0,
            "capacity_bytes": 8e10, "device_w": 700.0, "device_hour_usd": 2.0}  # fmt: skip
    data = [base | {"row": i, "role": role, "devices": float(size), "inflight": float(held),
                    "request_rate_typical": rate}
            for i, (role, size, held, rate) in enumerate(rows)]  # fmt: skip
    return pl.DataFrame(data, schema_overrides={"broken": pl.String})


def best_by_hand(rows, devices=DEVICES):
    best = 0.0
    for role, size, _, rate in rows:
        if role == "agg":
            best = max(best, devices // size * rate)
    pools = [[r for r in rows if r[0] == role] for role in ("prefill", "decode")]
    for (_, a, _, ra), (_, b, _, rb) in itertools.product(*pools):
        for n in range(1, devices // a + 1):
            left = (devices - n * a) // b
            best = max(best, min(n * ra, left * rb))
    return best


ROW = st.tuples(
    st.sampled_from(["agg", "prefill", "decode"]), st.integers(1, DEVICES), st.integers(1, 64),
    st.floats(0.1, 100),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=9))
def test_programme_equals_brute_force(rows):
    choice = choose(table_of(rows), question())
    expected = best_by_hand(rows)
    if expected == 0:
        assert choice is None
        return
    by_role = {}
    for pick in choice.picks:
        by_role[pick.role] = pick.workers * rows[pick.row][3]
    assert min(by_role.values()) == pytest.approx(expected, rel=1e-4)
    assert choice.solution.bound >= choice.solution.objective - 1e-9
    assert sum(p.workers * rows[p.row][1] for p in choice.picks) <= DEVICES


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=7), st.floats(0.1, 60))
def test_an_asked_rate_takes_the_fewest_devices(rows, wanted):
    choice = choose(table_of(rows), question({"request_rate": wanted}))
    fewest = [  # just below and just above the asked rate, where rounding decides
        min(
            (n for n in range(1, DEVICES + 1) if best_by_hand(rows, n) >= wanted * edge), default=99
        )
        for edge in (1 - 1e-6, 1 + 1e-6)
    ]
    found = 99 if choice is None else round(choice.solution.objective)
    assert fewest[0] <= found <= fewest[1]


def test_concurrency_needs_a_place_for_every_user():
    rows = [("agg", 4, 10, 5.0), ("agg", 4, 40, 3.0)]
    few, many = (choose(table_of(rows), question({"concurrency": n})) for n in (20, 50))
    assert [pick.row for pick in few.picks] == [0]
    assert [pick.row for pick in many.picks] == [1]
    assert choose(table_of(rows), question({"concurrency": 100})) is None


def test_limits_are_named_in_words():
    table = table_of([("agg", 1, 1, 1.0)]).drop("broken").with_columns(total_bytes=2e12)
    full = within_limits(table, question()).row(0, named=True)
    assert "GiB a device" in broken_text(full, question().limits)
    slow, asked = table.with_columns(total_bytes=1.0, ttft_s_high=3.0), question(ttft_s="2 s")
    late = within_limits(slow, asked).row(0, named=True)
    assert broken_text(late, asked.limits) == "TTFT may reach 3000.0 ms, the limit is 2000.0 ms"


def test_the_programme_reads_as_reviewed(tmp_path):
    rows = [("agg", 4, 10, 5.0), ("prefill", 2, 1, 9.0), ("decode", 4, 20, 6.0)]
    table = table_of(rows)
    weights = dict.fromkeys(table["row"], 1.0)
    programme, _ = state_programme(table, weights, question({"concurrency": 16}))
    written = tmp_path / "pools.lp"
    programme.write_lp(written)
    assert written.read_text() == GOLDEN.read_text()


MIXED = {"also": [{"cluster": "dgx-a100"}]}


def mixed(rows):
    """Rows of (role, machine, devices, rate); machine 1 costs half and draws a third."""
    table = table_of([(role, size, 1, rate) for role, _, size, rate in rows])
    machine = pl.Series("machine", [m for _, m, _, _ in rows], dtype=pl.Int64)
    return table.with_columns(
        machine, device_hour_usd=2.0 / (1 + machine), device_w=600.0 / (1 + 2 * machine)
    )


def ratio_by_hand(rows, weight):
    """Most requests for each unit of weight over all worker counts, eight devices a machine."""
    best = 0.0
    for role, machine, size, rate in rows:
        if role == "agg":
            best = max(best, rate / (size * weight[machine]))
    pools = [[r for r in rows if r[0] == role] for role in ("prefill", "decode")]
    for (_, ma, a, ra), (_, mb, b, rb) in itertools.product(*pools):
        for n, k in itertools.product(range(1, 8 // a + 1), range(1, 8 // b + 1)):
            if ma == mb and n * a + k * b > 8:
                continue
            served = min(n * ra, k * rb)
            best = max(best, served / (n * a * weight[ma] + k * b * weight[mb]))
    return best


MIXED_ROW = st.tuples(
    st.sampled_from(["agg", "prefill", "decode"]), st.integers(0, 1), st.integers(1, 8),
    st.floats(0.1, 100),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(MIXED_ROW, min_size=1, max_size=7), st.sampled_from(["cost", "energy"]))
def test_fewest_dollars_or_joules_equal_brute_force(rows, objective):
    weight = {"cost": (2.0, 1.0), "energy": (600.0, 200.0)}[objective]
    asked = question().model_copy(update={"objective": objective, "also": question_mixed().also})
    choice = choose(mixed(rows), asked)
    expected = ratio_by_hand(rows, weight)
    if expected == 0:
        assert choice is None
        return
    by_role, spent = {}, 0.0
    for pick in choice.picks:
        _, machine, size, rate = rows[pick.row]
        by_role[pick.role] = pick.workers * rate
        spent += pick.workers * size * weight[machine]
    assert min(by_role.values()) / spent == pytest.approx(expected, rel=1e-5)


def test_a_machine_lends_no_more_than_it_has_when_only_it_has_candidates():
    asked = question_mixed().model_copy(update={"objective": "cost"})
    choice = choose(mixed([("prefill", 0, 1, 7.0), ("decode", 0, 1, 2.0)]), asked)
    assert sum(pick.workers for pick in choice.picks) <= DEVICES


def question_mixed(**changes):
    return parse_scenario({
        "model": "mixtral-8x7b", "cluster": "dgx-h100", "workload": {"isl": 100, "osl": 10},
    } | MIXED | changes)  # fmt: skip


def test_pools_lie_on_different_machines():
    rows = [("prefill", 0, 8, 10.0), ("decode", 1, 8, 8.0), ("agg", 0, 8, 5.0)]
    choice = choose(mixed(rows), question_mixed())
    assert {(pick.role, rows[pick.row][1]) for pick in choice.picks} == {
        ("prefill", 0), ("decode", 1)
    }  # fmt: skip


def test_spare_workers_and_power_restrict():
    rows = [("agg", 2, 1, 5.0), ("agg", 8, 1, 30.0)]
    most = choose(table_of(rows), question())
    spare = choose(table_of(rows), question(spare_workers=1))
    assert [pick.row for pick in most.picks] == [1]
    assert [pick.row for pick in spare.picks] == [0]
    assert spare.solution.values["served"] == pytest.approx(3 * 5.0)
    drawn = choose(table_of(rows), question(power_w=3000))
    assert [(pick.row, pick.workers) for pick in drawn.picks] == [(0, 2)]


def test_an_objective_without_its_figures_is_refused():
    table = table_of([("agg", 1, 1, 1.0)]).with_columns(
        device_hour_usd=pl.lit(None, pl.Float64), device_w=pl.lit(None, pl.Float64)
    )
    for change, words in (({"objective": "cost"}, "device_hour_usd"),
                          ({"objective": "energy"}, "power_w")):  # fmt: skip
        with pytest.raises(MoesaicError, match=words):
            choose(table, question().model_copy(update=change))
    with pytest.raises(MoesaicError, match="power_w"):
        choose(table, question(power_w=100))


LATENCY_ROW = st.tuples(
    st.sampled_from(["agg", "prefill", "decode"]), st.integers(1, DEVICES), st.floats(0.1, 20),
    st.floats(0.01, 5),
)  # fmt: skip


def timed(rows):
    """Rows of (role, devices, rate, seconds): of a prefill pool its TTFT, else osl - 1 TPOT."""
    table = table_of([(role, size, 1, rate) for role, size, rate, _ in rows])
    ttft = [s if role == "prefill" else 0.0 for role, _, _, s in rows]
    tpot = [0.0 if role == "prefill" else s / 9 for role, _, _, s in rows]
    return table.with_columns(
        ttft_s_typical=pl.Series(ttft, dtype=pl.Float64),
        tpot_s_typical=pl.Series(tpot, dtype=pl.Float64),
    )


def quickest_by_hand(rows, wanted, dollars):
    """Least seconds of one choice a role that serves a rate within the budget (2 USD a device)."""
    most, best = min(DEVICES, dollars / 2), float("inf")
    for role, size, rate, seconds in rows:
        if role == "agg" and most // size * rate >= wanted and most >= size:
            best = min(best, seconds)
    pools = [[r for r in rows if r[0] == role] for role in ("prefill", "decode")]
    for (_, a, ra, sa), (_, b, rb, sb) in itertools.product(*pools):
        for n in range(1, DEVICES // a + 1):
            left = (most - n * a) // b
            if left >= 1 and min(n * ra, left * rb) >= wanted:
                best = min(best, sa + sb)
    return best


@settings(max_examples=150, deadline=None)
@given(st.lists(LATENCY_ROW, min_size=1, max_size=8), st.floats(0.1, 30), st.floats(2, 16))
def test_the_quickest_choice_under_a_budget_equals_brute_force(rows, wanted, dollars):
    asked = question({"request_rate": wanted}, usd_per_hour=dollars)
    choice = choose(timed(rows), asked.model_copy(update={"objective": "latency"}))
    near = [quickest_by_hand(rows, wanted * edge, dollars) for edge in (1 - 1e-6, 1 + 1e-6)]
    found = float("inf") if choice is None else sum(rows[pick.row][3] for pick in choice.picks)
    assert near[0] - 1e-4 <= found <= near[1] + 1e-4


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_one_configuration_leaves_aggregated_workers(rows):
    choice = choose(table_of(rows), question(configurations=1))
    expected = best_by_hand([row for row in rows if row[0] == "agg"])
    if expected == 0:
        assert choice is None
        return
    (pick,) = choice.picks
    assert pick.workers * rows[pick.row][3] == pytest.approx(expected, rel=1e-4)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(ROW, st.integers(0, 1)), min_size=1, max_size=8))
def test_pools_that_pass_requests_on_run_one_model(rows):
    plain = [row for row, _ in rows]
    models = pl.Series([model for _, model in rows], dtype=pl.UInt32)
    choice = choose(table_of(plain).with_columns(model_variant=models), question())
    expected = max(best_by_hand([r for r, m in rows if m == model]) for model in (0, 1))
    if expected == 0:
        assert choice is None
        return
    assert len({rows[pick.row][1] for pick in choice.picks}) == 1
    by_role = {pick.role: pick.workers * plain[pick.row][3] for pick in choice.picks}
    assert min(by_role.values()) == pytest.approx(expected, rel=1e-4)


def test_the_latency_programme_reads_as_reviewed(tmp_path):
    rows = [("agg", 4, 5.0, 3.0), ("prefill", 2, 9.0, 0.5), ("decode", 4, 6.0, 2.0)]
    asked = question({"request_rate": 4.0}, usd_per_hour=12.0, power_w=5000, configurations=2)
    asked = asked.model_copy(update={"objective": "latency"})
    table = timed(rows)
    programme, _ = state_programme(table, dict.fromkeys(table["row"], 1.0), asked)
    written = tmp_path / "latency.lp"
    programme.write_lp(written)
    assert written.read_text() == GOLDEN.with_name("latency.lp").read_text()


def test_a_process_of_its_own_gives_the_same_answer():
    rows = [("agg", 4, 10, 5.0), ("prefill", 2, 1, 9.0), ("decode", 4, 20, 6.0)]
    table, asked = table_of(rows), question()
    programme, _ = state_programme(table, dict.fromkeys(table["row"], 1.0), asked)
    here = programme.solve()
    apart = programme.solve_apart(time_limit_s=60, memory_limit_bytes=8 * 2.0**30)
    assert (apart.status, apart.values) == (here.status, pytest.approx(here.values))
    assert apart.objective == pytest.approx(here.objective)
