"""Reading configs: sizes against the published table, and every kind of bad input."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.hf_config import read_config
from planner.formats.hf_families import load_families
from planner.model_library import entries, parse_config, read_model_file
from planner.moe_model import GqaAttention, LinearAttention, MambaMixer, MlaAttention, MoeFfn
from planner.parameters import (
    count_parameters,
    kv_bytes_per_token,
    layer_kv_elements,
    sequence_kv_elements,
    state_elements,
    weight_bytes,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "hf_configs"
MIXTRAL = dict(entries()["mixtral-8x7b"].config or {})
DEEPSEEK = dict(entries()["deepseek-v3"].config or {})


def _index() -> list[dict[str, str]]:
    path = SHARED / "INDEX.tsv"
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t"))


@pytest.mark.parametrize("row", _index(), ids=lambda row: row["dir"])
def test_routed_parameters_of_every_indexed_config(row):
    if row["routed_B"] == "?":
        with pytest.raises(MoesaicError, match="does not say"):
            read_model_file(SHARED / row["dir"])
        return
    model = read_model_file(SHARED / row["dir"])
    matrices = model.moe.matrices
    hidden = model.moe.latent or model.hidden
    exact = matrices * hidden * int(row["expert_width"]) * int(row["experts"])
    exact *= int(row["moe_layers"])
    assert count_parameters(model).routed == pytest.approx(exact, rel=1e-3)
    assert count_parameters(model).routed / 1e9 == pytest.approx(
        float(row["routed_B"]),
        rel=1e-3,
        abs=5e-3,  # printed with two decimals
    )
    assert (model.moe.experts, model.moe.top_k) == (int(row["experts"]), int(row["top_k"]))
    if row["layers"] != "?":
        assert model.layer_count == int(row["layers"])


NAMED = {
    "Qwen--Qwen3-235B-A22B": 235, "Qwen--Qwen3-VL-235B-A22B-Instruct": 235,
    "Qwen--Qwen3.5-397B-A17B": 397, "Qwen--Qwen3.5-122B-A10B": 122, "Qwen--Qwen3.5-27B": 27,
    "meta-llama--Meta-Llama-3.1-405B": 405, "meta-llama--Meta-Llama-3.1-8B": 8,
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": 550,
}  # fmt: skip


@pytest.mark.parametrize(("folder", "billions"), NAMED.items())
def test_total_is_what_an_exact_name_says(shared, folder, billions):
    model = read_model_file(shared / "data" / "hf_configs" / folder)
    assert count_parameters(model).total / 1e9 == pytest.approx(billions, rel=5e-3)


@pytest.mark.parametrize(
    ("folder", "billions"),
    [
        ("deepseek-ai--DeepSeek-V4-Flash", 284.3),  # DeepSeek-V4 report: 284B, 13B activated
        ("zai-org--GLM-5", 743.9),  # model card: 744B, 40B activated
        ("nvidia--Llama-3_3-Nemotron-Super-49B-v1", 49.87),  # model card: 49.9B
        ("nvidia--Nemotron-H-56B-Base-8K", 56.3),
        ("microsoft--Phi-3.5-MoE-instruct", 41.87),  # model card: 41.9B
    ],
)
def test_total_is_what_the_card_says(shared, folder, billions):
    found = [*(shared / "data" / "hf_configs").glob(f"**/{folder}")]
    assert count_parameters(read_model_file(found[0])).total / 1e9 == pytest.approx(
        billions, rel=5e-3
    )


def test_a_checkpoint_of_deepseek_v3_has_the_bytes_of_its_index(shared):
    """Hugging Face's index says 688,586,727,753 bytes; the MTP module repeats both embeddings."""
    from planner.parameters import mtp_bytes

    model = read_model_file(shared / "data" / "hf_configs" / "deepseek-ai--DeepSeek-V3")
    repeated = 2 * model.vocab * model.hidden * 2
    total = sum(weight_bytes(model).values()) + mtp_bytes(model) + repeated
    assert total == pytest.approx(688_586_727_753, rel=1e-3)


