"""DeepEP-Ascend's published dispatch and combine: each number of ranks from the others."""

import json

import numpy as np
import polars as pl
import pytest

from hwprofiles.calibration.ascend import fit_ascend_exchange, read_rows
from hwprofiles.calibration.ascend_hccl import fit_hccl
from hwprofiles.calibration.ascend_hccl import read_rows as read_hccl
from hwprofiles.efficiency import Curves, load_curves
from hwprofiles.library import load_cluster, load_device
from hwprofiles.timing import time_kernels
from hwprofiles.timing.profile import FOLDER

CURVES, ERRORS = fit_ascend_exchange()
DIES = load_cluster("cloudmatrix384")


def test_ranks_left_out_are_predicted():
    """Median 6.2 %, 90th percentile 12.3 %; four of five beyond one node of 16 dies within 20 %."""
    off = np.abs(np.expm1(np.concatenate(list(ERRORS.values()))))
    assert np.median(off) <= 0.10
    assert np.quantile(off, 0.9) <= 0.20
    assert set(ERRORS) == {
        f"{library} moe_{way}" for library in ("deepep_normal", "deepep_low_latency")
        for way in ("dispatch", "combine")
    }  # fmt: skip


def test_shipped_curves_are_the_fit():
    shipped = load_curves("ascend-a3")
    plain = Curves.model_validate(CURVES.model_dump(mode="json"))
    assert shipped.libraries == plain.libraries
    assert {load_device(n).curves for n in ("ascend-a3-die", "ascend-a3-560t-die")} == {"ascend-a3"}
    assert "arXiv:2506.12708" in shipped.source


def test_a_question_that_names_the_library_gets_its_figures():
    rows = read_rows()
    timed = time_kernels(rows, DIES, "sglang")
    assert set(timed["source"]) == {"calibrated"}
    assert (timed["typical_s"] / timed["seconds"] - 1).abs().max() <= 0.13
    inside = (timed["low_s"] <= timed["seconds"]) & (timed["seconds"] <= timed["high_s"])
    assert inside.mean() >= 0.75


def test_a_question_that_names_none_gets_the_family():
    """Other stacks have kernels of their own: their exchange is still an assumption."""
    rows = read_rows().with_columns(pl.lit(None, pl.String).alias("library"))
    assert set(time_kernels(rows, DIES)["source"]) == {"assumed"}
    both = pl.concat([read_rows(), rows], how="vertical_relaxed")
    mixed = time_kernels(both, DIES)
    assert mixed["source"].to_list() == ["calibrated"] * rows.height + ["assumed"] * rows.height


@pytest.mark.parametrize("library", ["deepep_normal", "deepep_low_latency"])
def test_more_tokens_take_longer(library):
    rows = pl.concat([read_rows().filter(pl.col("library") == library)[:1]] * 4).with_columns(
        pl.Series("tokens", [16.0, 128.0, 1024.0, 8192.0])
    )
    assert time_kernels(rows, DIES)["typical_s"].is_sorted()


def test_hccl_all_gather():
    """Sizes left out: median 2.7 %, p90 29 % (one of them beside the jump near 60 KB a rank)."""
    card, _ = fit_hccl()
    shipped = json.loads((FOLDER / "ascend-a3-die.hccl.json").read_text())
    assert json.loads(json.dumps(card)) == shipped
    error = card["tables"][0]["error_sizes"]
    assert error["median"] <= 0.06
    assert 0.75 <= error["coverage"] <= 0.88
    rows = read_hccl().filter(pl.col("kernel") == "all_gather")
    timed = time_kernels(rows, load_cluster("atlas-800-a3"))
    assert (timed["typical_s"] / timed["seconds"] - 1).abs().max() < 0.01
    assert set(timed["source"]) == {"measured"}


def test_the_jump_of_hccl():
    """About five times from 465 to 596 KB at eight ranks."""
    times = dict(read_hccl().filter(devices=8.0, kernel="all_gather")
                 .select("message_bytes", "seconds").iter_rows())  # fmt: skip
    assert times[596e3] / times[465e3] == pytest.approx(5, rel=0.1)
    row = {"kernel": "all_gather", "library": "hccl", "devices": 8.0}
    below, above = time_kernels(
        pl.DataFrame([row | {"message_bytes": b} for b in (465e3, 596e3)]),
        load_cluster("atlas-800-a3"),
    )["typical_s"]
    assert above / below == pytest.approx(5, rel=0.1)
