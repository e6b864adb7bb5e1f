"""How long reading configs and sizing layouts takes; printed, never asserted."""

import json

import polars as pl
import pytest

from planner.formats.hf_config import read_config
from planner.model_library import entries, load_model, parse_config
from planner.parameters import count_parameters
from planner.work.memory import add_memory
from planner.work.sheet import formats_of
from planner.work.training_memory import TRAINING, TrainingRules, training_memory

pytestmark = pytest.mark.benchmark
ROWS = 100_000


def test_configs_read_and_counted(benchmark):
    texts = [json.dumps(entry.config) for entry in entries().values() if entry.config]

    def read():
        for text in texts:
            count_parameters(read_config(parse_config(text, "config.json"), name="x"))

    benchmark(read)
    benchmark.extra_info["configs_per_s"] = len(texts) / benchmark.stats["mean"]


def test_serving_memory_of_100_000_candidates(benchmark):
    model = load_model("deepseek-v3")
    row = {"phase": "decode", "batch": 32.0, "new_tokens": 1.0, "context_tokens": 8192.0, "tp": 2,
           "pp": 1, "moe_tp": 1, "moe_ep": 16, "redundant_experts": 32.0}  # fmt: skip
    frame = pl.DataFrame([row]).select(pl.all().repeat_by(ROWS).explode())
    formats = formats_of(model, None, "fp8")
    benchmark(lambda: add_memory(frame, model, formats, 4e9))


def test_training_memory_of_100_000_layouts(benchmark):
    model = load_model("deepseek-v3")
    row = dict.fromkeys(TRAINING, 1) | {"seq": 4096, "dp": 64, "ep": 32, "pp": 8, "tp": 2}
    frame = pl.DataFrame([row]).select(pl.all().repeat_by(ROWS).explode())
    benchmark(lambda: training_memory(frame, model, TrainingRules()))
