"""Fit how often experts miss and how fast storage brings them; choose how a pass waits for them.

On one machine: the 21B and the 4B model give one equation each, for two numbers. The other machines
of the paper decide between the forms of waiting.
"""

from __future__ import annotations

import datetime

from hwprofiles.files import dump
from hwprofiles.kernels import dtype
from hwprofiles.library import load_device
from planner.estimate import estimate_one
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.offload import FILE, SSD, TIERS, OffloadFit, Waiting, offload_fit
from planner.parameters import expert_parameters
from planner.point import Estimated, Point
from planner.routing.cached import miss_ratio, use_probability
from planner.validation.evidence import Figure
from planner.validation.papers import paper_figures
from planner.work.precision import formats_on

FORMS: tuple[Waiting, ...] = ("serial", "overlapped", "prefetch")
SYSTEM, LIMITED = "smallthinker", "-limited-"
MODELS = ("st-21-limited-", "st-4-limited-")
FITTED_ON = "i9"
STEEPEST, ROUNDS = 4.0, 50


def fit_offload() -> OffloadFit:
    """Fit each form of waiting on the first machine and keep the one that errs least elsewhere."""
    rows = {i: f for i, f in paper_figures().items() if f.tags["source"] == SYSTEM and LIMITED in i}
    found = {form: _fit(form, rows) for form in FORMS}
    errors = {form: _worst(form, numbers, rows) for form, numbers in found.items()}
    best = min(FORMS, key=lambda form: errors[form])
    exponent, share = found[best]
    old = offload_fit()
    return old.model_copy(update={
        "date": datetime.datetime.now(tz=datetime.UTC).date(),
        "popularity_exponent": round(exponent, 4), "storage_share": round(share, 4),
        "waiting": best, "held_out_ratio": {k: round(v, 4) for k, v in errors.items()},
    })  # fmt: skip


def write_fit(fit: OffloadFit) -> None:
    """Write the shipped file."""
    head = "# Fitted by planner/validation/offload_fit.py; never edited by hand.\n"
    FILE.write_text(head + dump(fit.model_dump(mode="json"), "yaml"))


def fetch_s(form: Waiting, figure: Figure) -> float:
    """Seconds of fetching that explain a measured step in a form of waiting."""
    memory_s = figure.point["offload"]["memory_step_s"]
    if form == "serial":
        return figure.value - float(memory_s)
    if form == "overlapped":
        return figure.value
    return figure.value - float(memory_s) + _attention_s(figure)


def _attention_s(figure: Figure) -> float:
    shares: Estimated = estimate_one(figure.point)
    return sum(part.seconds_s for part in shares.breakdown or () if part.stage == "attention")


def _token_bytes(figure: Figure) -> tuple[float, MoeModel]:
    """Bytes of all experts that a token runs."""
    point = Point.model_validate(figure.point)
    model, device = resolve_model(point.model), load_device(str(point.device))
    assert model.moe is not None  # noqa: S101 - the curated rows are of MoE models
    stored = dtype(formats_on(model, point.precision, None, device).weights.routed)
    one = expert_parameters(model.moe, model.hidden) * stored.weight_bytes
    return one * model.moe.top_k * len(model.moe_layers), model


def _misses(figure: Figure, exponent: float) -> float:
    _, model = _token_bytes(figure)
    assert model.moe is not None  # noqa: S101
    used = use_probability(model.moe.experts, float(model.moe.top_k), exponent)
    return miss_ratio(used, float(figure.point["offload"]["resident_share"]))


def _peak(figure: Figure) -> float:
    device = load_device(str(figure.point["device"]))
    tier = next(t for t in device.memory if t.name in TIERS[SSD])
    return tier.bandwidth_bytes_per_s.value


def _fit(form: Waiting, rows: dict[str, Figure]) -> tuple[float, float]:
    """Exponent and share of the storage's bandwidth from the two models on one machine."""
    large, small = (rows[name + FITTED_ON] for name in MODELS)
    needed = fetch_s(form, large) / fetch_s(form, small)
    volume = _token_bytes(large)[0] / _token_bytes(small)[0]
    low, high = 0.0, STEEPEST
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        steep = _misses(large, middle) / _misses(small, middle) * volume < needed
        low, high = (low, middle) if steep else (middle, high)
    moved = _misses(small, high) * _token_bytes(small)[0]
    return high, min(moved / fetch_s(form, small) / _peak(small), 1.0)


def _worst(form: Waiting, numbers: tuple[float, float], rows: dict[str, Figure]) -> float:
    """Greatest error on the machines not fitted on."""
    exponent, share = numbers
    return max(
        abs(_step_s(form, figure, exponent, share) / figure.value - 1)
        for name, figure in rows.items() if not name.endswith(FITTED_ON)
    )  # fmt: skip


def _step_s(form: Waiting, figure: Figure, exponent: float, share: float) -> float:
    memory_s = float(figure.point["offload"]["memory_step_s"])
    fetching = _misses(figure, exponent) * _token_bytes(figure)[0] / (share * _peak(figure))
    if form == "overlapped":
        return max(memory_s, fetching)
    hidden = _attention_s(figure) if form == "prefetch" else 0.0
    return memory_s + max(fetching - hidden, 0.0)