def test_windows_states_and_latents_are_cached_as_they_are(shared):
    folder = shared / "data" / "hf_configs"
    oss = read_model_file(folder / "openai--gpt-oss-120b")
    windows = {kind.attention.window_tokens for kind in oss.kinds.values()}
    assert windows == {128, None}
    sliding = next(k for k in oss.kinds.values() if k.attention.window_tokens)
    assert sequence_kv_elements(sliding, 4096) == 128 * layer_kv_elements(sliding)
    nano = read_model_file(folder / "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    mamba = next(k for k in nano.kinds.values() if isinstance(k.mixer, MambaMixer))
    assert state_elements(mamba, nano.hidden) == (64 * 64 * 128, (4096 + 2 * 8 * 128) * 3)
    assert kv_bytes_per_token(nano, "bf16") == 6 * 2 * 2 * 128 * 2
    qwen = read_model_file(folder / "Qwen--Qwen3.5-397B-A17B")
    linear = [n for n, k in qwen.kinds.items() if isinstance(k.mixer, LinearAttention)]
    assert qwen.kind_counts()[linear[0]] == 45
    assert kv_bytes_per_token(qwen, "bf16") == 15 * 2 * 2 * 256 * 2
    v3 = read_model_file(folder / "deepseek-ai--DeepSeek-V3")
    assert kv_bytes_per_token(v3, "bf16") == 61 * (512 + 64) * 2


def test_an_index_shared_by_layers_is_stored_once(shared):
    model = read_model_file(shared / "data" / "hf_configs" / "zai-org--GLM-5.2")
    owners = sum(
        count for name, count in model.kind_counts().items()
        if isinstance(a := model.kinds[name].attention, MlaAttention) and a.index_heads
    )  # fmt: skip
    assert owners == 21
    assert all(kind.attention.index_topk == 2048 for kind in model.kinds.values())


@pytest.mark.parametrize(
    ("folder", "formats"),
    [
        ("openai--gpt-oss-120b", ("mxfp4", "bf16")),
        ("nvidia--Qwen3-235B-A22B-NVFP4", ("nvfp4", "nvfp4")),
        ("nvidia--GLM-5.2-NVFP4", ("nvfp4", "bf16")),
        ("moonshotai--Kimi-K2.5", ("w4a16", "bf16")),
        ("deepseek-ai--DeepSeek-V4-Flash", ("mxfp4", "fp8_block")),
        ("nvidia--DeepSeek-V4-Flash-NVFP4", ("nvfp4", "fp8_block")),
        ("nvidia--Qwen3.6-35B-A3B-NVFP4", ("nvfp4", "fp8")),
        ("RedHatAI--Llama-4-Scout-17B-16E-Instruct-FP8-dynamic", ("fp8", "bf16")),
        ("MiniMaxAI--MiniMax-M2", ("fp8_block", "fp8_block")),
    ],
)
def test_formats_follow_quantisation_and_its_exceptions(shared, folder, formats):
    model = read_model_file(shared / "data" / "hf_configs" / folder)
    assert (model.weights.routed, model.weights.attention) == formats


def test_a_bucket_of_two_formats_is_weighed(shared):
    model = read_model_file(shared / "data" / "hf_configs" / "nvidia--DeepSeek-V3.1-NVFP4")
    assert 0.5625 < model.weights.mean_bytes["attention"] < 2
    assert model.weights.kv_cache == "fp8"


def test_an_unknown_family_is_refused_unless_assumed():
    config = {**MIXTRAL, "model_type": "brandnew", "moe_intermediate_size": 14336}
    with pytest.raises(MoesaicError, match="assume") as caught:
        read_config(config, name="x")
    assert caught.value.kind == "outside_evidence"
    model = read_config(config, name="x", assume=True)
    assert count_parameters(model).total == count_parameters(
        read_config(MIXTRAL, name="m")).total  # fmt: skip
    assert any("brandnew" in note for note in model.assumptions)
    assert "expert width read from moe_intermediate_size" in model.assumptions
    assert "experts read from num_local_experts" in model.assumptions
    assert any("three matrices" in note for note in model.assumptions)
    bare = read_config({**MIXTRAL, "model_type": "brandnew"}, name="x", assume=True)
    assert "expert width read from intermediate_size" in bare.assumptions


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "num_attention_heads",
        "intermediate_size",
        "num_experts_per_tok",
    ],
)
def test_a_size_that_is_not_there_is_never_a_class_default(field):
    config = {key: value for key, value in MIXTRAL.items() if key != field}
    with pytest.raises(MoesaicError, match="does not say") as caught:
        read_config(config, name="x")
    assert field in caught.value.path or field in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_key_value_heads": 7}, "/num_key_value_heads"),
        ({"num_experts_per_tok": 9}, "/num_experts_per_tok"),
        ({"hidden_size": -1}, "/hidden_size"),
        ({"hidden_size": "4096"}, "/hidden_size"),
        ({"hidden_size": True}, "/hidden_size"),
        ({"hidden_size": 10**30}, "/hidden_size"),
        ({"hidden_size": float("inf")}, "/hidden_size"),
        ({"num_hidden_layers": 10**6}, "/num_hidden_layers"),
        ({"num_attention_heads": 33}, "/num_attention_heads"),
        ({"n_group": 3}, "/n_group"),
        ({"layer_types": ["full_attention"]}, "/layer_types"),
        ({"layer_types": ["nonsense"] * 32}, "/layer_types"),
        ({"mlp_only_layers": ["a"]}, "/mlp_only_layers"),
        ({"moe_layer_freq": [1]}, "/moe_layer_freq"),
        ({"tie_word_embeddings": "yes"}, "/tie_word_embeddings"),
        ({"quantization_config": []}, None),
        ({"quantization_config": {"quant_method": "magic"}}, "/quantization_config/quant_method"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "/quantization_config/bits"),
        ({"model_type": 7}, "/model_type"),
        ({"max_position_embeddings": "long"}, "/max_position_embeddings"),
        ({"first_k_dense_replace": 99}, "/first_k_dense_replace"),
        (
            {"quantization_config": {"quant_method": "fp8", "ignore": [3]}},
            "/quantization_config/ignore",
        ),
    ],
)
def test_an_inconsistent_field_is_named(changes, field):
    if field is None:
        assert read_config({**MIXTRAL, **changes}, name="x").weights.routed == "bf16"
        return
    with pytest.raises(MoesaicError) as caught:
        read_config({**MIXTRAL, **changes}, name="x")
    assert caught.value.path == field
    assert caught.value.kind in {"invalid", "outside_evidence"}


