"""What a serving engine makes of kernel times: fitted multipliers on parts of a pass and of a wait.

A quantity is a sum of parts, each times exp(sum of terms), and the whole times exp(sum of terms on
"all"). A term holds where its label does ("trtllm", "hopper", "trtllm|h200-sxm|fp8") and grows with
a scale-free feature of the point. Nothing is keyed by a model. Terms start at 0 (physics alone) and
are fitted on published figures by `planner/validation/fitting.py`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from hwprofiles.device import Device
from hwprofiles.document import Document, parse_as
from hwprofiles.files import read_document
from hwprofiles.kernels import DTYPES
from planner.engines import Engine, nearest_version

Array = NDArray[np.float64]
FILE = Path(__file__).parents[1] / "engines" / "fitted" / "serving.yaml"
ALL = "all"
LAUNCH_S = 2e-6
"""Gap before a kernel of a replayed graph; a starting value, its multiplier is fitted."""
PROMPT_LAUNCH_S = 8e-6
"""Launch of a kernel that no graph replays; a starting value, its multiplier is fitted."""
REQUEST_S, CALLER_S, WARM_S = 20e-3, 1e-4, 20e-3
"""Starting values of a request's way in, of each caller at once, of a service's first requests."""
BURST_SHARE = 0.1
"""Share of requests that arrive together in the usual test: ten waves of all callers."""
MOST_BUSY = 0.98
EXPONENT_LIMIT = 4.0


class Term(Document):
    """One fitted number: the logarithm of a multiplier for each unit of a feature."""

    on: str
    """A part's name, or `all`."""
    by: str = "1"
    """A feature's name; `1`: constant."""
    where: str = "any"
    """A label; `any`: everywhere."""
    log_ratio: float
    """Natural logarithm of the multiplier."""


class Spread(Document):
    """Quantiles of log(measured / estimated) on rows not fitted on."""

    low_log_ratio: float
    high_log_ratio: float
    rows: int


class Fitted(Document):
    """One quantity's terms with what they were fitted on and how far off they are."""

    terms: tuple[Term, ...]
    known: dict[str, Spread] = Field(default_factory=dict)
    """Spread by engine where engine and machine were fitted; `any`: others."""
    rows_count: int
    held_out_count: int
    held_out_median_ratio: float
    """Median of |estimated / measured - 1| on rows not fitted on."""


class EngineFit(Document):
    """The fitted engine layer, dated."""

    schema_version: int = 1
    date: datetime.date
    source: str
    rule: str
    """Which rows were fitted on."""
    generations: tuple[str, ...] = ()
    """Families of machines that the terms carry over to, beside those that terms name."""
    tpot: Fitted
    ttft: Fitted
    left_out_ratio: dict[str, float] = Field(default_factory=dict)
    """Median error on models (machines) of terms fitted without them."""


@cache
def load_fit(engine_name: str = "serving") -> EngineFit | None:
    """The shipped fit of an engine: its own file, else the common one; none: physics alone."""
    own = FILE.with_name(f"{engine_name}.yaml")
    path = own if own.exists() else FILE
    if not path.exists():
        return None
    return parse_as(EngineFit, read_document(path), what="fitted engine layer")


def generation(device: Device) -> str:
    """A coarse family of machines: vendor and whether it computes in 4 bits.

    >>> from hwprofiles.library import load_device
    >>> generation(load_device("b200-sxm")), generation(load_device("h100-sxm"))
    ('nvidia-fp4', 'nvidia-fp8')
    """
    widths = [width for width in ("fp4", "fp8") if width in device.peak_flop_per_s]
    return f"{device.vendor.lower()}-{widths[0] if widths else 'int8'}"


def labels_of(engine: Engine, device: Device, precision: str) -> frozenset[str]:
    """Every label that holds for a question."""
    name = engine.name
    return frozenset({
        "any", name, generation(device), precision, f"{name}|{device.name}",
        f"{name}|{device.name}|{precision}", f"{name}:{engine.version or '-'}",
    })  # fmt: skip


def exponents(
    terms: Iterable[Term], labels: frozenset[str], features: Mapping[str, Array], part: str
) -> Array:
    """Sum of the terms on one part that hold for these labels, one number a point."""
    total = np.zeros_like(features["1"])
    for term in terms:
        if term.on == part and term.where in labels:
            total = total + term.log_ratio * features[term.by]
    limited: Array = np.clip(total, -EXPONENT_LIMIT, EXPONENT_LIMIT)
    return limited


