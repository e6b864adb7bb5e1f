"""Layers with a state or compressed history: work, cache and states as the configs say."""

import polars as pl
import pytest

from planner.model_library import load_model
from planner.parameters import count_parameters
from planner.work.memory import MEMORY, add_memory
from planner.work.sheet import build_sheet, formats_of
from tests.planner.work.test_sheet import point as pass_point

GIB = 2.0**30


def point(**changes):
    decode = {"phase": "decode", "batch": 16, "new_tokens": 1, "past_tokens": 4096,
              "context_tokens": 4096}  # fmt: skip
    return pass_point(**(decode | changes))


def sheet_of(name, **changes):
    model = load_model(name)
    return build_sheet(point(**changes), model, formats_of(model, None, "bf16"))


@pytest.mark.parametrize(
    "name",
    ["nemotron-3-nano", "nemotron-3-ultra", "qwen3.5-397b-a17b", "qwen3-next-80b-a3b",
     "deepseek-v4-flash", "kimi-k3", "nemotron-h-56b"],
)  # fmt: skip
def test_decode_multiplies_each_active_weight_once(name):
    model = load_model(name)
    count = count_parameters(model)
    rows = sheet_of(name).filter(pl.col("kernel").is_in(["gemm", "grouped_gemm"]))
    dense = pl.col("m") * pl.col("n") * pl.col("k")
    grouped = (pl.col("tokens") * pl.col("top_k") * pl.col("matrices") * pl.col("hidden")
               * pl.col("inter"))  # fmt: skip
    work = pl.when(pl.col("kernel") == "gemm").then(dense).otherwise(grouped)
    flops = 2 * rows.select((work * pl.col("repeat_count")).sum()).item()
    head = model.vocab * model.hidden
    weights = count.active - count.embedding - count.norms + head
    assert flops == pytest.approx(2 * 16 * weights, rel=0.05)


def test_states_do_not_grow_with_context():
    model = load_model("nemotron-h-56b")
    formats = formats_of(model, None, "bf16")
    short, long = (
        add_memory(point(context_tokens=tokens), model, formats, 0.0)["kv_bytes"].item()
        for tokens in (1024, 1024 * 64)
    )
    cache = 10 * 2 * 8 * 128 * 2 * 16  # ten attention layers, keys and values, bf16, 16 sequences
    assert long - short == pytest.approx(cache * 1024 * 63)
    state = 54 * (16384 * 256 * 4 + (16384 + 2 * 8 * 256) * 3 * 2) * 16
    assert short - cache * 1024 == pytest.approx(state)


def test_compressed_history_is_a_fraction_of_the_context():
    v4, v3 = load_model("deepseek-v4-flash"), load_model("deepseek-v3")
    use = [
        add_memory(point(context_tokens=131072), model, formats_of(model, None, "bf16"), 0.0)
        for model in (v4, v3)
    ]
    assert use[0]["kv_bytes"].item() < 0.2 * use[1]["kv_bytes"].item()


def test_mixed_formats_are_weighed_in_memory(shared):
    from planner.model_library import read_model_file

    folder = shared / "data/hf_configs/nvidia--DeepSeek-V3.1-NVFP4"
    model = read_model_file(folder)
    own = add_memory(point(), model, formats_of(model, None, "fp8"), 0.0)
    assert own.select(pl.sum_horizontal(MEMORY)).item() > 0
    expected = count_parameters(model).attention * model.weights.mean_bytes["attention"]
    assert own["attention_bytes"].item() == pytest.approx(expected, rel=0.15)
