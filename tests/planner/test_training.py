"""Training in closed form: what more devices, micro-batches and recomputation must do."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from hwprofiles.errors import MoesaicError
from planner.estimate import estimate_many
from planner.model_library import load_model
from planner.training import TrainingPoint, estimate_training, model_flops_per_token

RUN = ("model", "hardware", "n_devices", "parallelism", "precision", "framework", "isl", "phase",
       "batch_or_concurrency")  # fmt: skip
BASE = {"phase": "train", "model": "deepseek-v3", "device": "gb200", "precision": "mxfp8",
        "pp": 4, "vp": 4, "ep": 64, "dp": 64, "global_batch": 2048, "seq": 4096}  # fmt: skip


def step(**changes):
    return estimate_training(TrainingPoint.parse(BASE | changes), load_model).step_s.typical


def test_twice_the_batch_takes_less_than_twice_as_long():
    assert step() < step(global_batch=4096) < 2 * step()


def test_interleaving_shrinks_the_bubble():
    assert step(vp=4) < step(vp=1)


def test_recomputation_costs_time():
    assert step() < step(recompute=["moe"]) < step(recompute="full")
    assert step() < step(recompute="selective")


def test_nodes_or_dp_say_the_same():
    assert step(dp=None, nodes=64) == step()


def test_skewed_routing_is_slower():
    assert step(routing={"kind": "zipf", "alpha": 1.0}) > step()


@pytest.mark.parametrize(
    ("changes", "path"),
    [({"global_batch": 100}, "/global_batch"), ({"dp": None, "nodes": 3, "pp": 8}, "/nodes"),
     ({"tp": 8, "ep": 4, "dp": 8}, "/ep"), ({"device": "h9"}, "")],
)  # fmt: skip
def test_layouts_that_do_not_divide_are_refused(changes, path):
    with pytest.raises(MoesaicError) as caught:
        step(**changes)
    assert caught.value.path.startswith(path)


def test_a_bad_line_does_not_stop_the_others():
    answers = estimate_many([BASE | {"id": "a"}, BASE | {"id": "b", "global_batch": 1},
                             {"id": "c", "phase": "train"}])  # fmt: skip
    assert answers[0].step_s is not None
    assert answers[0].fits is not None
    assert [answer.error is None for answer in answers] == [True, False, False]
    assert [answer.id for answer in answers] == ["a", "b", "c"]


def test_model_flops_are_counted_as_reports_count_them(shared):
    """Printed TFLOP/s over printed tokens/s of the same run; median within 5 %."""
    pairs = {}
    with (shared / "data/measured/training.csv").open() as stream:
        for row in csv.DictReader(stream):
            key = tuple(row[name] for name in RUN)
            pairs.setdefault(key, {})[row["metric"]] = float(row["value"])
    ratios = []
    for key, metrics in pairs.items():
        if not {"tokens_per_s_per_gpu", "model_tflops_per_gpu"} <= set(metrics):
            continue
        if key[7] != "pretrain" or key[0] not in ("DeepSeekV3", "Qwen3_30B_a3B", "LLAMA3_70B",
                                                  "LLAMA3.1_405B", "GPT OSS 120B"):  # fmt: skip
            continue
        printed = metrics["model_tflops_per_gpu"] * 1e12 / metrics["tokens_per_s_per_gpu"]
        ratios.append(model_flops_per_token(load_model(key[0]), int(key[6])) / printed)
    assert len(ratios) > 100
    assert np.median(ratios) == pytest.approx(1.0, abs=0.05)
