"""Better machines are never slower, for every kernel family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.cluster import Cluster
from hwprofiles.kernels import kernel_rows
from hwprofiles.library import load_cluster
from hwprofiles.timing import time_kernels

SIZE = st.integers(1, 8192)
BIG = st.sampled_from([256, 1024, 4096, 7168])


def faster(cluster: Cluster, *, memory=1.0, compute=1.0, link=1.0) -> Cluster:
    """The same cluster with scaled bandwidths and peaks, under a name no profile knows."""
    data = cluster.model_dump()
    data["device"]["name"] = "what-if"
    data["device"]["memory"][0]["bandwidth_bytes_per_s"]["value"] *= memory
    for peak in data["device"]["peak_flop_per_s"].values():
        peak["value"] *= compute
    for tier in data["tiers"]:
        tier["bandwidth_bytes_per_s"]["value"] *= link
    return Cluster.model_validate(data)


def rows(m, n, k, batch):
    return kernel_rows([
        {"kernel": "gemm", "m": m, "n": n, "k": k, "dtype": "bf16"},
        {"kernel": "grouped_gemm", "tokens": m, "hidden": k, "inter": n, "matrices": 3,
         "experts": 64, "top_k": 4, "moe_tp": 1, "moe_ep": 8, "busy_ratio": 1.5,
         "dtype": "bf16"},
        {"kernel": "attention_prefill", "batch": batch, "seq": m, "heads": 8, "kv_heads": 2,
         "head_dim": 128, "dtype": "bf16", "kv_dtype": "bf16"},
        {"kernel": "attention_decode", "batch": batch, "seq": m, "heads": 8, "kv_heads": 2,
         "head_dim": 128, "dtype": "bf16", "kv_dtype": "bf16"},
        {"kernel": "all_reduce", "devices": 8, "message_bytes": m * k * 2, "dtype": "bf16"},
        {"kernel": "moe_dispatch", "devices": 16, "nodes": 2, "tokens": m, "hidden": k, "top_k": 4,
         "experts": 64, "dtype": "bf16"},
        {"kernel": "elementwise", "bytes": m * k},
    ])  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(SIZE, BIG, BIG, st.integers(1, 64), st.sampled_from(["memory", "compute", "link"]))
def test_more_of_anything_is_never_slower(m, n, k, batch, what):
    cluster = faster(load_cluster("dgx-h200-x4"))
    asked = rows(m, n, k, batch)
    before, after = (time_kernels(asked, c) for c in (cluster, faster(cluster, **{what: 2.0})))
    for side in ("low_s", "typical_s", "high_s"):
        assert (after[side] <= before[side] * (1 + 1e-12)).all()


@settings(max_examples=40, deadline=None)
@given(SIZE, BIG, BIG, st.integers(1, 64))
def test_sides_are_ordered_and_finite(m, n, k, batch):
    for name in ("dgx-h200-x4", "atlas-800-a2-x4"):
        timed = time_kernels(rows(m, n, k, batch), load_cluster(name))
        assert (timed["low_s"] > 0).all()
        assert (timed["low_s"] <= timed["typical_s"]).all()
        assert (timed["typical_s"] <= timed["high_s"]).all()
        assert timed["high_s"].is_finite().all()


def test_no_rows_is_no_error():
    assert time_kernels(kernel_rows([]), load_cluster("dgx-h100")).height == 0


@pytest.mark.parametrize("name", ["dgx-h100", "gb200-nvl72", "atlas-800-a2"])
def test_twice_the_message_takes_longer_but_not_more_than_twice(name):
    asked = kernel_rows([
        {"kernel": "all_gather", "devices": 8, "message_bytes": size} for size in (2.0**24, 2.0**25)
    ])  # fmt: skip
    one, two = time_kernels(asked, load_cluster(name))["typical_s"]
    assert one < two <= 2 * one