def test_a_nested_field_has_its_whole_path():
    config = {"model_type": "llama4", "text_config": {"model_type": "llama4_text",
              "hidden_size": "big"}}  # fmt: skip
    with pytest.raises(MoesaicError) as caught:
        read_config(config, name="x")
    assert caught.value.path == "/text_config/hidden_size"


@pytest.mark.parametrize(
    "text",
    [
        '{"hidden_size": 4096', "[" * 5000 + "]" * 5000, '{"a": 1, "a": 2}', '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}", '{"a": ' * 80 + "1" + "}" * 80, "", "\x00", "null nonsense",
    ],
    ids=range(9),
)  # fmt: skip
def test_hostile_json_is_one_clear_error(text):
    with pytest.raises(MoesaicError) as caught:
        parse_config(text, "config.json")
    assert caught.value.kind == "invalid"
    assert "config.json" in str(caught.value)


def test_code_named_by_auto_map_is_not_touched():
    config = {**MIXTRAL, "auto_map": {"AutoConfig": "evil--__import__('os').system('false')"}}
    model = read_config(config, name="x")
    assert any("auto_map" in note for note in model.assumptions)


def test_a_hostile_pattern_of_modules_is_refused():
    quant = {"quant_method": "compressed-tensors", "ignore": ["re:" + "(a+)+" * 20 + "$"],
             "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}}  # fmt: skip
    with pytest.raises(MoesaicError, match="pattern"):
        read_config({**MIXTRAL, "quantization_config": quant}, name="x")


def test_a_config_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as stream:
        stream.truncate(100 * 2**20)
    with pytest.raises(MoesaicError, match="at most"):
        read_model_file(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([MIXTRAL, DEEPSEEK]), st.data())
def test_whatever_a_field_holds_the_answer_is_a_model_or_a_clear_error(config, data):
    roles, _ = load_families()
    names = sorted({name for names in roles.values() for name in names} | set(config))
    field = data.draw(st.sampled_from(names))
    with contextlib.suppress(MoesaicError):
        model = read_config({**config, field: data.draw(JSON)}, name="x")
        assert count_parameters(model).total > 0


def test_parts_that_contradict_each_other_are_one_error():
    config = dict(entries()["pangu-pro-moe"].config or {}) | {"num_groups": 64}
    with pytest.raises(MoesaicError, match="must divide top_k"):
        read_config(config, name="x")


def test_every_family_is_named_once():
    text = (Path(__file__).parents[2] / "planner/formats/hf_families.yaml").read_text()
    names = [n.strip().lower() for group in re.findall(r"types: \[(.*?)\]", text)
             for n in group.split(",")]  # fmt: skip
    assert len(names) == len(set(names))
    assert len(names) > 100


def test_parts_of_the_document_go_round(shared):
    for folder in ("deepseek-ai--DeepSeek-V4-Flash", "Qwen--Qwen3.5-35B-A3B",
                   "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4"):  # fmt: skip
        model = read_model_file(shared / "data" / "hf_configs" / folder)
        again = type(model).parse(json.loads(model.model_dump_json()))
        assert again == model
        assert any(isinstance(kind.ffn, MoeFfn) for kind in again.kinds.values())


def test_grouped_routers_say_their_groups(shared):
    pangu = read_model_file(shared / "data/hf_configs/_field-subsets/PanguProMoE-class-defaults")
    assert (pangu.moe.router, pangu.moe.groups, pangu.moe.shared_experts) == ("grouped", 8, 4)
    v3 = read_model_file(shared / "data/hf_configs/deepseek-ai--DeepSeek-V3")
    assert (v3.moe.router, v3.moe.groups, v3.moe.top_groups) == ("group_limited", 8, 4)


def test_gemma_keeps_its_dense_block_beside_the_experts(shared):
    model = read_model_file(shared / "data/hf_configs/nvidia--Gemma-4-26B-A4B-NVFP4")
    wide = next(
        kind.attention
        for kind in model.kinds.values()
        if isinstance(kind.attention, GqaAttention) and kind.attention.window_tokens is None
    )
    assert (wide.kv_heads, wide.head_dim, wide.shared_kv) == (2, 512, True)
    assert model.moe.shared_width == 2112
