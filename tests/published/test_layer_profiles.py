"""Layers that LLMServingSim timed in vLLM: RTX 4090's profile, and RTX PRO 6000 never fitted to.

RTX PRO 6000 answers from tables of another vLLM release (0.24, theirs is 0.19) on other runs.
"""

import json

import polars as pl
import pytest

from hwprofiles.calibration.vllm_layers import (
    LLAMA_8B,
    Model,
    fit_system,
    read_attention,
    read_products,
)
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for
from hwprofiles.timing import profile, time_kernels
from hwprofiles.timing.profile import FOLDER

QWEN_30B = Model(32, 4, 128, {"qkv_proj": (5120, 2048), "o_proj": (2048, 4096)})
QWEN_32B = Model(64, 8, 128, {
    "qkv_proj": (10240, 5120), "o_proj": (5120, 8192), "gate_up_proj": (51200, 5120),
    "down_proj": (5120, 25600),
})  # fmt: skip
MODELS = {
    "Qwen/Qwen3-30B-A3B-Instruct-2507": QWEN_30B,
    "Qwen/Qwen3-32B": QWEN_32B,
    "meta-llama/Llama-3.1-8B": LLAMA_8B,
}


@pytest.fixture
def layers(shared):
    return shared / "data" / "peers" / "llmservingsim" / "profiler" / "perf"


def off(rows, device):
    timed = time_kernels(rows, cluster_for(device), "vllm", extrapolate=True)
    return timed.with_columns(off=(pl.col("typical_s") / pl.col("seconds") - 1).abs())


def inside(timed):
    held = (timed["low_s"] <= timed["seconds"]) & (timed["seconds"] <= timed["high_s"])
    return held.mean()


def test_the_shipped_profile_comes_from_the_published_rows(layers):
    card, _ = fit_system(
        layers / "RTX4090" / "meta-llama" / "Llama-3.1-8B" / "bf16" / "tp1", "rtx4090"
    )
    assert json.loads(json.dumps(card)) == json.loads((FOLDER / "rtx-4090.vllm.json").read_text())
    products = card["tables"][0]
    assert products["error_shapes"]["median"] <= 0.05
    assert products["error_shapes"]["p90"] <= 0.18


def test_another_die_s_tables_stand_in_for_an_rtx_4090(layers, monkeypatch):
    """Without its own profile: L40S, the same die, with the share of the peak that 4090 reaches."""
    whole = profile.load_profile
    monkeypatch.setattr(
        profile, "load_profile", lambda d, b: None if d == "rtx-4090" else whole(d, b)
    )
    profile.find.cache_clear()
    folder = layers / "RTX4090" / "meta-llama" / "Llama-3.1-8B" / "bf16" / "tp1"
    timed = off(read_products(folder, LLAMA_8B), "rtx-4090")
    profile.find.cache_clear()
    assert set(timed["source"]) == {"modelled"}
    assert timed["off"].median() <= 0.05
    assert timed["off"].quantile(0.9) <= 0.18


@pytest.mark.parametrize("name", MODELS)
def test_chunks_after_a_long_past_on_an_rtx_pro_6000(layers, name):
    """A chunk too short to fill the GPU takes as long as one that does; 5 to 7 % off (median)."""
    prefill, _ = read_attention(layers / "RTXPRO6000" / name / "bf16" / "tp1", MODELS[name])
    timed = off(prefill.filter(pl.col("past") > 0), "rtx-pro-6000")
    assert timed.height > 200
    assert timed["off"].median() <= 0.08
    assert timed["off"].quantile(0.9) <= 0.20
    assert inside(timed) >= 0.65


@pytest.mark.parametrize("name", MODELS)
def test_products_of_another_release_on_an_rtx_pro_6000(layers, name):
    """5 to 8 % off (median)."""
    timed = off(read_products(layers / "RTXPRO6000" / name / "bf16" / "tp1", MODELS[name]),
                "rtx-pro-6000")  # fmt: skip
    assert timed["off"].median() <= 0.09
    assert timed["off"].quantile(0.9) <= 0.18


def test_few_experts_with_many_tokens_on_an_rtx_pro_6000(layers):
    """Tokens gathered on some experts: tables hold balanced loads, and the interval says so."""
    path = (
        layers / "RTXPRO6000" / "Qwen" / "Qwen3-30B-A3B-Instruct-2507" / "bf16" / "tp1" / "moe.csv"
    )
    sizes = {"hidden": 2048.0, "inter": 768.0, "experts": 128.0, "top_k": 8.0, "moe_tp": 1.0,
             "moe_ep": 1.0, "matrices": 3.0, "busy_ratio": 1.0}  # fmt: skip
    rows = pl.read_csv(path).select(
        pl.lit("grouped_gemm").alias("kernel"), pl.lit("bf16").alias("dtype"),
        pl.col("tokens").cast(pl.Float64), (pl.col("time_us") * 1e-6).alias("seconds"),
        pl.col("activated_experts").cast(pl.Float64).alias("active_experts"),
        **{name: pl.lit(value) for name, value in sizes.items()},
    )  # fmt: skip
    timed = off(rows, "rtx-pro-6000")
    assert timed["off"].median() <= 0.10
    crowded = timed.filter((pl.col("tokens") >= 16) & (pl.col("active_experts") <= 32))
    assert "measured" not in set(crowded["source"])
    assert inside(crowded) >= 0.75
    assert set(timed.filter(pl.col("active_experts") == 128)["source"]) == {"measured"}


def test_a_folder_without_its_files_says_which_it_needs(tmp_path):
    with pytest.raises(MoesaicError, match=r"dense\.csv, per_sequence\.csv, attention\.csv"):
        fit_system(tmp_path, "rtx4090")
