"""How far measured training steps lie from the closed form: one fitted table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwprofiles.document import Document, parse_as
from hwprofiles.files import read_document
from hwprofiles.kernels import dtype
from planner.quantities import Estimate

COVERED = 0.8
Floats = npt.NDArray[np.float64]
TABLE = Path(__file__).with_suffix(".yaml")


class Factor(Document):
    """Measured over modelled step time: the middle, and the range that holds eight in ten."""

    low_ratio: float
    typical_ratio: float
    high_ratio: float
    rows_count: int
    source: str
    date: str

    def applied(self, seconds: dict[str, float]) -> Estimate:
        """Scale a closed-form step; the interval is the measured one around the typical step."""
        typical = seconds["typical"]
        return Estimate(
            low=min(typical * self.low_ratio, typical * self.typical_ratio),
            typical=typical * self.typical_ratio,
            high=typical * self.high_ratio,
            source="calibrated" if self.rows_count else "modelled",
        )

    @property
    def sentence(self) -> str:
        """What was done, for the list of assumptions."""
        return (
            f"step time scaled by {self.typical_ratio:.2f} ({self.low_ratio:.2f} to "
            f"{self.high_ratio:.2f}), fitted on {self.rows_count} published runs"
        )


@cache
def factors() -> dict[str, Factor]:
    """The table: by group, and `other` for what was not measured."""
    return {
        name: parse_as(Factor, entry, what=TABLE.name)
        for name, entry in read_document(TABLE)["factors"].items()
    }


def group_of(precision: str, *, routed: bool) -> str:
    """Name of the group a run belongs to: dense or moe, and its arithmetic."""
    return f"{'moe' if routed else 'dense'}_{dtype(precision).compute}"


def factor_of(precision: str, *, routed: bool) -> Factor:
    """Factor of a model with or without experts in a precision's arithmetic (bf16, fp8, fp4)."""
    known = factors()
    return known.get(group_of(precision, routed=routed), known["other"])


def fitted(ratios: Mapping[str, Sequence[float]], source: str, date: str) -> Factor:
    """Fit one factor: the median of measured over modelled step time, and a range around it.

    The range is that between the 10 % and the 90 % quantile, widened until models left out of
    the fit, one after the other, lie within it eight times in ten.

    Args:
        ratios: by model, modelled tokens a second over measured ones, one a run.
        source: where the runs were printed.
        date: day of the fit.
    """
    every = np.concatenate([np.asarray(values) for values in ratios.values()])
    low, typical, high = (float(np.quantile(every, share)) for share in (0.1, 0.5, 0.9))
    needed = [_widening(held, others) for held, others in _held_out(ratios)]
    wide = float(np.quantile(np.concatenate(needed), COVERED)) if needed else 1.0
    return Factor(
        low_ratio=round(low / wide, 3), typical_ratio=round(typical, 3),
        high_ratio=round(high * wide, 3), rows_count=len(every), source=source, date=date,
    )  # fmt: skip


def _held_out(ratios: Mapping[str, Sequence[float]]) -> Iterator[tuple[Floats, Floats]]:
    """Each model's runs, and those of all others."""
    for model, held in ratios.items():
        others = [np.asarray(v) for name, v in ratios.items() if name != model]
        if others:
            yield np.asarray(held), np.concatenate(others)


def _widening(held: Floats, others: Floats) -> Floats:
    """Factor by which a range of other runs must widen to hold each of these."""
    low, high = np.quantile(others, 0.1), np.quantile(others, 0.9)
    return np.maximum(np.maximum(low / held, held / high), 1.0)