@dataclass(frozen=True)
class Parts:
    """Parts of a quantity in seconds and the features their terms grow with, one entry a point."""

    seconds: dict[str, Array]
    features: dict[str, Array]

    def scaled(self, terms: Sequence[Term], labels: frozenset[str]) -> dict[str, Array]:
        """Every part times its fitted multiplier, the common one included."""
        whole = np.exp(exponents(terms, labels, self.features, ALL))
        return {
            name: value * whole * np.exp(exponents(terms, labels, self.features, name))
            for name, value in self.seconds.items()
        }

    def total(self, terms: Sequence[Term], labels: frozenset[str]) -> Array:
        """The quantity."""
        total = np.zeros_like(self.features["1"])
        for part in self.scaled(terms, labels).values():
            total = total + part  # in one order, so that an answer repeats to the bit
        return total


STEP_PARTS = ("experts", "attention", "exchange", "dense", "other", "host", "launch")
"""Parts of a forward pass; a decoding worker's TPOT has `prefill` besides."""


def _column(frame: pl.DataFrame, name: str) -> Array:
    values: Array = frame[name].cast(pl.Float64).fill_null(0.0).to_numpy()
    return values


def step_parts(passes: pl.DataFrame) -> Parts:
    """Parts of forward passes (columns of `STEP` and of `POINT`).

    Features are logarithms centred near a usual point, so that a term of a few tenths is large.
    """
    get = {name: _column(passes, name) for name in ("batch", "dp", "tp", "moe_tp", "moe_ep")}
    seconds = {name: _column(passes, f"{name}_s") for name in STEP_PARTS[:-1]}
    seconds["launch"] = _column(passes, "launch_count") * LAUNCH_S
    load = np.log(np.maximum(get["batch"] * get["dp"], 1)) / 3 - 1
    return Parts(seconds, {
        "1": np.ones_like(load), "load": load, "load2": load**2,
        "tp": np.log2(get["tp"]) - 2, "ep": np.log2(get["moe_ep"]),
        "moe_tp": np.log2(get["moe_tp"]) - 2, "spread": (get["dp"] > 1).astype(float),
    })  # fmt: skip


def held_up_share(sequences: Array, osl: Array, ranks: Array) -> Array:
    """Share of decode steps that a prompt's pass holds up, prompts of several ranks at once.

    A rank takes `sequences / osl` prompts a step. Ranks exchange tokens in every layer, so the
    prompt of one holds up all of them: 1 - (1 - λ)^ranks.
    """
    rate = sequences / osl
    together = 1 - (1 - np.minimum(rate, 1.0)) ** ranks
    return np.where(rate < 1, together, rate)


def tpot_parts(pairs: pl.DataFrame) -> Parts:
    """Parts of the time between two tokens: a decode step over its tokens, prompts' share of it.

    Args:
        pairs: decode passes beside their prefill pass: columns `POINT`, `STEP` and
            `raw_s_prefill`; `held_up` tells how much of a prompt's pass falls on one step.
    """
    parts = step_parts(pairs)
    tokens = _column(pairs, "step_tokens")
    seconds = {name: value / tokens for name, value in parts.seconds.items()}
    seconds["prefill"] = _column(pairs, "raw_s_prefill") * _column(pairs, "held_up")
    return Parts(seconds, parts.features)


@dataclass(frozen=True)
class Load:
    """What a prompt meets on its way in, one entry a point."""

    callers: Array  # requests in flight on the whole service
    per_rank: Array  # of them on one data-parallel rank (disagg: prefill rank)
    isl: Array
    osl: Array
    prompt_s: Array  # one prompt's prefill pass
    step_s: Array  # time between two tokens
    launches: Array  # kernels of a prefill pass
    tp: Array
    ranks: Array
    pooled: Array  # 1: a pool of its own prefills
    uneven: Array  # E[isl²] / E[isl]²; 1: all prompts alike


