"""The shipped run of a CPU: its rows go round, its page is not stale, its profile is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.calibration.cpu_page import SHIPPED, page, read_environment_of, read_rows, take_in
from hwprofiles.calibration.local import local_cluster
from hwprofiles.calibration.measurement import Journal
from hwprofiles.device import Device
from hwprofiles.document import parse_as
from hwprofiles.efficiency import Curves
from hwprofiles.files import read_document

ROOT = Path(__file__).parents[3]
FAMILIES = {
    "gemm", "grouped_gemm", "router", "attention_prefill", "attention_decode", "mla_prefill",
    "mla_decode", "elementwise", "copy", "all_reduce", "all_gather", "reduce_scatter",
    "all_to_all",
}  # fmt: skip


def test_every_family_was_measured_and_says_how() -> None:
    rows, known = read_rows(), read_environment_of()
    assert set(rows["kernel"]) == FAMILIES
    assert set(rows["dtype"].drop_nulls()) == {"fp32", "bf16", "w8a16", "w4a16"}
    assert set(rows.filter(rows["kernel"] == "copy")["tier"]) == {"dram", "ssd"}
    assert {2.0, 3.0, 4.0} <= set(rows["devices"].drop_nulls())
    assert rows["active_experts"].n_unique() > 2
    quiet = rows.filter(~rows["disturbed"])
    assert quiet.height > 390
    assert (quiet["min_s"] <= quiet["median_s"]).all()
    stolen = quiet.filter(quiet["steal_ratio"] > 0.05)  # of all windows, dropped ones included
    assert (stolen["dropped_count"] > 0).all()
    assert known.processor
    assert known.libraries["torch"]
    assert known.clock_hz


@pytest.mark.slow
def test_the_page_is_written_from_the_evidence() -> None:
    assert (ROOT / "docs" / "cpu-run.md").read_text(encoding="utf-8") == page()


def test_the_shipped_device_is_what_the_rows_say() -> None:
    stored = parse_as(Device, read_document(SHIPPED / "device.yaml"))
    made = local_cluster(read_environment_of(), read_rows().to_dicts())
    assert made.devices_per_node == 4
    for name in ("fp32", "bf16"):
        assert stored.peak(name) == pytest.approx(made.device.peak(name), rel=1e-4)
    assert [tier.name for tier in stored.memory] == ["dram", "ssd"]
    curves = parse_as(Curves, read_document(SHIPPED / "profile-fp32.yaml"))
    assert set(curves.families) == FAMILIES


def test_a_run_is_taken_in(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    journal = Journal(run / "measurements.jsonl")
    rows = [
        {key: value for key, value in row.items() if value is not None}
        for row in read_rows().head(5).to_dicts()
    ]
    for row in rows:
        journal.append(row)
    for path in SHIPPED.iterdir():
        if path.suffix != ".csv":
            (run / path.name).write_text(path.read_text())
    take_in(run, tmp_path / "taken")
    assert read_rows(tmp_path / "taken").equals(read_rows().head(5))
    assert read_environment_of(tmp_path / "taken") == read_environment_of()
