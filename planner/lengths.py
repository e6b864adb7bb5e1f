"""Prompt and answer lengths as a distribution: what a steady service needs to know of it.

Means alone mislead: attention over a prompt grows with the square of its length, and a decoding
batch holds long answers longer, so that its mean context is weighed by answer length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document

Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Mean = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
Variation = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
Level = Annotated[float, Field(ge=0, le=1)]
Array = NDArray[np.float64]
POINTS = 400
"""Equally likely lengths that stand for a distribution given by its quantiles."""


@dataclass(frozen=True)
class Moments:
    """What a closed form needs of (isl, osl) pairs."""

    isl: float
    """Mean prompt."""
    osl: float
    """Mean answer."""
    long_isl: float
    """Mean prompt that a prompt's token stands in: E[isl²] / E[isl]."""
    past: float
    """Mean tokens cached of a decoding sequence: E[osl·(isl + osl/2)] / E[osl]."""
    grown: float
    """Mean tokens it may grow to: E[osl·(isl + osl)] / E[osl]."""


class QuantileLengths(Document):
    """Quantiles of prompts and of answers, straight between them; the two are independent."""

    kind: Literal["quantiles"]
    isl: Annotated[dict[Level, Tokens], Field(min_length=2)]
    """Level (0.5: the median) to tokens."""
    osl: Annotated[dict[Level, Tokens], Field(min_length=2)]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for name in ("isl", "osl"):
            found = [tokens for _, tokens in sorted(getattr(self, name).items())]
            if found != sorted(found):
                raise ValueError(f"quantiles of {name} must not fall with their level")
        return self

    def moments(self) -> Moments:
        """Moments of the distribution."""
        isl, osl = (self._spread_out(of) for of in (self.isl, self.osl))
        mean, answers = float(isl.mean()), float(osl.mean())
        biased = float((osl**2).mean()) / answers
        return Moments(mean, answers, float((isl**2).mean()) / mean, mean + biased / 2,
                       mean + biased)  # fmt: skip

    def _spread_out(self, quantiles: dict[float, int]) -> Array:
        levels = np.array(sorted(quantiles))
        tokens = np.array([quantiles[level] for level in levels], dtype=np.float64)
        return np.interp((np.arange(POINTS) + 0.5) / POINTS, levels, tokens)


class PairLengths(Document):
    """Equally likely (isl, osl) pairs, as a trace has them."""

    kind: Literal["pairs"]
    pairs: Annotated[tuple[tuple[Tokens, Tokens], ...], Field(min_length=1, max_length=100_000)]

    def moments(self) -> Moments:
        """Moments of the pairs."""
        return pair_moments(self.pairs)


class SummaryLengths(Document):
    """Means, spreads and correlation, as a trace is summed up."""

    kind: Literal["summary"]
    isl_tokens: Mean
    osl_tokens: Mean
    isl_variation_ratio: Variation = 0.0
    """Standard deviation over mean."""
    osl_variation_ratio: Variation = 0.0
    correlation_ratio: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Between the two lengths."""

    def moments(self) -> Moments:
        """Moments of the summary; exact, whatever the shape."""
        isl, osl = self.isl_tokens, self.osl_tokens
        biased = osl * (1 + self.osl_variation_ratio**2)
        together = self.correlation_ratio * self.isl_variation_ratio * self.osl_variation_ratio
        met = isl * (1 + together)
        return Moments(isl, osl, isl * (1 + self.isl_variation_ratio**2), met + biased / 2,
                       met + biased)  # fmt: skip


Lengths = Annotated[QuantileLengths | PairLengths | SummaryLengths, Field(discriminator="kind")]


def pair_moments(pairs: Sequence[tuple[int, int]]) -> Moments:
    """Moments of (isl, osl) pairs."""
    isl, osl = np.array(pairs, dtype=np.float64).T
    mean, answers = float(isl.mean()), float(osl.mean())
    weight: Array = osl / osl.sum()
    past, grown = (float((weight * (isl + osl / part)).sum()) for part in (2, 1))
    return Moments(mean, answers, float((isl**2).mean()) / mean, past, grown)


def summed_up(pairs: Sequence[tuple[int, int]]) -> dict[str, float | str]:
    """A trace as the plain data of a `SummaryLengths`."""
    isl, osl = np.array(pairs, dtype=np.float64).T
    both = float(((isl - isl.mean()) * (osl - osl.mean())).mean())
    deviations = float(isl.std() * osl.std())
    return {
        "kind": "summary", "isl_tokens": float(isl.mean()), "osl_tokens": float(osl.mean()),
        "isl_variation_ratio": float(isl.std() / isl.mean()),
        "osl_variation_ratio": float(osl.std() / osl.mean()),
        "correlation_ratio": float(np.clip(both / deviations, -1, 1)) if deviations else 0.0,
    }  # fmt: skip


def alike(isl: float, osl: float) -> Moments:
    """Moments where all requests have the same lengths."""
    return Moments(isl, osl, isl, isl + osl / 2, isl + osl)


def with_means(data: object) -> object:
    """Fill in `isl` and `osl` of a question that gives `lengths`.

    Raises:
        ValueError: where it gives other means besides.
    """
    if not isinstance(data, dict) or data.get("lengths") is None:
        return data
    lengths = _LengthsOf.model_validate({"lengths": data["lengths"]}).lengths
    found = lengths.moments()
    means = {"isl": max(round(found.isl), 1), "osl": max(round(found.osl), 1)}
    for name, mean in means.items():
        if data.get(name) not in (None, mean):
            raise ValueError(f"{name} {data[name]} beside lengths of mean {mean}: give one of them")
    return data | means


class _LengthsOf(Document):
    """Reads a distribution alone."""

    lengths: Lengths
