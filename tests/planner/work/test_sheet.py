"""The sheet counts what the model's parameters say, and grows as it must."""

import polars as pl
import pytest

from planner.candidates import POINT, number
from planner.model_library import load_model
from planner.moe_model import MoeModel
from planner.parameters import count_parameters
from planner.work.memory import MEMORY, add_memory
from planner.work.rows import SHEET
from planner.work.sheet import build_sheet, formats_of


def point(**changes):
    row = {
        "tp": 1, "dp": 1, "pp": 1, "moe_tp": 1, "moe_ep": 1, "devices": 1, "phase": "prefill",
        "batch": 1, "new_tokens": 1000, "past_tokens": 0, "context_tokens": 1000, "osl": 100,
        "step_tokens": 1, "redundant_experts": 0, "node_devices": 8,
    }  # fmt: skip
    schema = {name: kind for name, kind in POINT.items() if name != "point"}
    frame = number(pl.DataFrame([row | changes], schema=schema))
    return frame.with_columns(pl.lit(1.0).alias("busy_ratio"), pl.lit(1.0).alias("active_experts"))


def sheet_of(name="deepseek-v3", **changes):
    model = load_model(name)
    return build_sheet(point(**changes), model, formats_of(model, None, "bf16"))


def matrix_flops(sheet):
    """FLOP of all matrix products of one pass."""
    gemm = pl.col("m") * pl.col("n") * pl.col("k")
    grouped = (
        pl.col("tokens") * pl.col("top_k") * pl.col("matrices") * pl.col("hidden") * pl.col("inter")
        / (pl.col("moe_ep") * pl.col("moe_tp"))
    )  # fmt: skip
    both = pl.when(pl.col("kernel") == "gemm").then(gemm).otherwise(grouped)
    rows = sheet.filter(pl.col("kernel").is_in(["gemm", "grouped_gemm"]))
    return 2 * rows.select((both * pl.col("repeat_count")).sum()).item()


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "pangu-pro-moe"])
def test_matrix_products_touch_each_active_parameter_once_a_token(name):
    """Prefill: 2 FLOP a token for each active weight but the embedding and the one-token head."""
    tokens = 1000
    count, model = count_parameters(load_model(name)), load_model(name)
    head = model.vocab * model.hidden
    weights = count.active - count.embedding - count.norms
    expected = 2 * tokens * weights + 2 * head
    assert matrix_flops(sheet_of(name, new_tokens=tokens)) == pytest.approx(expected, rel=2e-3)


def test_schema_is_fixed():
    sheet = sheet_of()
    assert dict(sheet.schema) == {name: kind() for name, kind in SHEET.items()}


def test_tensor_parallel_halves_the_work_and_adds_a_sum():
    one, two = sheet_of("mixtral-8x7b"), sheet_of("mixtral-8x7b", tp=2, moe_tp=2, devices=2)
    assert matrix_flops(two) == pytest.approx(matrix_flops(one) / 2, rel=2e-3)
    assert "all_reduce" not in one["kernel"]
    assert two.filter(kernel="all_reduce")["repeat_count"].sum() == 2 * 32


def test_experts_across_data_parallel_ranks_exchange_tokens():
    sheet = sheet_of(dp=16, moe_ep=16, devices=16)
    dispatch = sheet.filter(kernel="moe_dispatch").row(0, named=True)
    combine = sheet.filter(kernel="moe_combine").row(0, named=True)
    assert (dispatch["dtype"], combine["dtype"]) == ("fp8_block", "bf16")
    assert (dispatch["devices"], dispatch["nodes"], dispatch["hidden"]) == (16, 2, 7168)


def test_dcca_narrows_what_travels_and_adds_two_projections():
    model = load_model("mixtral-8x7b")
    kinds = model.model_dump()["kinds"]
    kinds["moe"]["ffn"] |= {"latent": 1024, "width": 14336 * 4}
    dcca = MoeModel.model_validate(model.model_dump() | {"kinds": kinds})
    place = {"dp": 8, "moe_ep": 8, "devices": 8}
    wide = sheet_of("mixtral-8x7b", **place)
    narrow = build_sheet(point(**place), dcca, formats_of(dcca, None, "bf16"))
    assert wide.filter(kernel="moe_dispatch")["hidden"][0] == 4096
    assert narrow.filter(kernel="moe_dispatch")["hidden"][0] == 1024
    assert narrow.filter(stage="projection").height == 2
    assert count_parameters(dcca).routed == count_parameters(model).routed


def test_pipeline_hops_and_uneven_stages():
    sheet = sheet_of(pp=4, devices=4)
    assert sheet.filter(stage="pipeline")["repeat_count"].item() == 3
    assert sheet.filter(kernel="grouped_gemm")["repeat_count"].item() == 60  # 58 layers as 4 x 15


def memory_of(name, **changes):
    model = load_model(name)
    formats = formats_of(model, None, "bf16")
    return add_memory(point(**changes), model, formats, buffer_bytes=1e9).row(0, named=True)


def test_one_device_holds_the_whole_checkpoint():
    """DeepSeek-V3's files: 671 B in 8 bits with scales, embeddings in 16, MTP."""
    row = memory_of("deepseek-v3", phase="decode", new_tokens=1)
    weights = sum(row[name] for name in MEMORY[:5])
    assert weights == pytest.approx(671.03e9 + 1.85e9 + 11.6e9 + 0.15e9, rel=0.01)


def test_mla_cache_is_not_cut_by_tensor_parallelism():
    one = memory_of("deepseek-v3", phase="decode", context_tokens=1000)["kv_bytes"]
    eight = memory_of("deepseek-v3", phase="decode", context_tokens=1000, tp=8, moe_tp=8, devices=8)
    assert one == 1000 * 61 * 576 * 2 == eight["kv_bytes"]


def test_kv_heads_are_cut_down_to_one():
    rows = [memory_of("qwen3-30b-a3b", phase="decode", tp=tp, moe_tp=tp) for tp in (1, 2, 4, 8)]
    ratios = [rows[0]["kv_bytes"] / row["kv_bytes"] for row in rows]
    assert ratios == [1, 2, 4, 4]


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_more_devices_never_need_more_memory_each(name):
    shapes = [{"tp": t, "dp": d, "moe_ep": t * d, "devices": t * d * p, "pp": p}
              for t in (1, 2, 4) for d in (1, 2) for p in (1, 2)]  # fmt: skip
    for shape in shapes:
        held = memory_of(name, phase="decode", new_tokens=1, batch=8, **shape)["total_bytes"]
        more = shape | {"tp": shape["tp"] * 2, "moe_ep": shape["moe_ep"] * 2}
        assert memory_of(name, phase="decode", new_tokens=1, batch=8, **more)["total_bytes"] <= held
