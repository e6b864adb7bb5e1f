"""TTFT and TPOT as sums of parts, each of which the fitted engine layer weighs.

TTFT is that of the usual closed-loop test: every caller asks at once, each comes back when it is
answered, ten requests a caller (InferenceMAX, benchmarks/benchmark_lib.sh: request rate `inf`,
ten prompts a caller, lengths between 0.8 and 1 of the stated ones). A tenth of the requests are
the first wave, half of whose prompts are ahead of one and whose kernels are chosen and compiled
meanwhile. Afterwards answers end one at a time: prompts meet when an engine seldom looks for new
requests, and by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

Array = NDArray[np.float64]
ALL = "all"
LAUNCH_S = 2e-6
"""Gap before a kernel of a replayed graph; a starting value, its multiplier is fitted."""
PROMPT_LAUNCH_S = 8e-6
"""Launch of a kernel that no graph replays; a starting value, its multiplier is fitted."""
REQUEST_S, HANDOVER_S = 10e-3, 50e-3
"""Starting values of a request's way in, and of the way from a prefill pool to decoding."""
FIRST_WAVE = 0.1
"""Share of requests that arrive together in the usual test."""
COLD_S = 0.3
"""Longer way of a first request through a service that nobody warmed; a starting value."""
EXPONENT_LIMIT = 4.0
MOST_SEQUENCES = 8192
"""Beyond it no figure was seen: slopes over load stay where they are."""
MOST_BUSY = 0.95
STEP_PARTS = ("experts", "attention", "exchange", "dense", "other", "host", "launch")
"""Parts of a forward pass; a decoding worker's TPOT has `prefill` besides."""


class Weight(Protocol):
    """One number that weighs a part: the logarithm of a multiplier for each unit of a feature."""

    @property
    def on(self) -> str:
        """A part's name, or `all`."""

    @property
    def by(self) -> str:
        """A feature's name."""

    @property
    def where(self) -> str:
        """A label."""

    @property
    def log_ratio(self) -> float:
        """Natural logarithm of the multiplier."""


def exponents(
    terms: Iterable[Weight], labels: frozenset[str], features: Mapping[str, Array], part: str
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

    def taken(self, rows: NDArray[np.intp]) -> Parts:
        """The parts of some of the points."""
        return Parts(
            {name: values[rows] for name, values in self.seconds.items()},
            {name: values[rows] for name, values in self.features.items()},
        )

    def scaled(self, terms: Sequence[Weight], labels: frozenset[str]) -> dict[str, Array]:
        """Every part times its fitted multiplier, the common one included."""
        whole = np.exp(exponents(terms, labels, self.features, ALL))
        return {
            name: value * whole * np.exp(exponents(terms, labels, self.features, name))
            for name, value in self.seconds.items()
        }

    def total(self, terms: Sequence[Weight], labels: frozenset[str]) -> Array:
        """The quantity."""
        total = np.zeros_like(self.features["1"])
        for part in self.scaled(terms, labels).values():
            total = total + part  # in one order, so that an answer repeats to the bit
        return total


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
    load = np.log(np.clip(get["batch"] * get["dp"], 1, MOST_SEQUENCES)) / 3 - 1
    return Parts(seconds, {
        "1": np.ones_like(load), "load": load, "tp": np.log2(get["tp"]) - 2,
        "ep": np.log2(get["moe_ep"]), "moe_tp": np.log2(get["moe_tp"]) - 2,
        "spread": (get["dp"] > 1).astype(float),
    })  # fmt: skip


def held_up_share(sequences: Array, osl: Array, ranks: Array) -> Array:
    """Share of decode steps that another's prompt holds up, prompts of several ranks at once.

    The other sequences of a rank bring `sequences / osl` prompts a step. Ranks exchange tokens in
    every layer, so the prompt of one holds up all of them: 1 - (1 - λ)^ranks.
    """
    rate = np.maximum(sequences - 1 / ranks, 0.0) / osl
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
    prompt_s: Array  # one prompt's prefill pass
    step_s: Array  # time between two tokens
    launches: Array  # kernels of a prefill pass
    ranks: Array
    pooled: Array  # 1: a pool of its own prefills
    osl: Array
    poll_passes: Array  # passes from one look for new requests to the next; 0: every pass looks
    rides: Array  # decode steps that each prompt of the first wave adds (mixed passes)
    busy: Array  # share of its time that a rank spends on prompts
    open_loop: Array  # 1: requests arrive at a rate, whoever is being answered
    uneven: Array  # E[isl²] / E[isl]²; 1: all prompts alike


def ttft_parts(load: Load, median: Array | float = 0.0) -> Parts:
    """Parts of the time to first token in a closed loop of callers.

    The way in, kernels that no graph replays, the prompt's own pass, the step in progress, the
    first wave's prompts ahead and its cold start, the wait for the engine to look with the prompts
    that came meanwhile, prompts met by chance, the way from one pool to the other. In an open loop
    there is no first wave. Prompts met by chance queue as M/G/1 does (Pollaczek and Khinchine).

    Args:
        load: what prompts meet.
        median: 1 for the median over requests, which the first wave doesn't reach; 0: the mean.
    """
    one, of_median = np.ones_like(load.prompt_s), median * np.ones_like(load.prompt_s)
    wave = (1 - load.open_loop) * (1 - of_median) * FIRST_WAVE
    ahead = 0.5 * np.maximum(load.per_rank - 1, 0)
    busy = np.minimum(load.busy, MOST_BUSY)
    own, met = 1 - load.pooled, np.maximum(1 - load.pooled, load.open_loop)
    between_s = load.step_s + load.per_rank / load.osl * load.prompt_s
    seconds = {
        "entry": REQUEST_S * one,
        "launch": load.launches * PROMPT_LAUNCH_S,
        "prompt": load.prompt_s,
        "step": own * load.step_s,
        "wave": wave * ahead * (load.prompt_s + load.rides * load.step_s),
        "cold": own * wave * COLD_S,
        "poll": own * load.poll_passes / 2 * between_s,
        "queue": met * busy / (2 * (1 - busy)) * load.prompt_s * load.uneven,
        "handover": HANDOVER_S * load.pooled,
    }
    callers = np.log(np.maximum(load.callers, 1)) / 2 - 1.5
    return Parts(seconds, {
        "1": one, "isl": np.log(load.isl / 8192), "spread": (load.ranks > 1).astype(float),
        "pooled": load.pooled, "median": of_median, "median_callers": of_median * callers,
    })  # fmt: skip
