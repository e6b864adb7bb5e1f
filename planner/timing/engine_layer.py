"""What a serving engine makes of kernel times: fitted multipliers on parts of a pass and of a wait.

A quantity is a sum of parts (planner/timing/parts.py), each times exp(sum of terms), and the whole
times exp(sum of terms on "all"). A term holds where its label does ("trtllm", "nvidia-fp8",
"trtllm@nvidia-fp8", "trtllm|h200-sxm") and grows with a scale-free feature of the point. Nothing is
keyed by a model. Terms start at 0 (physics alone) and are fitted on published figures by
`planner/validation/fitting.py`.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from hwprofiles.device import Device
from hwprofiles.document import Document, parse_as
from hwprofiles.files import read_document
from hwprofiles.kernels import DTYPES
from planner.engines import Engine, Poll, nearest_version
from planner.moe_model import MoeModel
from planner.timing.parts import ALL, Array, Parts, exponents, step_parts

Codes = NDArray[np.intp]
FILE = Path(__file__).parents[1] / "engines" / "fitted" / "serving.yaml"
NEW_MODEL, NEW_MACHINE, ANY = "new model", "new machine", "any"


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
    """Spread by engine and machine, of all held out (`any`), and of what was left out of a fit
    (`new model`, `new machine`)."""
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
    tpot: Fitted
    ttft: Fitted
    left_out_ratio: dict[str, float] = Field(default_factory=dict)
    """Median error on models (machines) of terms fitted without them."""
    shapes: tuple[str, ...] = ()
    """Models fitted on, by `shape_of`."""
    machines: tuple[str, ...] = ()
    generations: tuple[str, ...] = ()
    """Families of machines that the terms carry over to."""


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


def find_labels(engine: Engine, device: Device, dtype_name: str) -> frozenset[str]:
    """Every label that holds for an engine on a device with experts stored as `dtype_name`."""
    name, family = engine.name, generation(device)
    return frozenset({
        ANY, name, family, f"{name}@{family}", device.name, f"{name}|{device.name}",
        f"{name}:{engine.version or '-'}", width_label(dtype_name),
    })  # fmt: skip


def width_label(dtype_name: str) -> str:
    """Stored width to the next power of two.

    Kernels of 4-bit weights are further from the memory's rate than those of 16 bits.

    >>> width_label("nvfp4"), width_label("bf16")
    ('4 bits', '16 bits')
    """
    width = DTYPES[dtype_name].weight_bytes
    return f"{16 if width > 1.5 else 8 if width > 0.75 else 4} bits"  # noqa: PLR2004 - bytes


def shape_of(model: MoeModel) -> str:
    """What makes two checkpoints one model to a machine: sizes, whatever their names.

    >>> from planner.model_library import load_model
    >>> shape_of(load_model("deepseek-r1")) == shape_of(load_model("deepseek-v3"))
    True
    """
    moe = model.moe
    experts = f"{moe.experts}x{moe.width}" if moe else "dense"
    return f"{model.layer_count}x{model.hidden}-{experts}"


@dataclass(frozen=True)
class Layer:
    """The fitted engine layer of one question."""

    fit: EngineFit
    labels: frozenset[str]
    tpot: Spread
    ttft: Spread
    chunk_tokens: float = inf
    """New tokens that a pass takes beside decoding; infinite: prompts have passes of their own."""
    polls: tuple[Poll, ...] = ()


def polls_on(engine: Engine, device: Device) -> tuple[Poll, ...]:
    """How rarely an engine on a device looks for new requests.

    >>> from hwprofiles.library import load_device
    >>> from planner.engines import load_engine
    >>> [poll.passes for poll in polls_on(load_engine("sglang"), load_device("b200-sxm"))]
    [10, 30]
    """
    polls = engine.scheduler.polls
    return tuple(poll for poll in polls if poll.needs in device.peak_flop_per_s)


QUESTION = "question"
"""Column of passes of several questions: which of the layers is theirs; none: the first."""


@dataclass(frozen=True)
class Layers:
    """The fitted engine layers of questions that are answered together; none: physics alone."""

    layers: tuple[Layer | None, ...]

    @classmethod
    def of(cls, layers: Layers | Layer | None) -> Layers:
        """One layer, or several as they are."""
        return layers if isinstance(layers, Layers) else cls((layers,))

    def places(self, frame: pl.DataFrame) -> Codes:
        """Which layer each row has."""
        if QUESTION not in frame.columns:
            return np.zeros(frame.height, dtype=np.intp)
        return frame[QUESTION].to_numpy().astype(np.intp)

    def fitted(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Rows that have a layer."""
        has = np.array([layer is not None for layer in self.layers])
        found: NDArray[np.bool_] = has[self.places(frame)]
        return found

    def weighed(
        self, frame: pl.DataFrame, parts: Parts, weigh: Callable[[Layer, Parts], Array]
    ) -> Array:
        """What `weigh` makes of the parts of each row, layer by layer; rows without one: NaN."""
        alike: dict[tuple[int, frozenset[str]], list[int]] = defaultdict(list)
        for number, layer in enumerate(self.layers):
            if layer is not None:
                alike[id(layer.fit), layer.labels].append(number)
        places, total = self.places(frame), np.full(frame.height, np.nan)
        for numbers in alike.values():
            rows, layer = np.flatnonzero(np.isin(places, numbers)), self.layers[numbers[0]]
            if len(rows) and layer is not None:
                total[rows] = weigh(layer, parts.taken(rows))
        return total

    def numbers(self, frame: pl.DataFrame, number: Callable[[Layer], float]) -> Array:
        """A number of each row's layer; NaN where it has none."""
        each = [np.nan if layer is None else number(layer) for layer in self.layers]
        return np.array(each, dtype=np.float64)[self.places(frame)]


