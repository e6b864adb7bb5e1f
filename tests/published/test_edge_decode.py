"""Decode on phones, boards and a desktop: one share of memory bandwidth a device, model by model.

SmallThinker technical report, tables 4 and 5, and PowerInfer's smallthinker/README.md @ d3ebd7c566:
tokens a second with the whole model in memory, Q4_0.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hwprofiles.efficiency import Band, load_curves
from hwprofiles.library import load_device
from hwprofiles.timing import answer
from planner.estimate import estimate_one

BIG, SMALL, QWEN = "smallthinker-21b-a3b", "smallthinker-4b-a0.6b", "qwen3-30b-a3b"
Q06, Q17 = "qwen3-0.6b", "qwen3-1.7b"
RATES = {
    "i9-14900k": {BIG: 30.19, QWEN: 33.52, SMALL: 108.17, Q06: 148.56, Q17: 62.24},
    "snapdragon-8-gen4": {BIG: 23.03, QWEN: 20.18, SMALL: 78.99, Q06: 94.91, Q17: 41.00},
    "rk3588": {BIG: 10.84, QWEN: 9.07, SMALL: 39.76, Q06: 45.93, Q17: 20.29},
    "raspberry-pi-5": {BIG: 6.61, SMALL: 28.77, Q06: 27.44, Q17: 11.08},
    "rk3576": {SMALL: 15.10, Q06: 15.29, Q17: 6.09},
    "rk3566": {SMALL: 6.33, Q06: 9.76, Q17: 4.15},
    "rdk-x5": {SMALL: 7.23, Q06: 13.32, Q17: 6.35},
}
WORST = {
    "i9-14900k": 0.06, "snapdragon-8-gen4": 0.17, "rk3588": 0.22, "raspberry-pi-5": 0.34,
    "rk3576": 0.34, "rk3566": 0.26, "rdk-x5": 0.52,
}  # fmt: skip
"""Largest error of a model whose share is that of the others. SmallThinker ran in PowerInfer, which
skips neurons, the rest in llama.cpp; small cores are bound by arithmetic as much as by memory."""
T = {2: 3.078, 3: 1.886, 4: 1.638, 5: 1.533}
"""Student's t at 0.9 for n values."""
LEAST_SPREAD = 0.02


def seconds(device, model):
    """Of one token, as estimated."""
    return estimate_one({
        "id": 1, "phase": "serve", "model": model, "device": device, "backend": "llama-cpp",
        "precision": "q4_0", "mode": "agg", "tp": 1, "pp": 1, "dp": 1, "moe_tp": 1, "moe_ep": 1,
        "isl": 64, "osl": 64, "concurrency": 1,
    }).tpot_s  # fmt: skip


def with_share(monkeypatch, share):
    base = load_curves("cpu-default")
    band = Band(low=share, typical=share, high=share)
    families = {k: c.model_copy(update={"memory": band}) for k, c in base.families.items()}
    patched = base.model_copy(update={"families": families})
    monkeypatch.setattr(answer, "load_curves", lambda _: patched)


@cache
def parts(device):
    """Of each model: share that its rate needs, seconds at a share of one, seconds besides."""
    with pytest.MonkeyPatch.context() as patch:
        times = []
        for share in (0.6, 0.3):
            with_share(patch, share)
            times.append([seconds(device, model).typical for model in RATES[device]])
    fast, slow = np.array(times)
    memory = (slow - fast) / (1 / 0.3 - 1 / 0.6)
    rest = fast - memory / 0.6
    return memory / (1 / np.array(list(RATES[device].values())) - rest), memory, rest


def band(shares):
    """Median and 80 % prediction interval of one more share."""
    count = len(shares)
    spread = max(np.log(shares).std(ddof=1), LEAST_SPREAD)
    half = T[count] * spread * np.sqrt(1 + 1 / count)
    middle = np.median(shares)
    return middle * np.exp(-half), middle, min(middle * np.exp(half), 1.0)


@pytest.mark.parametrize("device", RATES)
def test_shipped_shares_are_those_of_the_published_rates(device):
    curves = load_curves(device)
    assert load_device(device).curves == device
    shipped = [curves.memory.low, curves.memory.typical, curves.memory.high]
    assert shipped == pytest.approx(band(parts(device)[0]), rel=0.01)


@pytest.mark.parametrize("device", RATES)
def test_each_model_from_the_others(device):
    shares, memory, rest = parts(device)
    measured = 1 / np.array(list(RATES[device].values()))
    for i, seconds_s in enumerate(measured):
        share = np.median(np.delete(shares, i))
        assert abs((memory[i] / share + rest[i]) / seconds_s - 1) <= WORST[device]


def test_intervals_hold_four_in_five_models_left_out():
    inside = []
    for device in RATES:
        shares = parts(device)[0]
        for i, share in enumerate(shares):
            low, _, high = band(np.delete(shares, i))
            inside.append(low <= share <= high)
    assert 0.75 <= np.mean(inside) <= 0.88


def test_estimates_name_their_evidence():
    """The desktop's five models within 6 % and inside the interval; never called assumed."""
    for model, rate in RATES["i9-14900k"].items():
        tpot = seconds("i9-14900k", model)
        assert tpot.typical * rate == pytest.approx(1, abs=0.06)
        assert tpot.low <= tpot.typical <= tpot.high
        assert tpot.source == "modelled"
