"""The shipped run of a CPU: its rows go round, its page is not stale, its profile is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.calibration.cpu_page import (
    SHIPPED,
    fitted,
    page,
    read_environment_of,
    read_rows,
    take_in,
)
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


@pytest.mark.slow
def test_curves_hold_on_shapes_left_out() -> None:
    """Products of narrow and packed weights and collectives missed by half and a third once."""
    fits, _, _ = fitted()
    errors = {(fit.family, fit.dtype): fit.error_median_ratio for fit in fits}
    for kernel in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        (error,) = (value for (family, _), value in errors.items() if family == kernel)
        assert error < 0.12
    for kernel in ("gemm", "grouped_gemm"):
        assert errors[kernel, "bf16"] < 0.05
        assert errors[kernel, "w8a16"] < 0.10
        assert errors[kernel, "w4a16"] < 0.25
    held = [fit.coverage_ratio for fit in fits]
    assert 0.75 <= sum(held) / len(held) <= 0.88


def test_the_shipped_device_is_what_the_rows_say() -> None:
    stored = parse_as(Device, read_document(SHIPPED / "device.yaml"))
    made = local_cluster(read_environment_of(), read_rows().to_dicts())
    assert made.devices_per_node == 4
    for name in ("fp32", "bf16"):
        assert stored.peak(name) == pytest.approx(made.device.peak(name), rel=1e-4)
    assert [tier.name for tier in stored.memory] == ["dram", "ssd"]
    (loopback,) = made.tiers
    assert loopback.wiring == "shared"  # four ranks on one core
    assert loopback.rate_bytes_per_s(2) == pytest.approx(2 * loopback.rate_bytes_per_s(4))
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
