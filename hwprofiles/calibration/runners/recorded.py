"""Replays measured times from a journal: harness and fit are tested without the hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.measurement import row_id
from hwprofiles.calibration.runners.base import Prepared, Row, cannot


class Recorded:
    """Answers each kernel row with the seconds somebody measured elsewhere."""

    name = "recorded"

    def __init__(self, rows: Iterable[Mapping[str, Any]], environment: Environment) -> None:
        self.times: dict[str, float] = {}
        version = "unknown"
        for row in rows:
            self.times[row_id("", "", row)] = float(row["median_s"])
            version = str(row.get("backend_version") or version)
        self.version = version
        self.families = frozenset(str(row["kernel"]) for row in rows)
        copies = [row.get("tier") for row in rows if row["kernel"] == "copy"]
        self.tiers = tuple(dict.fromkeys(tier for tier in copies if tier != "ssd"))
        self._environment = environment
        self._next_s = 0.0

    def environment(self) -> Environment:
        """The fingerprint that was recorded with the times."""
        return self._environment

    def prepare(self, row: Row) -> Prepared:
        """Look the row up."""
        key = row_id("", "", row)
        if key not in self.times:
            raise cannot("recorded", f"this {row.get('kernel')}: it is not in the recording")
        seconds = self.times[key]
        return Prepared(lambda: seconds)

    def sample(self, prepared: Prepared) -> float:
        """The recorded seconds."""
        return float(str(prepared.run()))

    def synchronise(self) -> None:
        """Nothing runs."""
