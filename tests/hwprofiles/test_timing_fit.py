"""Fits from tables of others: known physics is found again, false rows are set apart."""

import json

import numpy as np
import polars as pl
import pytest

from hwprofiles.calibration.aiconfigurator import data_root, read_nccl, read_system
from hwprofiles.calibration.profiles import fit_system, summary, write_profile
from hwprofiles.calibration.tables import filled, fit_physics, fit_table, stretch
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for
from hwprofiles.timing import Rows
from hwprofiles.timing.rules import COUNTS
from hwprofiles.timing.tables import Physics

TRUE = Physics(4e-6, 0.7, 0.8)


@pytest.fixture(scope="module")
def cluster():
    return cluster_for("h200-sxm")


def gemm_rows(cluster, noise=0.02):
    sizes = [512, 1024, 2048, 4096, 8192]
    grid = [
        {"kernel": "gemm", "dtype": "bf16", "m": float(m), "n": float(n), "k": float(k)}
        for m in (1, 4, 16, 64, 256, 1024, 4096) for n in sizes for k in sizes
    ]  # fmt: skip
    rows = pl.DataFrame(grid)
    exact = TRUE.seconds(COUNTS["gemm"](Rows(rows), cluster))
    wobble = np.exp(np.random.default_rng(1).normal(0, noise, len(exact)))
    return rows.with_columns(pl.Series("seconds", exact * wobble))


def test_known_physics_is_found_again_and_bands_hold(cluster):
    fitted = fit_table(gemm_rows(cluster), {"dtype": "bf16"}, cluster, "here")
    card = fitted.card
    assert card["physics"]["compute_share"] == pytest.approx(TRUE.compute_share, rel=0.1)
    assert card["physics"]["memory_share"] == pytest.approx(TRUE.memory_share, rel=0.1)
    assert card["error_shapes"]["median"] < 0.03
    assert 0.75 <= card["error_shapes"]["coverage"] <= 0.88
    assert card["rows"] == 175


def test_times_above_peak_are_set_apart(cluster):
    rows = gemm_rows(cluster)
    fast = pl.when((pl.col("m") == 4096) & (pl.col("n") == 8192)).then(pl.lit(1e-6))
    card = fit_table(
        rows.with_columns(fast.otherwise("seconds").alias("seconds")),
        {"dtype": "bf16"},
        cluster,
        "x",
    ).card
    assert card["impossible_rows"] == 5
    assert card["error_shapes"]["median"] < 0.05


