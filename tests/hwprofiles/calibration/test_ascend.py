"""DeepEP-Ascend's published dispatch and combine: each number of ranks from the others."""

import numpy as np
import polars as pl
import pytest

from hwprofiles.calibration.ascend import fit_ascend_exchange, read_rows
from hwprofiles.efficiency import Curves, load_curves
from hwprofiles.library import load_cluster, load_device
from hwprofiles.timing import time_kernels

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
