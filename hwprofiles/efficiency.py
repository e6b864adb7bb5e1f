"""The share of a peak that a kernel family reaches, as low, typical and high, with its source."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document, parse_as
from hwprofiles.errors import unknown_name
from hwprofiles.files import read_document
from hwprofiles.kernels import COLLECTIVES, EXCHANGES, KERNELS
from hwprofiles.sourced import Certainty
from hwprofiles.units import Hertz, Ratio, Seconds

FOLDER = Path(__file__).parent / "curves"


class Band(Document):
    """A ratio as its 10th, 50th and 90th percentile; `low` is the slow side."""

    low: Ratio
    typical: Ratio
    high: Ratio

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.low <= self.typical <= self.high:
            raise ValueError(f"needs 0 < low <= typical <= high, not {self.model_dump()}")
        return self


class EfficiencyCurve(Document):
    """Achieved shares of one kernel family; a ratio over 1 is never reached by a real kernel."""

    compute: Band
    memory: Band
    link: Band | None = None
    """Share of the link tier's bandwidth, for collectives and exchanges."""
    fixed_s: Seconds
    """Launch or call cost of one kernel, at the typical value."""
    token_s: Seconds = 0.0
    """Exchanges: what a token of a rank takes besides its bytes on the link, such as copies.
    Collectives: what each other rank adds, where ranks take turns on shared cores."""
    half_rows: Annotated[float, Field(ge=0)] = 0.0  # unit: rows of the left operand
    """Rows (tokens) at which arithmetic reaches half its ceiling."""
    time: Band | None = None
    """Held-out seconds over predicted ones. Where stated, low and high seconds are these parts of
    the typical ones, fixed cost included; bands of shares leave that cost without an interval."""


class ClockBand(Document):
    """A clock as the slowest, the middle and the fastest of several placements."""

    low_hz: Hertz
    typical_hz: Hertz
    high_hz: Hertz

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.low_hz <= self.typical_hz <= self.high_hz:
            raise ValueError(f"needs 0 < low <= typical <= high, not {self.model_dump()}")
        return self


class MacArray(Document):
    """An output-stationary array of multiply-accumulate cells that runs one tile after the other.

    A call takes `load` + tiles x (inner width + `fill_cycles_count`) + `call_cycles_count` cycles,
    where loading takes one cycle a word of the side with more words.
    """

    size_count: Annotated[int, Field(ge=1)]
    """Cells along each side; a tile is this many rows by this many columns."""
    fill_cycles_count: Annotated[float, Field(ge=0)]
    call_cycles_count: Annotated[float, Field(ge=0)]
    words_count: Annotated[int, Field(ge=1)]
    """Words that each side's operand memory holds; a tile takes one for each inner step."""
    tiles_count: Annotated[int, Field(ge=1)]
    """Most tiles along one side of a call."""
    clock: ClockBand


class Curves(Document):
    """The curves of one kind of machine."""

    schema_version: Literal[1] = 1
    name: str
    source: Annotated[str, Field(min_length=8)]
    date: datetime.date
    certainty: Certainty
    base: str | None = None
    """Set whose families stand where this one has none."""
    memory: Band | None = None
    """Share of memory bandwidth in every family, where whole passes were measured, not kernels."""
    families: dict[str, EfficiencyCurve]
    libraries: dict[str, dict[str, EfficiencyCurve]] = Field(default_factory=dict)
    """Curves of one library's collectives or exchanges, where a question names that library."""
    assumed: frozenset[str] = frozenset()
    """Families taken over from an assumed base as they are; loading fills this in."""
    array: MacArray | None = None
    """Set where products are priced by the cycles of an array instead of shares of a peak."""

    @model_validator(mode="after")
    def _families_known(self) -> Self:
        named = [set(curves) for curves in self.libraries.values()]
        unknown = set(self.families).union(*named) - set(KERNELS)
        if unknown:
            raise ValueError(f"no kernel families {sorted(unknown)}")
        return self


@cache
def load_curves(name: str) -> Curves:
    """Load a set of curves by name, with what it takes over from its base.

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise unknown_name("curve set", name, (p.stem for p in FOLDER.glob("*.yaml")))
    own = parse_as(Curves, read_document(path), what=f"curves/{name}.yaml")
    return own if own.base is None else _on_base(own, load_curves(own.base))


def _on_base(own: Curves, base: Curves) -> Curves:
    inherited = {
        name: curve
        if own.memory is None or name in (*COLLECTIVES, *EXCHANGES)
        else curve.model_copy(update={"memory": own.memory})
        for name, curve in base.families.items()
    }
    families = inherited | own.families
    unsure = set(base.families) if base.certainty == "assumed" else base.assumed
    same = {name for name in unsure if families[name] == base.families[name]}
    return own.model_copy(update={"families": families, "assumed": frozenset(same)})
