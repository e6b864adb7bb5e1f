"""Helix's layer times of L4, T4 and V100: fitted on one model, judged on another."""

import numpy as np
import pytest

from hwprofiles.calibration.helix import (
    FEW_SEQUENCES,
    LAYERS,
    SYSTEMS,
    fit_curves,
    layer_s,
    layer_work,
    read_layers,
)
from hwprofiles.efficiency import load_curves
from hwprofiles.library import load_device

WORST = {"l4": (0.02, 0.07), "t4": (0.05, 0.08), "v100": (0.09, 0.14)}
"""Median and 90th percentile on Llama-30B; reached 1.1 and 6.1, 3.7 and 6.1, 7.4 and 11.9 %."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_other_models_layers(shared, system):
    root = shared / "data" / "peers" / "helix" / "simulator" / "model_manager"
    curves, errors = fit_curves(root, system)
    off = np.abs(np.expm1(errors))
    median, tail = WORST[system]
    assert len(off) >= 30
    assert np.median(off) <= median
    assert np.quantile(off, 0.9) <= tail
    name = SYSTEMS[system]
    shipped = load_curves(name)
    assert load_device(name).curves == name
    assert shipped.families["gemm"] == curves.families["gemm"]
    assert "gemm" not in shipped.assumed
    assert "grouped_gemm" in shipped.assumed


def test_layers_hold_the_models_weights():
    """80 and 60 layers without embeddings: 68.5 and 32.1 billion parameters (config.json)."""
    for model, (layers, billions) in {"llama2_70b": (80, 68.5), "llama1_30b": (60, 32.1)}.items():
        found = layers * sum(n * k for n, k in LAYERS[model]) / 1e9
        assert found == pytest.approx(billions, rel=0.005)


def test_large_decode_batches_are_left_out(shared):
    root = shared / "data" / "peers" / "helix" / "simulator" / "model_manager"
    tokens, seconds = read_layers(root, "l4", "llama2_70b")
    assert ((tokens <= FEW_SEQUENCES) | (tokens >= 250)).all()
    assert (seconds > 0).all()
    work = layer_work("l4", "llama2_70b", tokens)
    assert len(layer_s(work, load_curves("l4").families["gemm"])) == len(tokens)
