"""Scores from router logits against hand-made cases, and traces that must be refused."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from planner.compression.experts import expert_table
from planner.compression.importance import (
    atomic_saliency,
    frequency,
    peu,
    read_router_logits,
    router_weight,
    score,
    tcess,
    widths_from_saliency,
)
from planner.compression.patterns import TaskPatterns
from planner.model_library import load_model

LOGITS = np.array([[[2.0, 1.0, 0.0, -1.0]], [[-3.0, -1.0, -2.0, -4.0]]])  # two tokens, one layer


def test_tcess_is_the_mean_selected_logit():
    assert tcess(LOGITS, 1)[0] == pytest.approx([1.0, -0.5, 0, 0])
    assert tcess(LOGITS, 2, threshold=0.7)[0] == pytest.approx([1.0, -0.5, 0, 0])


def test_peu_squashes_and_keeps_the_confident():
    share = 1 / (1 + np.exp(-1.0))  # both tokens: best against second best, one apart
    found = peu(LOGITS, 2)[0]
    sigmoid = 1 / (1 + np.exp(1.0))
    assert share > 0.7
    assert found == pytest.approx([1.0, 0.5 * sigmoid, 0, 0])


def test_frequency_and_router_weight():
    assert frequency(LOGITS, 2)[0] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert router_weight(LOGITS, 2)[0].sum() == pytest.approx(1.0)
    with pytest.raises(MoesaicError, match="known: frequency"):
        score("magic", LOGITS, 2)


def test_saliency_cuts_the_lowest_units_of_all_layers():
    saliency = atomic_saliency(np.arange(24.0).reshape(2, 3, 4), np.ones((2, 3, 4)))
    keep = widths_from_saliency(saliency, 0.25)
    assert keep.tolist() == [[0, 2, 4], [4, 4, 4]]


def test_traces_go_in_as_npz_and_parquet(tmp_path):
    np.savez(tmp_path / "t.npz", logits=LOGITS)
    assert (read_router_logits(tmp_path / "t.npz") == LOGITS).all()
    frame = pl.DataFrame({"token": [0, 1], "layer": [3, 3], "logits": LOGITS[:, 0].tolist()})
    frame.write_parquet(tmp_path / "t.parquet")
    assert (read_router_logits(tmp_path / "t.parquet") == LOGITS).all()


def test_traces_that_could_run_code_or_mean_nothing_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("never",))

    np.savez(tmp_path / "evil.npz", logits=np.array([Evil()], dtype=object))
    np.savez(tmp_path / "nan.npz", logits=np.full((2, 2, 2), np.nan))
    np.savez(tmp_path / "flat.npz", logits=np.ones(4))
    np.savez(tmp_path / "other.npz", weights=np.ones((2, 2, 2)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nonsense")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "a.pkl").write_bytes(b"x")
    for name in ("evil.npz", "nan.npz", "flat.npz", "other.npz", "broken.npz", "text.parquet",
                 "a.pkl", "missing.npz"):  # fmt: skip
        with pytest.raises(MoesaicError) as caught:
            read_router_logits(tmp_path / name)
        assert caught.value.kind == "invalid"


def test_a_task_is_found_by_its_first_layer_and_its_change_costs_loads():
    table = expert_table(load_model("olmoe-1b-7b"))
    rng = np.random.default_rng(0)
    tasks = TaskPatterns({"math": rng.random(table.shape), "code": rng.random(table.shape)})
    name, distance = tasks.nearest(tasks.scores["code"][0] + 1e-3)
    assert name == "code"
    assert distance < 0.1
    count, size = tasks.to_load(table, "math", "code", 32)
    assert 0 < count < 16 * 32
    assert size == count * table.parameters()[0, 0] * 2
    assert tasks.to_load(table, "math", "math", 32) == (0, 0.0)
    with pytest.raises(MoesaicError):
        tasks.nearest(np.ones(3))
    with pytest.raises(MoesaicError):
        tasks.mask("cooking", 3)
