"""The harness: steady medians, disturbed samples, resuming after a kill, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.harness import Harness, Limits
from hwprofiles.calibration.load_watch import Load, LoadWatch, Moment
from hwprofiles.calibration.measurement import Journal, measurement_table, row_id
from hwprofiles.calibration.runners.base import Prepared, Row, cannot, expert_split, token_split
from hwprofiles.calibration.runners.recorded import Recorded
from hwprofiles.errors import MoesaicError
from tests.hwprofiles.calibration.place import PLACE

ROWS: list[dict[str, Any]] = [
    {"kernel": "gemm", "m": m, "n": 64, "k": 64, "dtype": "fp32"} for m in (1, 2, 4)
]
QUICK = Limits(warm_up_s=0.0, row_s=5.0)


class Quiet(LoadWatch):
    """Sees the loads it is told; every window counts as long enough."""

    RESOLUTION_S = 0.0

    def __init__(self, *loads: Load) -> None:
        super().__init__()
        self.loads = list(loads)

    def now(self) -> Moment:
        return Moment(-1e9, 0, 0, 0)

    def between(self, before: Moment, after: Moment) -> Load:
        assert before.wall_s <= after.wall_s
        return self.loads.pop(0) if self.loads else Load(0.0, 0.0)


class Fake:
    """A runner whose times are made up."""

    name, version, families = "fake", "1", frozenset({"gemm"})
    tiers: tuple[str | None, ...] = ()

    def __init__(self, seconds: Callable[[int], float], kill_at: int | None = None) -> None:
        self.seconds, self.kill_at = seconds, kill_at
        self.calls = self.prepared = self.closed = 0

    def environment(self) -> Environment:
        return PLACE

    def prepare(self, row: Row) -> Prepared:
        self.prepared += 1
        if self.prepared == self.kill_at:
            raise KeyboardInterrupt
        if row["m"] == 999:
            raise cannot("fake", "this")
        return Prepared(lambda: None, close=self._close)

    def _close(self) -> None:
        self.closed += 1

    def sample(self, prepared: Prepared) -> float:
        prepared.run()
        self.calls += 1
        return self.seconds(self.calls)

    def synchronise(self) -> None:
        pass


def test_a_steady_row_ends_at_the_least_count(tmp_path: Path) -> None:
    runner = Fake(lambda _: 1e-3)
    record = Harness(runner, Journal(tmp_path / "j"), "box", QUICK, Quiet()).measure(ROWS[0])
    assert record["median_s"] == record["min_s"] == 1e-3
    assert record["samples_count"] == QUICK.least_count
    assert record["disturbed"] is False
    assert runner.closed == 1


def test_a_restless_row_takes_more_samples(tmp_path: Path) -> None:
    runner = Fake(lambda n: 1e-3 * (1 + 0.3 * (n % 2)))
    record = Harness(runner, Journal(tmp_path / "j"), "box", QUICK, Quiet()).measure(ROWS[0])
    assert record["samples_count"] > QUICK.least_count
    assert record["min_s"] == 1e-3
    assert record["spread_ratio"] > 0.2


@pytest.mark.parametrize("load", [Load(0.5, 0.0), Load(0.0, 0.8)])
def test_samples_beside_other_load_are_dropped(tmp_path: Path, load: Load) -> None:
    runner = Fake(lambda n: 80e-3 if n <= 4 else 1e-3)
    watch = Quiet(load, load, load)
    record = Harness(runner, Journal(tmp_path / "j"), "box", QUICK, watch).measure(ROWS[0])
    assert record["dropped_count"] == 3
    assert record["median_s"] == 1e-3


def test_a_row_that_never_had_quiet_is_kept_apart_and_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    loud = Limits(warm_up_s=0.0, row_s=0.0)
    first = Harness(Fake(lambda _: 1.0), journal, "box", loud, Quiet(Load(0.9, 0)))
    assert first.measure_all(ROWS[:1]).disturbed_count == 1
    second = Harness(Fake(lambda _: 2.0), journal, "box", QUICK, Quiet())
    outcome = second.measure_all(ROWS[:1])
    assert (outcome.measured_count, outcome.resumed_count) == (1, 0)
    (row,) = journal.read()
    assert row["median_s"] == 2.0


def test_a_killed_run_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(KeyboardInterrupt):
        Harness(Fake(lambda _: 1e-3, kill_at=3), journal, "box", QUICK, Quiet()).measure_all(ROWS)
    assert len(journal.read()) == 2
    with journal.path.open("a") as stream:
        stream.write('{"id": "torn')
    outcome = Harness(Fake(lambda _: 1e-3), journal, "box", QUICK, Quiet()).measure_all(ROWS)
    assert (outcome.measured_count, outcome.resumed_count) == (1, 2)
    assert [row["m"] for row in journal.read()] == [1, 2, 4]
    assert all(json.loads(line) for line in journal.path.read_text().splitlines())


def test_another_environment_is_measured_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    Harness(Fake(lambda _: 1e-3), journal, "box", QUICK, Quiet()).measure_all(ROWS)
    other = Fake(lambda _: 1e-3)
    other.environment = lambda: PLACE.model_copy(update={"driver": "new"})  # type: ignore[method-assign]
    assert Harness(other, journal, "box", QUICK, Quiet()).measure_all(ROWS).measured_count == 3


def test_what_cannot_run_is_listed_and_the_run_goes_on(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "m": 999}, ROWS[1]]
    harness = Harness(Fake(lambda _: 1e-3), Journal(tmp_path / "j"), "box", QUICK, Quiet())
    outcome = harness.measure_all(rows)
    assert outcome.measured_count == 1
    assert "cannot run" in outcome.refused[0]["reason"]


def test_a_malformed_journal_is_told_by_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.path.write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(MoesaicError, match="line 2"):
        journal.read()
    journal.path.write_text("[1]\n")
    with pytest.raises(MoesaicError, match="no id"):
        journal.read()


def test_a_torn_first_line_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.path.write_text("x" * 10_000)
    journal.append({"id": "a", "median_s": 1.0})
    assert journal.read() == [{"id": "a", "median_s": 1.0}]


def test_recorded_replays(tmp_path: Path) -> None:
    rows = [{**row, "median_s": 0.5 + row["m"], "backend_version": "9"} for row in ROWS]
    runner = Recorded(rows, PLACE)
    harness = Harness(runner, Journal(tmp_path / "j"), "box", QUICK, Quiet())
    outcome = harness.measure_all([*ROWS, {**ROWS[0], "m": 7}])
    assert outcome.measured_count == 3
    assert [row["median_s"] for row in harness.journal.read()] == [1.5, 2.5, 4.5]
    assert outcome.refused


def test_ids_name_sizes_not_order() -> None:
    one = {"kernel": "gemm", "m": 1, "n": 2, "k": 3, "dtype": "fp32"}
    other = {"dtype": "fp32", "k": 3.0, "n": 2.0, "m": 1.0, "kernel": "gemm", "batch": None}
    assert row_id("d", "b", one) == row_id("d", "b", {k: float(v) if isinstance(v, int) else v
                                                      for k, v in one.items()})  # fmt: skip
    assert row_id("d", "b", one) == row_id("d", "b", other)
    assert row_id("d", "b", one) != row_id("e", "b", one)
    with pytest.raises(MoesaicError, match="no fields"):
        measurement_table([{"id": "a", "speed": 3}])


def test_expert_splits() -> None:
    row = {"kernel": "grouped_gemm", "tokens": 8, "top_k": 2, "experts": 16, "moe_ep": 4}
    assert expert_split(row) == (4, [1, 1, 1, 1])
    assert expert_split({**row, "busy_ratio": 2.0, "active_experts": 2}) == (4, [4, 4])
    assert expert_split({**row, "tokens": 1, "moe_ep": 1}) == (16, [1, 1])
    assert sum(token_split(17, 5)) == 17


def test_load_watch_sees_own_work_as_its_own() -> None:
    watch = LoadWatch()
    before = Moment(0.0, 10.0, 1.0, 5.0)
    cores = len(watch.cores)
    own = watch.between(before, Moment(1.0, 10.0 + cores, 1.0, 5.0 + cores))
    assert own.foreign_ratio == 0
    other = watch.between(before, Moment(1.0, 10.0 + cores, 1.0 + 0.5 * cores, 5.0))
    assert other.foreign_ratio > 0.9
    assert other.steal_ratio == pytest.approx(0.5)
    now = watch.now()
    assert now.busy_s >= 0
    assert now.own_s > 0