def ride_tokens(engine: Engine) -> float:
    """New tokens that a pass of an engine takes beside decoding, infinite where it takes none."""
    scheduler = engine.scheduler
    return float(scheduler.chunk_tokens.value) if scheduler.policy == "mixed" else inf


def find_layer(engine: Engine, device: Device, shape: str, dtype_name: str) -> Layer | None:
    """The fitted layer that holds for an engine on a machine.

    None where the engine or the vendor was not fitted on: physics alone then answers. A version
    that was not fitted on takes the nearest that was; it, a machine and a model (`shape_of`) that
    were not fitted on have the wider intervals that were measured by leaving one out.
    """
    fit = load_fit(engine.name)
    if fit is None:
        return None
    fitted = _fitted_labels(engine.name)
    vendors = {name.partition("-")[0] for name in fit.generations}
    if engine.name not in fitted or device.vendor.lower() not in vendors:
        return None
    version = _version_label(engine, fitted)
    labels = find_labels(engine, device, dtype_name) | {version}
    key = f"{engine.name}|{device.name}"
    if generation(device) not in fit.generations:
        key = NEW_MACHINE
    elif shape not in fit.shapes or engine.version not in version:
        key = NEW_MODEL
    elif device.name not in fit.machines:
        key = NEW_MACHINE
    spreads = [q.known.get(key) or q.known[ANY] for q in (fit.tpot, fit.ttft)]
    return Layer(fit, labels, spreads[0], spreads[1], ride_tokens(engine), polls_on(engine, device))


@cache
def _fitted_labels(engine_name: str) -> frozenset[str]:
    fit = load_fit(engine_name)
    return frozenset({term.where for term in fit.tpot.terms} | set(fit.tpot.known) if fit else ())


def _version_label(engine: Engine, fitted: frozenset[str]) -> str:
    known = {label.partition(":")[2] for label in fitted if label.startswith(f"{engine.name}:")}
    if engine.version not in known:
        known -= set(engine.runtime_versions)
    near = nearest_version(engine.version, tuple(known)) if engine.version else "-"
    return f"{engine.name}:{near or '-'}"


def fitted_passes(passes: pl.DataFrame, layer: Layers | Layer | None) -> pl.DataFrame:
    """Add `raw_s` and let the fitted layer weigh the parts of each pass, the interval with it."""
    raw, layers = passes.with_columns(pl.col("typical_s").alias("raw_s")), Layers.of(layer)
    fitted = layers.fitted(raw)
    if not fitted.any():
        return raw
    parts = step_parts(raw)
    decode = layers.weighed(raw, parts, _decoding)
    prefill = raw["raw_s"].to_numpy() * layers.weighed(raw, parts, _prefilling)
    typical = np.where((raw["phase"] == "decode").to_numpy(), decode, prefill)
    low = typical * layers.numbers(raw, lambda layer: float(np.exp(layer.tpot.low_log_ratio)))
    high = typical * layers.numbers(raw, lambda layer: float(np.exp(layer.tpot.high_log_ratio)))
    return raw.with_columns(
        pl.Series(name, np.where(fitted, values, raw[name].to_numpy()))
        for name, values in (("typical_s", typical), ("low_s", low), ("high_s", high))
    )


def _decoding(layer: Layer, parts: Parts) -> Array:
    """Seconds of a decode pass."""
    return parts.total(layer.fit.tpot.terms, layer.labels)


def _prefilling(layer: Layer, parts: Parts) -> Array:
    """What a prefill pass is multiplied by."""
    terms = layer.fit.tpot.terms
    whole = exponents(terms, layer.labels, parts.features, ALL)
    prompt = exponents(terms, layer.labels, parts.features, "prefill")
    return np.asarray(np.exp(whole + prompt))
