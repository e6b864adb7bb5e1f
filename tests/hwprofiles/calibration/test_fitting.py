"""Quarantine and fit: impossible times are set apart, known constants are found again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hwprofiles.calibration.cases import cases
from hwprofiles.calibration.fitting import (
    Constants,
    fit_curves,
    interval,
    part_of,
    shape_folds,
)
from hwprofiles.calibration.local import local_cluster
from hwprofiles.calibration.measurement import measurement_table
from hwprofiles.calibration.quarantine import reasons, split
from hwprofiles.calibration.runners import single
from hwprofiles.cluster import Cluster
from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_cluster
from hwprofiles.timing.rows import Rows
from hwprofiles.timing.rules import COUNTS, timed
from tests.hwprofiles.calibration.place import PLACE

H100 = single("h100-sxm")


def gemm(**changes: Any) -> dict[str, Any]:
    return {
        "id": "x", "kernel": "gemm", "m": 4096, "n": 4096, "k": 4096, "dtype": "bf16",
        "median_s": 2e-4, "min_s": 1.9e-4, "disturbed": False,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"median_s": 0.0, "min_s": 0.0}, "zero or negative"),
        ({"median_s": -1.0, "min_s": -1.0}, "zero or negative"),
        ({"median_s": None}, "no time"),
        ({"median_s": math.nan}, "no time"),
        ({"min_s": 3e-4}, "minimum above"),
        ({"median_s": 1e-4, "min_s": 1e-4}, "above the arithmetic peak"),
        ({"disturbed": True}, "disturbed"),
    ],
)
def test_impossible_rows_are_set_apart(changes: dict[str, Any], says: str) -> None:
    good, bad = split(measurement_table([gemm(), gemm(**changes)]), H100)
    assert good.height == 1
    assert says in bad["reason"][0]


def test_a_format_without_a_peak_is_not_judged() -> None:
    assert reasons(measurement_table([gemm(dtype="mxfp4", median_s=1e-9, min_s=1e-9)]), H100) == [
        None
    ]


def test_a_collective_above_the_link_is_set_apart() -> None:
    row = {"id": "x", "kernel": "all_gather", "devices": 8, "nodes": 1, "message_bytes": 1e9,
           "disturbed": False, "dtype": "fp16"}  # fmt: skip
    table = measurement_table([
        row | {"median_s": 2.3e-3, "min_s": 2.3e-3}, row | {"median_s": 1e-4, "min_s": 1e-4},
    ])  # fmt: skip
    fine, above = reasons(table, load_cluster("dgx-h100"))
    assert fine is None
    assert above is not None
    assert "link bandwidth" in above


def made(kernel: str, truth: Constants, noise: float = 0.0) -> tuple[Any, Cluster]:
    """Rows whose times follow known constants."""
    machine = single("i9-14900k")
    rows = cases(frozenset({kernel}), ("fp32",), room_bytes=1e12)
    table = measurement_table([{**row, "disturbed": False} for row in rows])
    times = timed(COUNTS[kernel](Rows(table), machine), truth.curve())[0][1]
    times *= np.exp(np.random.default_rng(1).normal(0, noise, times.size))
    frame = table.with_columns(median_s=times, min_s=times)
    return frame, machine


@pytest.mark.parametrize("kernel", ["gemm", "grouped_gemm", "attention_decode", "elementwise"])
def test_known_constants_are_found_again(kernel: str) -> None:
    truth = Constants(compute_ratio=0.55, memory_ratio=0.4, fixed_s=2e-5, half_rows_count=3.0)
    frame, machine = made(kernel, truth)
    fitted = fit_curves(frame, machine, "fp32")
    (fit,) = fitted.families
    assert fit.error_median_ratio < 0.02
    assert fit.error_p90_ratio < 0.06
    assert fitted.curves.families[kernel].memory.typical == pytest.approx(0.4, rel=0.05)


def test_the_interval_holds_what_it_says() -> None:
    frame, machine = made("gemm", Constants(fixed_s=1e-6), noise=0.2)
    (fit,) = fit_curves(frame, machine, "fp32").families
    assert 0.6 <= fit.coverage_ratio <= 0.95
    assert fit.error_median_ratio < 0.3


@pytest.mark.parametrize("count", [9, 12, 18, 30, 100])
def test_an_interval_of_few_rows_holds_the_next_one(count: int) -> None:
    """Plain quantiles of nine rows hold the next one 7 times in 10."""
    draws = np.exp(np.random.default_rng(count).normal(0, 0.3, (4000, count + 1)))
    held = [low <= row[-1] <= high for row in draws for low, high in [interval(row[:-1])]]
    assert 0.78 <= np.mean(held) <= 0.91


def test_an_interval_covers_the_fixed_cost_too() -> None:
    frame, machine = made("elementwise", Constants(fixed_s=1e-3), noise=0.1)
    curve = fit_curves(frame, machine, "fp32").curves.families["elementwise"]
    small = COUNTS["elementwise"](Rows(frame.head(1)), machine)
    (low, typical, high), _ = timed(small, curve)
    assert typical[0] == pytest.approx(1e-3, rel=0.2)
    assert low[0] < 0.98 * typical[0] < 1.02 * typical[0] < high[0]


def test_a_shape_is_never_fitted_and_judged() -> None:
    frame, _ = made("gemm", Constants())
    folds = shape_folds("gemm", frame)
    shapes: dict[tuple[float, float], set[int]] = {}
    for n, k, fold in zip(frame["n"], frame["k"], folds, strict=True):
        shapes.setdefault((n, k), set()).add(int(fold))
    assert all(len(found) == 1 for found in shapes.values())
    assert len(set(folds.tolist())) == 5


def test_work_can_be_cut() -> None:
    frame, machine = made("gemm", Constants())
    work = COUNTS["gemm"](Rows(frame), machine)
    chosen = np.arange(frame.height) < 3
    assert part_of(work, chosen).compute_s.tolist() == work.compute_s[:3].tolist()
    assert part_of(work, chosen).wire_s is None


def test_ranks_that_take_turns_are_priced_by_their_number() -> None:
    sizes = [(ranks, 2.0**power) for ranks in (2, 3, 4) for power in range(10, 25, 2)]
    rows = [
        {"kernel": "all_to_all", "devices": ranks, "message_bytes": size, "disturbed": False,
         "median_s": (s := (ranks - 1) * (2e-4 + size / 4 / 1e9)), "min_s": s}
        for ranks, size in sizes
    ]  # fmt: skip
    ground = [
        gemm(dtype="fp32", median_s=1.1, min_s=1.0),
        {"kernel": "copy", "tier": "dram", "bytes": 2.0**27, "median_s": 0.02, "min_s": 0.01},
    ]
    few = PLACE.model_copy(update={"cores_count": 1})
    (tier,) = local_cluster(few, ground + rows).tiers
    assert tier.wiring == "shared"
    (fit,) = fit_curves(measurement_table(rows), local_cluster(few, ground + rows)).families
    assert fit.error_median_ratio < 0.02
    many = PLACE.model_copy(update={"cores_count": 8})
    assert local_cluster(many, ground + rows).tiers[0].wiring == "switch"


def test_too_few_rows_are_said_so() -> None:
    with pytest.raises(MoesaicError, match="too few"):
        fit_curves(measurement_table([gemm()]), H100)


def test_a_cpu_is_described_by_its_best_rows() -> None:
    rows = [
        gemm(dtype="fp32", median_s=1.1, min_s=1.0),
        {"kernel": "copy", "tier": "dram", "bytes": 2.0**27, "median_s": 0.02, "min_s": 0.01},
        {"kernel": "copy", "tier": "dram", "bytes": 2.0**10, "median_s": 1e-9, "min_s": 1e-9},
        {"kernel": "copy", "tier": "ssd", "bytes": 2.0**27, "median_s": 0.1, "min_s": 0.1},
    ]
    cluster = local_cluster(PLACE, rows)
    assert cluster.device.name == "local-test-cpu"
    assert cluster.device.peak("fp32") == 2 * 4096**3
    assert cluster.device.bandwidth_bytes_per_s == 2**27 / 0.01
    assert [tier.name for tier in cluster.device.memory] == ["dram", "ssd"]
    with pytest.raises(MoesaicError, match="fastest fp32 GEMM"):
        local_cluster(PLACE, rows[:1])


@pytest.mark.parametrize("time_s", [0.0, -1.0, math.nan, None, 1e-15])
def test_an_impossible_row_makes_no_peak(time_s: float | None) -> None:
    rows = [
        gemm(dtype="fp32", median_s=1.1, min_s=1.0),
        {"kernel": "copy", "tier": "dram", "bytes": 2.0**27, "median_s": 0.02, "min_s": 0.01},
    ]
    sound = local_cluster(PLACE, rows).device.peak("fp32")
    odd = gemm(dtype="fp32", median_s=time_s, min_s=time_s)
    machine = local_cluster(PLACE, [*rows, odd])
    assert machine.device.peak("fp32") == sound
    assert reasons(measurement_table([odd]), machine)[0] is not None


def test_cases_respect_memory_and_formats() -> None:
    every = frozenset({"gemm", "grouped_gemm", "attention_decode", "copy", "mla_decode"})
    small = cases(every, ("fp32", "q8_0"), room_bytes=1e6)
    large = cases(every, ("fp32", "q8_0"), room_bytes=1e12)
    assert 0 < len(small) < len(large)
    assert len(cases(every, ("fp32",), room_bytes=1e12, quick=True)) < len(large) / 2
    assert {row["dtype"] for row in large if "dtype" in row} == {"fp32", "q8_0"}
