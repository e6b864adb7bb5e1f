"""Engines are data: names and aliases load, unknown versions say what was taken instead."""

import pytest

from hwprofiles.errors import MoesaicError
from planner.engines import engine_names, load_engine


@pytest.mark.parametrize("name", engine_names())
def test_every_file_loads(name):
    engine = load_engine(name)
    assert engine.name == name
    assert 0.5 < engine.memory_fraction.value <= 1
    assert engine.step_overhead_s("decode", 60, 64) >= engine.step_overhead_s("decode") > 0


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("TensorRT-LLM", "trtllm"),
        ("dynamo-sglang", "sglang"),
        ("vLLM", "vllm"),
        ("KT", "ktransformers"),
    ],
)
def test_aliases(alias, name):
    assert load_engine(alias).name == name


def test_unknown_version_is_said():
    engine = load_engine("vllm", "0.16.2")
    assert engine.version == "0.16.2"
    assert "0.15.1" in engine.assumptions[0]
    assert not load_engine("vllm", "0.15.1").assumptions


def test_unknown_engine_names_the_nearest():
    with pytest.raises(MoesaicError, match="sglang") as caught:
        load_engine("sglan")
    assert caught.value.kind == "unknown_name"
    assert caught.value.path == "/backend"