def test_gaps_are_interpolated_and_edges_repeat():
    cells = np.array([[[np.nan, 1.0, np.nan, 3.0, np.nan]]])
    whole = filled(cells, np.array([0.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert whole.ravel().tolist() == [1, 1, 2, 3, 3]


def test_bands_are_stretched_until_they_hold_unseen_groups():
    rng = np.random.default_rng(3)
    groups = rng.normal(0, 1, (6, 1)) + rng.normal(0, 0.1, (6, 200))
    factor, covered = stretch(groups)
    assert factor > 1
    assert covered >= 0.8


GEMM = {"framework": "X", "version": "1", "device": "d", "op_name": "gemm", "kernel_source": "s",
        "gemm_dtype": "bfloat16", "m": 1, "n": 64, "k": 64, "latency": 0.01}  # fmt: skip
DEEPEP = {"device": "NVIDIA H100", "node_num": 1, "hidden_size": 7168, "num_token": 8,
          "num_topk": 8, "num_experts": 256, "dispatch_avg_t_us": 10.0,
          "combine_avg_t_us": 12.0}  # fmt: skip


def put(root, path, rows):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(target)


def test_bad_rows_are_dropped_and_counted(tmp_path):
    rows = [GEMM, GEMM | {"m": 2, "latency": 0.0}, GEMM | {"m": 3, "latency": -1.0},
            GEMM | {"m": 4, "gemm_dtype": "fp3"}, GEMM | {"latency": 0.02}]  # fmt: skip
    put(tmp_path, "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", rows)
    (source,) = read_system(tmp_path, "h200_sxm", "vllm")
    assert source.dropped_count == 3
    assert source.rows["seconds"].to_list() == [1e-5], "the fastest of equal rows, in seconds"


def test_the_newest_full_version_is_read(tmp_path):
    old = [GEMM | {"m": m, "latency": 9.0} for m in range(1, 11)]
    full = [GEMM | {"m": m, "latency": 1.0} for m in range(1, 11)]
    extra = [GEMM | {"m": 99, "latency": 2.0}]
    for version, rows in (("1.3.0rc9", old), ("1.3.0rc20", full), ("1.3.0rc23", extra)):
        put(tmp_path, f"h200_sxm/gemm/trtllm/{version}/gemm_perf.parquet", rows)
    (source,) = read_system(tmp_path, "h200_sxm", "trtllm")
    assert "rc9" not in source.origin
    assert source.rows["m"].max() == 99
    assert source.rows["seconds"].max() == pytest.approx(2e-3)


def test_several_nodes_come_from_h100_alone(tmp_path):
    own = [DEEPEP | {"device": "NVIDIA H200"}]
    put(tmp_path, "h200_sxm/comm/sglang/0.5.12/wideep_deepep_ll_perf.parquet", own)
    copy = [DEEPEP | {"node_num": 2, "dispatch_avg_t_us": 99.0}]
    put(tmp_path, "h200_sxm/comm/sglang/0.5.6.post2/wideep_deepep_ll_perf.parquet", copy)
    real = [DEEPEP, DEEPEP | {"node_num": 2, "dispatch_avg_t_us": 20.0}]
    put(tmp_path, "h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_ll_perf.parquet", real)
    rows = pl.concat([s.rows for s in read_system(tmp_path, "h200_sxm", "sglang")])
    far = rows.filter((pl.col("nodes") == 2) & (pl.col("kernel") == "moe_dispatch"))
    assert far["seconds"].to_list() == pytest.approx([20e-6])
    assert far["devices"].to_list() == [16]


def test_collectives_are_counted_in_two_byte_elements(tmp_path):
    row = {"op_name": "alltoall", "nccl_dtype": "half", "num_gpus": 8, "message_size": 256,
           "latency": 0.005}  # fmt: skip
    put(
        tmp_path, "h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet", [row, row | {"nccl_dtype": "int8"}]
    )
    (source,) = read_nccl(tmp_path, "h200_sxm")
    assert source.kernel == "all_to_all"
    assert source.rows["message_bytes"].to_list() == [512]


def test_a_profile_is_written_and_read(tmp_path, cluster):
    rows = gemm_rows(cluster).with_columns(
        pl.lit("bfloat16").alias("gemm_dtype"), (pl.col("seconds") * 1e3).alias("latency")
    )
    put(tmp_path, "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", rows.to_dicts())
    card, tables = fit_system(tmp_path, "h200_sxm", "vllm")
    path = write_profile(tmp_path, card, tables)
    assert json.loads(path.read_text())["rows"] == 175
    assert summary(card)[0]["median"] < 0.03
    assert path.with_suffix(".npz").exists()


def test_absent_tables_say_what_would_work(tmp_path):
    with pytest.raises(MoesaicError, match="no vllm tables"):
        fit_system(tmp_path, "h200_sxm", "vllm")
    with pytest.raises(MoesaicError, match="did you mean h200_sxm"):
        list(read_system(tmp_path, "h200-sxm", "vllm"))
    with pytest.raises(MoesaicError, match="no folder"):
        data_root(tmp_path / "none")


def moe_rows(cluster):
    """Six models, each with a factor of its own that nothing in its sizes says."""
    models = [(2048, 768, 8, 128), (2048, 512, 8, 256), (4096, 1536, 8, 128), (4096, 1024, 10, 512),
              (5120, 8192, 1, 16), (7168, 2048, 8, 256)]  # fmt: skip
    grid = [
        {"kernel": "grouped_gemm", "dtype": "bf16", "hidden": float(h), "inter": float(i),
         "top_k": float(k), "experts": float(e), "moe_tp": float(tp), "moe_ep": float(ep),
         "matrices": 3.0, "tokens": float(t), "skew_alpha": 0.0, "model": place}
        for place, (h, i, k, e) in enumerate(models)
        for tp in (1, 2, 4) for ep in (1, 2, 4, 8) for t in (1, 8, 64, 512, 4096)
    ]  # fmt: skip
    rows = pl.DataFrame(grid)
    factor = np.random.default_rng(5).normal(0, 0.6, len(models))[rows["model"].to_numpy()]
    exact = TRUE.seconds(COUNTS["grouped_gemm"](Rows(rows.drop("model")), cluster))
    return rows.drop("model").with_columns(pl.Series("seconds", exact * np.exp(factor)))


def test_layouts_of_one_model_are_told_from_those_of_others(cluster):
    card = fit_table(moe_rows(cluster), {"dtype": "bf16"}, cluster, "here").card
    assert card["metric"]["kind"] == "model"
    assert card["metric"]["jump"] > 0
    assert card["error_shapes"]["median"] < 0.03
    assert card["error_models"]["median"] > 0.2, "a model nobody measured stays unknown"


def test_a_cache_is_found_where_rows_show_one(cluster):
    work = COUNTS["gemm"](Rows(gemm_rows(cluster)), cluster)
    kept = Physics(1e-6, TRUE.compute_share, TRUE.memory_share, 1e-5, 4.0).seconds(work)
    off = [np.abs(np.log(p.seconds(work) / kept)).mean() for p in fit_physics(work, kept)]
    assert len(off) == 2, "without and with a cache"
    assert off[1] < 0.6 * off[0]
    assert len(fit_physics(work, TRUE.seconds(work))) == 1, "and no cache where none is"
