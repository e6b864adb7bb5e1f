"""The catalogue's models, their names, and the ways a model is given."""

from __future__ import annotations

import json

import pytest

from hwprofiles.errors import MoesaicError
from planner.model_library import entries, load_model, resolve_model
from planner.parameters import count_parameters


@pytest.mark.parametrize("name", sorted(entries()))
def test_every_entry_loads_counts_and_goes_round(name):
    model = load_model(name)
    assert model.sources
    assert count_parameters(model).total > 0
    assert resolve_model(json.loads(model.model_dump_json())) == model


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-ai/DeepSeek-V3", 671.0, 37.55),  # arXiv:2412.19437: 671B, 37B activated
        ("Mixtral-8x7B", 46.7, 12.88),  # arXiv:2401.04088: 47B, 13B
        ("Qwen3-30B-A3B", 30.53, 3.353),  # model card: 30.5B, 3.3B
        ("Pangu Pro MoE", 71.99, 16.50),  # arXiv:2505.21411 Table 1
        ("moonshotai/Kimi-K2-Instruct", 1026.4, 32.86),  # model card: 1T, 32B
        ("gpt-oss-120b", 116.8, None),  # arXiv:2508.10925 Table 1: 116.83B
        ("gpt-oss-20b", 20.91, None),
        ("nemotron-3-nano", 31.6, None),  # model card: 31.6B
        ("yuan-2.0-m32", 40.01, 3.78),  # arXiv:2407.06204 Table 2, recomputed
        ("bigmac-gpt3-xl", 3.78, None),  # arXiv:2502.16927
        ("bigmac-gpt3-xl-fine-grained", 3.73, None),
    ],
)
def test_sizes_that_the_papers_state(name, total, active):
    count = count_parameters(load_model(name))
    assert count.total / 1e9 == pytest.approx(total, rel=2e-3)
    if active is not None:
        assert count.active / 1e9 == pytest.approx(active, rel=2e-3)


def test_a_near_name_is_offered():
    with pytest.raises(MoesaicError, match="did you mean") as caught:
        load_model("deepseek-v33")
    assert caught.value.kind == "unknown_name"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MoesaicError, match=r"config\.json"):
        load_model(tmp_path)


def test_a_folder_with_a_config_is_read(tmp_path):
    config = entries()["mixtral-8x7b"].config
    folder = tmp_path / "org--name"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder)
    assert model.name == "org/name"
    assert count_parameters(model).total == count_parameters(load_model("mixtral-8x7b")).total


@pytest.mark.parametrize("text", ["/etc/hostname", "../config.json", "~/config.json", "."])
def test_an_inline_name_is_never_a_path(text):
    with pytest.raises(MoesaicError) as caught:
        resolve_model(text)
    assert caught.value.kind == "unknown_name"
