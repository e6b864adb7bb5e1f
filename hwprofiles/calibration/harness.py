"""Measures kernel rows: warm up, repeat until the median stands, drop what was disturbed."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprofiles.calibration.load_watch import Load, LoadWatch
from hwprofiles.calibration.measurement import Journal, row_id
from hwprofiles.calibration.runners.base import Prepared, Runner
from hwprofiles.errors import MoesaicError


@dataclass(frozen=True)
class Limits:
    """When a row is measured well enough, and what counts as disturbed."""

    warm_up_s: float = 0.05
    row_s: float = 1.5
    """Longest time a row may take; a noisy machine gets fewer samples, never more time."""
    least_count: int = 7
    most_count: int = 200
    steady_ratio: float = 0.02
    """Half-width of the median's 95 % interval over the median at which repeating ends."""
    steal_ratio: float = 0.02
    foreign_ratio: float = 0.10


@dataclass
class Samples:
    """Times of one row; windows in which somebody else ran are counted and left out."""

    kept_s: list[float] = field(default_factory=list)
    upset_s: list[float] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    def steady(self, limits: Limits) -> bool:
        """Whether the median is known closely enough."""
        count = len(self.kept_s)
        if count < limits.least_count:
            return False
        return count >= limits.most_count or _half_width(self.kept_s) <= limits.steady_ratio


def _half_width(times: Sequence[float]) -> float:
    """Half of the 95 % interval of the median by order statistics, over the median."""
    ordered, count = sorted(times), len(times)
    reach = 0.98 * count**0.5  # 1.96 · sqrt(n) / 2 ranks, David and Nagaraja, Order Statistics
    low = ordered[max(0, int(count / 2 - reach))]
    high = ordered[min(count - 1, int(np.ceil(count / 2 + reach)))]
    return (high - low) / 2 / float(np.median(ordered))


@dataclass(frozen=True)
class Outcome:
    """What a calibration run did."""

    measured_count: int
    resumed_count: int
    disturbed_count: int
    refused: list[dict[str, str]]
    """Rows that could not be run, each with the reason."""

    def beside(self, other: Outcome) -> Outcome:
        """Both runs as one."""
        return Outcome(
            self.measured_count + other.measured_count,
            self.resumed_count + other.resumed_count,
            self.disturbed_count + other.disturbed_count,
            self.refused + other.refused,
        )


@dataclass(frozen=True)
class Harness:
    """A runner, the journal it fills and the limits it works under."""

    runner: Runner
    journal: Journal
    device: str
    limits: Limits = Limits()
    watch: LoadWatch = field(default_factory=LoadWatch)

    def measure_all(
        self,
        rows: Iterable[Mapping[str, Any]],
        progress: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> Outcome:
        """Measure every row that the journal does not hold yet from this very environment.

        Each finished row is on disk before the next begins; disturbed rows are tried again.
        """
        environment = self.runner.environment().digest()
        done = {
            row["id"]
            for row in self.journal.read()
            if row.get("environment") == environment and not row.get("disturbed")
        }
        counts = {"measured": 0, "resumed": 0, "disturbed": 0}
        refused = []
        for row in rows:
            if row_id(self.device, self.runner.name, row) in done:
                counts["resumed"] += 1
                continue
            try:
                record = self.measure(row) | {"environment": environment}
            except (MoesaicError, MemoryError) as error:
                refused.append({"kernel": str(row.get("kernel")), "reason": str(error)})
                continue
            self.journal.append(record)
            counts["measured"] += 1
            counts["disturbed"] += bool(record["disturbed"])
            progress(record)
        return Outcome(counts["measured"], counts["resumed"], counts["disturbed"], refused)

    def measure(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Measure one row; its record says how many samples were kept and dropped."""
        prepared = self.runner.prepare(row)
        try:
            self._warm_up(prepared)
            samples = self._collect(prepared)
        finally:
            self.runner.synchronise()
            if prepared.close is not None:
                prepared.close()
        return self._record(row, samples)

    def _warm_up(self, prepared: Prepared) -> None:
        end = time.perf_counter() + self.limits.warm_up_s
        self.runner.sample(prepared)
        while time.perf_counter() < end:
            self.runner.sample(prepared)

    def _collect(self, prepared: Prepared) -> Samples:
        samples = Samples()
        end = time.perf_counter() + self.limits.row_s
        while not samples.steady(self.limits):
            before, window = self.watch.now(), []
            while True:
                window.append(self.runner.sample(prepared))
                after = time.perf_counter()
                enough = after - before.wall_s >= LoadWatch.RESOLUTION_S
                if enough or len(samples.kept_s) + len(window) >= self.limits.most_count:
                    break
            load = self.watch.between(before, self.watch.now())
            samples.loads.append(load)
            quiet = (
                load.steal_ratio <= self.limits.steal_ratio
                and load.foreign_ratio <= self.limits.foreign_ratio
            )
            (samples.kept_s if quiet else samples.upset_s).extend(window)
            if time.perf_counter() >= end:
                break
        return samples

    def _record(self, row: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
        disturbed = not samples.kept_s
        times = np.array(samples.upset_s if disturbed else samples.kept_s)
        low, median, high = np.quantile(times, (0.1, 0.5, 0.9))
        return {
            "id": row_id(self.device, self.runner.name, row),
            "device": self.device,
            "backend": self.runner.name,
            "backend_version": self.runner.version,
            **{key: value for key, value in row.items() if value is not None},
            "median_s": float(median),
            "min_s": float(times.min()),
            "spread_ratio": float((high - low) / median) if median > 0 else 0.0,
            "samples_count": float(times.size),
            "dropped_count": float(0 if disturbed else len(samples.upset_s)),
            "steal_ratio": float(np.mean([load.steal_ratio for load in samples.loads])),
            "foreign_ratio": float(np.mean([load.foreign_ratio for load in samples.loads])),
            "disturbed": disturbed,
            "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": "measured on this machine",
        }
