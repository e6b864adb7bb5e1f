"""Every way to reach the experts writes rows that agree with its volume, in both orders."""

import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from hwprofiles.library import resolve_cluster
from hwprofiles.timing import time_kernels
from planner.candidates import POINT, number
from planner.compression.exchange_order import as_dcca
from planner.engines import load_engine
from planner.model_library import load_model, resolve_model
from planner.pipeline import parse_scenario
from planner.pricing import Question, add_load
from planner.routing import UniformRouting
from planner.scenario import Choices, inline_files
from planner.work.exchange import EXCHANGES
from planner.work.sheet import build_sheet, formats_of

CROSSING = ("moe_dispatch", "moe_combine", "all_to_all", "all_gather", "reduce_scatter")


def points_of(**changes):
    row = {
        "tp": 1, "dp": 16, "pp": 1, "moe_tp": 1, "moe_ep": 16, "devices": 16, "phase": "prefill",
        "batch": 1, "new_tokens": 1000, "past_tokens": 0, "context_tokens": 1000, "osl": 100,
        "step_tokens": 1, "redundant_experts": 0, "node_devices": 8,
    }  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    return number(pl.DataFrame([row | changes], schema=schema))


def rows_of(exchange, model=None, busy_ratio=1.0, **changes):
    points = points_of(**changes).with_columns(
        pl.lit(busy_ratio).alias("busy_ratio"), pl.lit(1.0).alias("active_experts")
    )
    model = model or load_model("deepseek-v3")
    sheet = build_sheet(points, model, formats_of(model, None, "bf16", exchange))
    return sheet.filter(
        pl.col("stage").is_in(["dispatch", "combine"]), pl.col("kernel").is_in(CROSSING)
    ).to_dicts()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_way_goes_there_and_back_in_each_moe_layer(exchange):
    rows = rows_of(exchange)
    assert {row["stage"] for row in rows} == {"dispatch", "combine"}
    assert {row["repeat_count"] for row in rows} == {58}
    assert rows_of(exchange, dp=1, moe_ep=1, devices=1) == []


def test_choices_name_every_way():
    for exchange in EXCHANGES:
        assert Choices(exchange=exchange).exchange == exchange
    with pytest.raises(MoesaicError, match="exchange"):
        Choices.parse({"exchange": "carrier pigeon"}, what="choices")
    with pytest.raises(MoesaicError, match="carrier"):
        rows_of("carrier pigeon")


def test_flat_sends_a_copy_for_each_expert_of_the_busiest_rank():
    out, back = rows_of("flat_pairwise", busy_ratio=1.5)
    assert out["message_bytes"] == pytest.approx(1000 * 8 * 7168 * (1 + 4 / 128) * 1.5)
    assert back["message_bytes"] == pytest.approx(1000 * 8 * 7168 * 2 * 1.5)
    assert (out["devices"], out["nodes"]) == (16, 2)


def test_two_stages_stay_in_the_node_first():
    rows = rows_of("hierarchical")
    assert [(row["devices"], row["nodes"]) for row in rows] == [(8, 1), (2, 2)] * 2


def test_gathering_does_not_depend_on_top_k():
    out, back = rows_of("gather_scatter")
    assert (out["kernel"], back["kernel"]) == ("all_gather", "reduce_scatter")
    assert out["message_bytes"] == pytest.approx(16 * 1000 * 7168 * (1 + 4 / 128))


@pytest.mark.parametrize(
    ("exchange", "library"),
    [("library", None), ("node_deduplicated", "deepep_normal"),
     ("low_latency", "deepep_low_latency")],
)  # fmt: skip
def test_libraries_are_named_in_the_rows(exchange, library):
    assert {row["library"] for row in rows_of(exchange)} == {library}


@pytest.mark.parametrize("exchange", ["library", "flat_pairwise", "gather_scatter"])
def test_dcca_sends_a_quarter_at_a_ratio_of_a_quarter(exchange):
    wide = load_model("deepseek-v3")
    for before, after in zip(
        rows_of(exchange), rows_of(exchange, as_dcca(wide, 0.25)), strict=True
    ):
        for name in ("hidden", "message_bytes"):
            if before[name] is not None:
                assert after[name] == pytest.approx(before[name] / 4)


def test_a_question_may_ask_for_dcca_by_name(tmp_path):
    asked = {"base": "bigmac-gpt3-xl-fine-grained", "dcca_ratio": 0.25}
    assert resolve_model(asked).kinds == load_model("bigmac-gpt3-xl").kinds
    assert resolve_model({"base": "mixtral-8x7b", "name": "mine"}).name == "mine"
    assert load_model(asked) == resolve_model(asked)
    path = tmp_path / "model.json"
    path.write_text(load_model("mixtral-8x7b").model_dump_json())
    data = {
        "model": {"base": "model.json", "dcca_ratio": 0.5}, "cluster": "dgx-h100",
        "workload": {"isl": 100, "osl": 10, "concurrency": 1},
    }  # fmt: skip
    scenario = parse_scenario(inline_files(data, tmp_path))
    assert scenario.model.moe.latent == 2048
    assert parse_scenario(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize("ratio", ["a quarter", True, [1], 0, -1, 2, 1e300])
def test_a_bad_ratio_is_refused(ratio):
    with pytest.raises(MoesaicError, match="ratio"):
        resolve_model({"base": "mixtral-8x7b", "dcca_ratio": ratio})


def test_node_limited_routing_crosses_fewer_nodes_than_equal_draws_would():
    """DeepSeek-V3 keeps a token to four groups of eight; the rows say so to the timing."""
    model, cluster = load_model("deepseek-v3"), resolve_cluster("hgx-h800-x4")
    formats = formats_of(model, None, "bf16")
    question = Question(model, cluster, load_engine("sglang"), UniformRouting(), formats)
    loaded = add_load(points_of(dp=32, moe_ep=32, devices=32), question)
    reached = loaded.select("ranks_reached", "nodes_reached").row(0)
    assert reached[0] < 7.3
    assert reached[1] < 3.3 < 4 * (1 - 0.75**8)
    rows = build_sheet(loaded, model, formats).filter(kernel="moe_dispatch")
    blind = rows.with_columns(pl.lit(None, pl.Float64).alias("nodes_reached"))
    limited = time_kernels(rows, cluster, "sglang")["typical_s"][0]
    assert limited < time_kernels(blind, cluster, "sglang")["typical_s"][0]