def ttft_parts(load: Load) -> Parts:
    """Parts of the mean time to first token in a closed loop of callers.

    The way in, launches, the prompt's own pass, the step in progress, the first wave (all callers
    at once: half of them are ahead), prompts ahead in steady state and the pass in progress (the
    prefill share of time as load), each caller's handling, and a service's first requests.
    """
    ahead = load.per_rank * load.prompt_s
    decode = load.osl * load.step_s
    busy = np.minimum(ahead / np.maximum(decode + np.where(load.pooled > 0, load.prompt_s, ahead),
                                         1e-12), MOST_BUSY)  # fmt: skip
    one = np.ones_like(busy)
    seconds = {
        "entry": REQUEST_S * one,
        "launch": load.launches * PROMPT_LAUNCH_S,
        "prompt": load.prompt_s,
        "step": np.where(load.pooled > 0, 0.1, 1.0) * load.step_s,
        "wave": BURST_SHARE * 0.5 * np.maximum(load.per_rank - 1, 0) * load.prompt_s,
        "queue": BURST_SHARE * busy * ahead,
        "residual": 0.5 * busy * load.prompt_s * load.uneven,
        "callers": CALLER_S * load.callers,
        "warm": WARM_S * one,
    }
    callers = np.log(np.maximum(load.callers, 1)) / 2 - 1.5
    return Parts(seconds, {
        "1": one, "callers": callers, "isl": np.log(load.isl / 2900),
        "osl": np.log(load.osl / 2900), "busy": np.log(busy + 0.01) + 2,
        "spread": (load.ranks > 1).astype(float), "tp": np.log2(load.tp) - 2,
        "pooled": load.pooled, "pooled_callers": load.pooled * callers,
        "median": 0 * one, "median_callers": 0 * one,  # an answer is a mean
    })  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """The fitted engine layer of one question."""

    fit: EngineFit
    labels: frozenset[str]
    tpot: Spread
    ttft: Spread


def find_layer(engine: Engine, device: Device, dtype_name: str) -> Layer | None:
    """The fitted layer that holds for an engine on a machine.

    None where the engine or machines of this kind were not fitted on: physics alone then answers.
    A version that was not fitted on takes the nearest that was.
    """
    fit = load_fit(engine.name)
    if fit is None:
        return None
    fitted = {term.where for term in fit.tpot.terms} | set(fit.generations)
    if engine.name not in fitted or generation(device) not in fitted:
        return None
    labels = find_labels(engine, device, dtype_name) | {_version_label(engine, fitted)}
    key = f"{engine.name}|{device.name}"
    spreads = [q.known.get(key) or q.known["any"] for q in (fit.tpot, fit.ttft)]
    return Layer(fit, labels, spreads[0], spreads[1])


def find_labels(engine: Engine, device: Device, dtype_name: str) -> frozenset[str]:
    """Labels of a question whose experts are stored as `dtype_name`."""
    width = dtype_name if dtype_name == "bf16" else str(round(16 * _narrowness(dtype_name)))
    return labels_of(engine, device, {"16": "bf16", "8": "fp8", "4": "fp4"}.get(width, width))


def _narrowness(dtype_name: str) -> float:
    """Stored width over 16 bits, to the next power of two: 1, 1/2 or 1/4."""
    width = DTYPES[dtype_name].weight_bytes
    return 1.0 if width > 1.5 else 0.5 if width > 0.75 else 0.25  # noqa: PLR2004 - bytes


def _version_label(engine: Engine, fitted: set[str]) -> str:
    known = [label.partition(":")[2] for label in fitted if label.startswith(f"{engine.name}:")]
    near = nearest_version(engine.version, tuple(known)) if engine.version else "-"
    return f"{engine.name}:{near or '-'}"


def fitted_passes(passes: pl.DataFrame, layer: Layer | None) -> pl.DataFrame:
    """Add `raw_s` and let the fitted layer weigh the parts of each pass, the interval with it."""
    raw = passes.with_columns(pl.col("typical_s").alias("raw_s"))
    if layer is None:
        return raw
    terms, parts = layer.fit.tpot.terms, step_parts(raw)
    decode = parts.total(terms, layer.labels)
    whole = exponents(terms, layer.labels, parts.features, ALL)
    prompt = exponents(terms, layer.labels, parts.features, "prefill")
    prefill = raw["raw_s"].to_numpy() * np.exp(whole + prompt)
    typical = np.where((raw["phase"] == "decode").to_numpy(), decode, prefill)
    return raw.with_columns(
        pl.Series("typical_s", typical),
        pl.Series("low_s", typical * np.exp(layer.tpot.low_log_ratio)),
        pl.Series("high_s", typical * np.exp(layer.tpot.high_log_ratio)),
    )


def median_over_mean(engine_name: str, callers: float) -> float:
    """Median TTFT over its mean with this many callers, as published medians and means differ."""
    fit = load_fit()
    features = {"median": 1.0, "median_callers": float(np.log(max(callers, 1.0))) / 2 - 1.5}
    terms = fit.ttft.terms if fit is not None else ()
    logs = [
        term.log_ratio * features[term.by]
        for term in terms
        if term.by in features and term.where in ("any", engine_name)
    ]
    return float(np.exp(sum(logs)))
