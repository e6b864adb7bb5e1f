"""The simulation as a question: priced by the planner's own sheet, answered as a document."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.pricing import price
from planner.simulation.files import read_question, write_table
from planner.simulation.planned_steps import GridAxes, _passes
from planner.simulation.question import SimulationQuestion
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Pool, Serving
from planner.simulation.simulate import prepare, simulate
from planner.simulation.step_seconds import Iteration

FILE = Path(__file__).parents[2] / "scenarios" / "simulate" / "qwen3-poisson.yaml"
LENGTHS = {"isl": 400, "osl": 40}


def question(**fields: Any) -> SimulationQuestion:
    data = {
        "model": "qwen3-30b-a3b", "cluster": "dgx-h100", "layout": {"dp": 2},
        "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 1024},
        "load": {"kind": "poisson", "request_rate": 20, "lengths": LENGTHS},
        "requests": 30, "seeds": 2,
    }  # fmt: skip
    return SimulationQuestion.parse(data | fields)


def test_one_request_equals_the_priced_passes() -> None:
    isl, osl = 96, 9
    asked = question(layout={"tp": 2}, engine={"max_num_seqs": 16, "async_scheduling": False})
    ready = prepare(asked)
    contexts = tuple(range(isl + 1, isl + osl))
    axes = GridAxes((isl,), (0,), (1,), contexts)
    steps = type(ready.steps)(
        _shared(asked), _layout(ready), replace(ready.limits, max_num_seqs=1), axes
    )
    run = Serving(
        Pool(ready.limits, steps.seconds("typical")), iter([Request(0.0, isl, osl)])
    ).run()
    row = run.log.close().row(0, named=True)
    passes = price(
        _passes(axes, _layout(ready), ready.limits, _shared(asked)), _shared(asked)
    ).passes
    prefill = float(passes.filter(phase="prefill")["typical_s"].sum())
    decode = float(passes.filter(phase="decode")["typical_s"].sum())
    assert row["ttft_s"] == pytest.approx(prefill, rel=1e-9)
    assert row["e2e_s"] == pytest.approx(prefill + decode, rel=1e-9)


def _shared(asked: SimulationQuestion) -> Any:
    from planner.engines import load_engine
    from planner.pricing import Question
    from planner.work.sheet import formats_of

    return Question(
        asked.model, asked.cluster, load_engine(asked.backend), asked.routing,
        formats_of(asked.model, asked.precision, asked.kv_dtype),
    )  # fmt: skip


def _layout(ready: Any) -> Any:
    row = ready.steps.priced.passes.row(0, named=True)
    from planner.candidates import Layout

    return Layout(*(int(row[name]) for name in ("tp", "dp", "pp", "moe_tp", "moe_ep")))


def test_answer_has_ordered_figures_and_states_its_assumptions(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    answer, run, table = simulate(question(), requests_path=path)
    assert table.height == 30
    assert pl.read_parquet(path).equals(table)
    for figure in answer.summary.values():
        assert figure.low <= figure.typical <= figure.high
        assert figure.mean_low <= figure.typical <= figure.mean_high
    summary = answer.summary
    assert summary["ttft_p50_s"].typical <= summary["ttft_p99_s"].typical
    assert summary["ttft_mean_s"].low < summary["ttft_mean_s"].typical
    assert answer.assumptions
    assert answer.seeds == 2
    assert run.groups[0].iterations > 0


def test_same_question_same_answer() -> None:
    assert simulate(question())[0].digest() == simulate(question())[0].digest()


def test_more_load_means_longer_tails() -> None:
    quiet, busy = (
        simulate(question(load={"kind": "poisson", "request_rate": rate, "lengths": LENGTHS},
                          requests=200))[0]
        for rate in (5, 200)
    )  # fmt: skip
    assert busy.summary["ttft_p90_s"].typical > 2 * quiet.summary["ttft_p90_s"].typical


LOADS: list[dict[str, Any]] = [
    {"kind": "gamma", "request_rate": 20, "burstiness": 0.25, "lengths": LENGTHS},
    {"kind": "ramp", "times_s": [0, 5], "request_rates": [1, 30], "lengths": LENGTHS},
    {"kind": "closed", "concurrency": 8, "lengths": LENGTHS | {"variation_ratio": 0.5}},
]


@pytest.mark.parametrize("load", LOADS)
def test_every_kind_of_load(load: dict[str, Any]) -> None:
    answer, _, table = simulate(question(load=load))
    assert table.height == 30
    assert answer.summary["requests_count"].typical == 30


def test_trace_is_run_once_and_can_be_speeded_up(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [{"input_toks": 100, "output_toks": 5, "arrival_time_ns": n * 10**9} for n in range(9)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    load = {"kind": "trace", "file": str(trace)}
    answer, _, table = simulate(question(load=load, requests=None))
    assert answer.seeds == 1
    assert table["arrival_s"].max() == 8
    _, _, fast = simulate(question(load=load | {"speed_ratio": 4}, requests=None))
    assert fast["arrival_s"].max() == 2


def test_pools_apart_move_their_caches() -> None:
    answer, run, _ = simulate(question(layout={"replicas": 2}, decode={"dp": 2}))
    assert answer.summary["kv_moved_bytes"].typical == pytest.approx(30 * 400 * 98304)
    assert run.links is not None
    assert any("KV caches travel" in text for text in answer.assumptions)


def test_an_engine_that_puts_prompts_first_says_so() -> None:
    answer, _, _ = simulate(question(backend="sglang"))
    assert any("prompts pause decoding" in text for text in answer.assumptions)


REFUSED = {
    "endless": ({"requests": None}, "never ends"),
    "layout": ({"layout": {"tp": 3}}, "does not divide"),
    "devices": ({"layout": {"tp": 1, "dp": 16}}, "needs 16 devices"),
    "router": ({"layout": {"router": "best"}}, "no router 'best'"),
    "memory": ({"engine": {"memory_share": 0.2}}, "no KV block is left"),
    "kv": ({"engine": {"kv_blocks": 4}}, "needs .* tokens of KV cache"),
    "ramp": (
        {"load": {"kind": "ramp", "times_s": [0], "request_rates": [1, 2], "lengths": LENGTHS}},
        "same number",
    ),
    "field": ({"speed": 1}, "Extra inputs"),
    "model": ({"model": "qwen9"}, "no model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_simulated_is_refused(case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(MoesaicError, match=message):
        simulate(question(**fields))


def test_files_count_from_the_questions_folder(tmp_path: Path) -> None:
    (tmp_path / "lengths.csv").write_text("num_prefill_tokens,num_decode_tokens\n50,5\n")
    text = FILE.read_text().replace("{isl: 1000,", "{file: lengths.csv, isl: 1000,")
    (tmp_path / "q.yaml").write_text(text)
    asked = read_question(tmp_path / "q.yaml", ("requests=10", "seeds=1"))
    _, _, table = simulate(asked)
    assert table["isl_tokens"].to_list() == [50] * 10
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(MoesaicError, match="holds no simulation"):
        read_question(tmp_path / "bad.yaml")


def test_tables_go_where_their_ending_says(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": [1]})
    write_table(tmp_path / "t.csv", table)
    write_table(tmp_path / "t.parquet", table)
    for path in (tmp_path / "t.json", tmp_path / "none" / "t.csv"):
        with pytest.raises(MoesaicError, match="cannot write"):
            write_table(path, table)


def test_limits_default_to_the_engines() -> None:
    ready = prepare(question(engine={}))
    assert ready.limits == replace(
        EngineLimits(), max_num_seqs=1024, max_num_batched_tokens=8192,
        kv_blocks=ready.limits.kv_blocks, async_scheduling=True,
    )  # fmt: skip


RATES = {"boot_s": 52, "warm_up_s": 2.4, "disk_bytes_per_s": "0.67 GB/s"}
STEADY = {"kind": "poisson", "request_rate": 40, "lengths": {"isl": 400, "osl": 60}}


def test_scale_events_change_the_layout_while_serving() -> None:
    asked = {"load": STEADY, "requests": 600, "scale_rates": RATES, "seeds": 1}
    found, ready = {}, prepare(question())
    for strategy in ("elastic", "cold_restart", "extravagant"):
        event = {"at_s": 3, "dp": 3, "strategy": strategy}
        _, run, table = simulate(question(**asked, events=[event]))
        assert len(run.groups[0].ranks) == 3
        assert table.height == 600
        blocks = {rank.kv.blocks for rank in run.groups[0].ranks}
        # Restarted on more devices, each holds fewer experts and more cache.
        assert (min(blocks) > ready.limits.kv_blocks) == (strategy == "cold_restart")
        found[strategy] = (run.changes.spans[0][1] - 3, table["e2e_s"].max())
    assert 2.4 < found["elastic"][0] < 4
    assert found["cold_restart"][0] > 52
    assert found["cold_restart"][1] > 50 > 10 * found["elastic"][1] / 2


def test_a_failure_loses_a_rank_and_recomputes() -> None:
    event = {"kind": "failure", "at_s": 2, "dp": 1, "lost_rank": 1}
    _, run, table = simulate(
        question(load=STEADY, requests=300, scale_rates=RATES, seeds=1, events=[event])
    )
    assert len(run.groups[0].ranks) == 1
    assert table["preemptions_count"].sum() > 0


def test_a_controller_follows_the_load() -> None:
    load = {"kind": "ramp", "times_s": [0, 20], "request_rates": [5, 80], "lengths": LENGTHS}
    controller = {"policy": "forecast", "every_s": 2, "most": 4, "rank_request_rate": 20}
    _, run, _ = simulate(
        question(load=load, requests=1500, scale_rates=RATES, seeds=1, autoscale=controller,
                 slo={"ttft_s": 1})
    )  # fmt: skip
    assert len(run.changes.spans) >= 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"events": [{"at_s": 1, "dp": 3}]}, "need scale_rates"),
        ({"scale_rates": RATES, "events": [{"at_s": 1, "dp": 2}]}, "nothing to do"),
        (
            {"scale_rates": RATES, "events": [{"at_s": 1, "dp": 3, "strategy": "magic"}]},
            "no scaling strategy",
        ),
        (
            {"scale_rates": RATES, "events": [{"at_s": 1, "dp": 3, "strategy": "horizontal"}]},
            "simulate it with replicas",
        ),
        (
            {"scale_rates": RATES, "events": [{"kind": "failure", "at_s": 1, "dp": 3}]},
            "cannot leave 3",
        ),
        (
            {"scale_rates": RATES, "events": [{"at_s": 1, "dp": 3, "pool": "decode"}]},
            "need decode",
        ),
        ({"scale_rates": RATES, "events": [{"at_s": 1, "dp": 3, "replica": 1}]}, "no replica 1"),
        (
            {"scale_rates": RATES, "layout": {"dp": 4, "moe_tp": 4},
             "events": [{"kind": "failure", "at_s": 1, "dp": 3, "recover": "relayout"}]},
            "whole experts on several ranks",
        ),
        (
            {"scale_rates": RATES, "layout": {"dp": 4},
             "events": [{"kind": "failure", "at_s": 1, "dp": 2, "recover": "relayout"}]},
            "4 ranks without 1 keep 3",
        ),
        (
            {"scale_rates": RATES, "layout": {"dp": 4},
             "events": [{"kind": "failure", "at_s": 1, "dp": 3, "recover": "relayout",
                         "max_moves": 5}]},
            "lost their last copy",
        ),
        (
            {"scale_rates": RATES,
             "autoscale": {"policy": "luck", "every_s": 1, "most": 3, "rank_request_rate": 5}},
            "no autoscaling policy",
        ),
    ],
)  # fmt: skip
def test_changes_that_cannot_be_simulated_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoesaicError, match=message):
        simulate(question(**fields))


SKEWED = {"kind": "zipf", "alpha": 0.7}


def test_a_lost_rank_is_laid_out_anew_and_comes_back() -> None:
    failure = {"kind": "failure", "at_s": 3, "dp": 3, "lost_rank": 2}
    back = {"at_s": 20, "dp": 4}
    found = {}
    for recover in ("restart", "relayout"):
        asked = {"load": STEADY, "requests": 1500, "scale_rates": RATES, "seeds": 1,
                 "layout": {"dp": 4}, "routing": SKEWED}  # fmt: skip
        after = back if recover == "relayout" else {**back, "at_s": 100}
        events = [{**failure, "recover": recover}, after]
        answer, run, table = simulate(question(**asked, events=events))
        assert table.height == 1500
        assert len(run.groups[0].ranks) == 4
        assert run.changes.spans[0][0] == 3
        found[recover] = (answer.events[0], table)
    restart, relayout = (cost for cost, _ in found.values())
    assert relayout.cost.duration_s < 0.2 * restart.cost.duration_s
    assert relayout.layout is not None
    assert relayout.layout.lost_experts_count == 48 * 128 // 4
    assert relayout.layout.busy_ratio < relayout.layout.busy_kept_ratio
    # Only what the lost rank was running is computed again.
    again = [table.filter(pl.col("preemptions_count") > 0) for _, table in found.values()]
    assert 0 < again[1].height < again[0].height


def test_fewer_moves_are_quicker_and_leave_experts_less_even() -> None:
    costs = []
    for moves in (48 * 32, 48 * 34, None):
        event = {"kind": "failure", "at_s": 3, "dp": 3, "recover": "relayout", "max_moves": moves}
        asked = {"load": STEADY, "requests": 20, "scale_rates": RATES, "seeds": 1,
                 "layout": {"dp": 4}, "routing": SKEWED, "events": [event]}  # fmt: skip
        costs.append(simulate(question(**asked))[0].events[0])
    durations = [cost.cost.duration_s for cost in costs]
    assert durations == sorted(durations)
    ratios = [cost.layout.busy_ratio for cost in costs]
    assert ratios == sorted(ratios, reverse=True)
    assert all(c.layout.moves_count <= m for c, m in zip(costs, (48 * 32, 48 * 34), strict=False))


def test_a_lost_node_takes_all_its_ranks() -> None:
    event = {"kind": "failure", "at_s": 1, "dp": 8, "lost_node": 1, "recover": "relayout"}
    answer, run, _ = simulate(
        question(cluster="dgx-h100-x4", layout={"dp": 16}, load=STEADY, requests=200, seeds=1,
                 scale_rates=RATES, events=[event])
    )  # fmt: skip
    assert len(run.groups[0].ranks) == 8
    assert answer.events[0].layout is not None
    assert answer.events[0].layout.lost_experts_count == 48 * 64


def test_pools_of_a_disaggregated_service_scale_on_their_own() -> None:
    asked = {"layout": {"replicas": 2}, "decode": {"dp": 2}, "load": STEADY, "requests": 400,
             "scale_rates": RATES, "seeds": 1}  # fmt: skip
    grow = {"at_s": 3, "dp": 4, "pool": "decode"}
    answer, run, table = simulate(question(**asked, events=[grow]))
    assert [len(group.ranks) for group in run.groups] == [1, 1, 4]
    assert answer.events[0].pool == "decode"
    assert table.height == 400
    fail = {"kind": "failure", "at_s": 4, "dp": 1, "lost_rank": 0, "pool": "decode"}
    _, broken, again = simulate(question(**asked, events=[fail]))
    assert again.height == 400
    assert again["preemptions_count"].sum() > 0
    assert all(rank.kv.used == 0 for group in broken.groups for rank in group.ranks)
    ahead = {"at_s": 2, "dp": 2, "pool": "layout", "replica": 1}
    _, wider, _ = simulate(question(**asked, events=[ahead, grow]))
    assert [len(group.ranks) for group in wider.groups] == [1, 2, 4]


def test_a_lost_prefill_rank_loses_what_it_was_sending() -> None:
    asked = {"layout": {"dp": 2}, "decode": {"dp": 2}, "load": STEADY, "requests": 300,
             "scale_rates": RATES, "seeds": 1}  # fmt: skip
    fail = {"kind": "failure", "at_s": 2, "dp": 1, "lost_rank": 1}
    _, run, table = simulate(question(**asked, events=[fail]))
    assert table.height == 300
    assert all(rank.kv.used == 0 for group in run.groups for rank in group.ranks)


def test_a_controller_may_watch_the_decode_pool() -> None:
    load = {"kind": "ramp", "times_s": [0, 20], "request_rates": [5, 80], "lengths": LENGTHS}
    controller = {"policy": "forecast", "every_s": 2, "most": 3, "rank_request_rate": 20,
                  "pool": "decode"}  # fmt: skip
    _, run, _ = simulate(
        question(load=load, requests=900, scale_rates=RATES, seeds=1, autoscale=controller,
                 layout={"replicas": 2}, decode={"dp": 1}, slo={"ttft_s": 1})
    )  # fmt: skip
    assert run.changes.spans
    assert len(run.groups[2].ranks) > 1


def test_pipeline_stages_are_served_and_scaled() -> None:
    asked = {"layout": {"dp": 2, "pp": 2}, "load": STEADY, "requests": 200, "seeds": 1}
    answer, run, _ = simulate(question(**asked))
    assert len(run.groups) == 2
    assert any("2 pipeline stages" in text for text in answer.assumptions)
    event = {"at_s": 2, "dp": 3}
    _, scaled, _ = simulate(question(**asked, scale_rates=RATES, events=[event]))
    assert [len(group.ranks) for group in scaled.groups] == [3, 3]
    controller = {"policy": "threshold", "every_s": 1, "most": 3, "rank_request_rate": 10}
    _, watched, _ = simulate(question(**asked, scale_rates=RATES, autoscale=controller))
    assert len({len(group.ranks) for group in watched.groups}) == 1


def test_one_request_over_stages_equals_the_priced_passes() -> None:
    one = {"kind": "closed", "concurrency": 1, "lengths": {"isl": 400, "osl": 8}}
    engine = {"max_num_seqs": 2, "max_num_batched_tokens": 400, "async_scheduling": False}
    asked = question(layout={"tp": 2, "pp": 2}, load=one, requests=1, seeds=1, engine=engine)
    _, _, table = simulate(asked)
    seconds = prepare(asked).steps.seconds("typical")
    steps = [Iteration(400, 1, 400 * 401 // 2)]
    steps += [Iteration(0, 0, 0, 1, 400 + n) for n in range(1, 8)]
    total = sum(seconds([step]) for step in steps)
    assert table["e2e_s"][0] == pytest.approx(total, rel=1e-9)
