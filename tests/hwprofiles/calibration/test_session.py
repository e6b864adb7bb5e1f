"""A whole calibration replayed from recorded rows: report, files, profile, command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from api.commands.calibrate import command, report_table
from hwprofiles.calibration import runners
from hwprofiles.calibration.cases import cases
from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.harness import Limits
from hwprofiles.calibration.local import local_cluster
from hwprofiles.calibration.measured_tables import write_measured
from hwprofiles.calibration.measurement import Journal, measurement_table
from hwprofiles.calibration.runners import choose, torch_cuda, torch_npu
from hwprofiles.calibration.runners.numpy_cpu import NumpyCpu
from hwprofiles.calibration.runners.recorded import Recorded
from hwprofiles.calibration.session import CalibrationReport, Plan, run_calibration
from hwprofiles.document import parse_as
from hwprofiles.efficiency import Curves
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from hwprofiles.timing import profile as profiles
from hwprofiles.timing import time_kernels

RECORDED = Path(__file__).parent / "recorded_numpy.jsonl"
"""206 quiet rows of NumPy 2.4.6 (OpenBLAS 0.3.31) on two cores of an AMD EPYC virtual machine,
2026-11-24; measured by this harness, rows with steal or other load left out."""
RECORDED_ON = Environment(
    processor="AMD EPYC",
    architecture="x86_64",
    cores_count=2,
    memory_bytes=25276063744.0,
    last_level_cache_bytes=2.0**25,
    operating_system="Linux",
    python="3.11.7",
    libraries={"numpy": "2.4.6", "blas": "scipy-openblas 0.3.31"},
)


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CalibrationReport, Path]:
    """A calibration whose times come from the recording and never from this machine's load."""
    monkeypatch.setattr("hwprofiles.calibration.harness.LoadWatch.RESOLUTION_S", 0.0)
    monkeypatch.setattr("hwprofiles.calibration.load_watch.LoadWatch._ticks", lambda _: (0, 0))
    monkeypatch.setattr("hwprofiles.calibration.session.available_bytes", lambda: 2.0**34)
    plan = Plan(("fp32", "q8_0", "q4_0"), limits=Limits(warm_up_s=0.0, row_s=0.5))
    return run_calibration(
        Recorded(recorded(), RECORDED_ON), tmp_path / "out", plan
    ), tmp_path / "out"


def test_a_replayed_calibration_writes_everything(
    report: tuple[CalibrationReport, Path],
) -> None:
    answer, folder = report
    assert answer.measured_count > 150
    assert not answer.quarantined
    names = {path.name for path in folder.iterdir()}
    assert {"device.yaml", "environment.json", "measurements.jsonl", "profile-fp32.yaml",
            "quarantine.jsonl", "report.json"} <= names  # fmt: skip
    curves = parse_as(Curves, read_document(folder / "profile-fp32.yaml"))
    assert curves.certainty == "measured"
    assert {"gemm", "copy", "attention_decode"} <= set(curves.families)
    again = parse_as(CalibrationReport, json.loads((folder / "report.json").read_text()))
    assert again == answer
    table = report_table(answer)
    assert "gemm" in table
    assert "median error" in table


def test_held_out_error_of_the_recorded_machine(report: tuple[CalibrationReport, Path]) -> None:
    """What the curves reach on shapes they have not seen; one curve a family is all they are."""
    errors = {
        fit.family: fit.error_median_ratio
        for fit in report[0].families
        if fit.dtype in {"", "fp32"}
    }
    assert errors["copy"] < 0.1
    assert errors["elementwise"] < 0.1
    assert errors["gemm"] < 0.15
    assert errors["attention_prefill"] < 0.2


def test_a_profile_of_tables_prices_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measurement_table([row | {"disturbed": False} for row in recorded()])
    machine = local_cluster(RECORDED_ON, recorded())
    shutil.copy(profiles.FOLDER / "relatives.yaml", tmp_path)
    card = write_measured(tmp_path, rows, machine, "numpy")
    assert card is not None
    assert card.name == "local-amd-epyc.numpy.json"
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    for cached in (profiles.load_profile, profiles.find):
        cached.cache_clear()
    gemms = rows.filter((rows["kernel"] == "gemm") & (rows["dtype"] == "fp32"))
    timed = time_kernels(gemms, machine, "numpy")
    for cached in (profiles.load_profile, profiles.find):
        cached.cache_clear()
    assert "measured" in set(timed["source"]) <= {"measured", "calibrated"}
    errors = (timed["typical_s"] / timed["median_s"] - 1).abs()
    assert float(str(errors.max())) < 0.02


