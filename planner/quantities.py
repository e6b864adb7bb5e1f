"""What every answer is made of: estimates with intervals, and shares of a pass."""

from __future__ import annotations

from typing import Literal

from hwprofiles.document import Document

Source = Literal["measured", "simulated", "calibrated", "modelled", "assumed"]


class Estimate(Document):
    """A predicted quantity; `low` to `high` is meant to hold the truth eight times in ten."""

    typical: float  # unit: the field that holds the estimate names it
    low: float  # unit: as typical
    high: float  # unit: as typical
    source: Source

    def times(self, factor: float) -> Estimate:
        """Every side times a factor."""
        sides = {side: getattr(self, side) * factor for side in ("low", "typical", "high")}
        return Estimate.model_construct(**sides, source=self.source)


class StageShare(Document):
    """The part of one forward pass that one stage takes."""

    stage: str
    seconds_s: float
    share_ratio: float
    bound_by: str
    source: Source