def test_a_second_run_finds_everything_done(report: tuple[CalibrationReport, Path]) -> None:
    answer, folder = report
    plan = Plan(("fp32", "q8_0", "q4_0"), limits=Limits(warm_up_s=0.0, row_s=0.5))
    again = run_calibration(Recorded(recorded(), RECORDED_ON), folder, plan)
    assert (again.measured_count, again.resumed_count) == (0, answer.measured_count)


@pytest.mark.parametrize("form", ["fp32", "q8_0", "q4_0"])
def test_numpy_runs_every_case(tmp_path: Path, form: str) -> None:
    runner = NumpyCpu(tmp_path)
    runner.trash = runner.trash[:1024]
    rows = cases(runner.families, (form,), room_bytes=3e6)
    rows += [{"kernel": "copy", "tier": "ssd", "bytes": 2.0**16}]
    seen = set()
    for row in rows:
        if row["kernel"] not in {"gemm", "grouped_gemm"} and form != "fp32":
            continue
        if (row["kernel"], row.get("tier")) in seen:
            continue
        seen.add((row["kernel"], row.get("tier")))
        prepared = runner.prepare(row)
        assert runner.sample(prepared) > 0
        if prepared.close is not None:
            prepared.close()
    assert len(seen) >= 1


@pytest.mark.parametrize(
    "row",
    [
        {"kernel": "gemm", "m": 8, "n": 32, "k": 32, "dtype": "fp8"},
        {"kernel": "all_reduce", "devices": 2, "message_bytes": 8},
        {"kernel": "copy", "tier": "hbm", "bytes": 8},
        {"kernel": "gemm", "m": 8, "n": 32, "dtype": "fp32"},
    ],
)
def test_numpy_says_what_it_cannot(row: dict[str, Any]) -> None:
    with pytest.raises(MoesaicError, match=r"cannot run|needs k"):
        NumpyCpu().prepare(row)


def test_a_missing_runner_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda.importlib.util, "find_spec", lambda _: None)
    assert torch_npu.unusable() == "torch is not installed"
    with pytest.raises(MoesaicError, match="torch is not installed"):
        choose("auto", "torch-cuda", tmp_path)
    runner, cluster, forms = choose("auto", "auto", tmp_path)
    assert (runner.name, cluster, forms[0]) == ("numpy", None, "fp32")
    with pytest.raises(MoesaicError, match="did you mean"):
        choose("h1000", "numpy", tmp_path)


def test_the_probe_runs_elsewhere_and_brings_the_reason() -> None:
    assert torch_cuda.probe("pass") is None
    assert "boom" in str(torch_cuda.probe("raise SystemExit('boom')"))
    told = "import os, sys; sys.exit(os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] != '0')"
    assert torch_cuda.probe(told) is None


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(*_: object) -> tuple[object, None, tuple[str, ...]]:
        return Recorded(recorded(), RECORDED_ON), None, ("fp32",)

    monkeypatch.setattr(runners, "choose", quiet)
    monkeypatch.setattr("hwprofiles.calibration.harness.LoadWatch.RESOLUTION_S", 0.0)
    arguments = ["--out", str(tmp_path / "out"), "--keep-disturbed", "--quiet",
                 "--family", "gemm", "--family", "elementwise", "-o", "json"]  # fmt: skip
    monkeypatch.setattr("hwprofiles.calibration.session.Limits", lambda **_: Limits(warm_up_s=0.0))
    run = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    answer = json.loads(run.stdout)
    assert {fit["family"] for fit in answer["families"]} == {"gemm", "elementwise"}
    with pytest.raises(MoesaicError, match="no kernel family of the recorded runner 'gem'"):
        CliRunner().invoke(command, ["--out", str(tmp_path), "--family", "gem"],
                           catch_exceptions=False)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "aiconfigurator"], "needs --system"),
        (["--import", "none.txt"], "needs --device"),
        (["--import", "none.txt", "--device", "h100-sxm"], "No such file"),
    ],
)
def test_bad_questions(tmp_path: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(MoesaicError, match=says):
        CliRunner().invoke(command, ["--out", str(tmp_path / "out"), *arguments],
                           catch_exceptions=False)  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ask", [
    ["--runner", "numpy", "--family", "gemm", "--quick"],
    ["--device", "h100-sxm", "--import", str(RECORDED)],
])  # fmt: skip
def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path, ask: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    found = CliRunner().invoke(command, [*ask, "--out", str(tmp_path / "file" / "x"), "--quiet"])
    assert isinstance(found.exception, MoesaicError)
    assert found.exception.kind in {"internal", "invalid"}
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_journal_of_the_recording_reads(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    for number, row in enumerate(recorded()[:3]):
        journal.append(row | {"id": str(number)})
    assert len(journal.read()) == 3
