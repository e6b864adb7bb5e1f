"""Rows are read once and split by what answers them; groups change nothing about an answer."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import kernel_rows
from hwprofiles.library import cluster_for
from hwprofiles.timing import tables as measured
from hwprofiles.timing import time_kernels
from hwprofiles.timing.counts import tier_bytes_per_s
from hwprofiles.timing.groups import groups_of
from hwprofiles.timing.rows import TIMED, Columns, Rows

MIX = [
    {"kernel": "gemm", "m": 64, "n": 4096, "k": 7168, "dtype": "bf16"},
    {"kernel": "moe_dispatch", "devices": 8, "tokens": 64, "hidden": 7168, "top_k": 8,
     "experts": 256, "dtype": "fp8"},
    {"kernel": "gemm", "m": 65, "n": 4096, "k": 7168, "dtype": "fp16"},
    {"kernel": "moe_dispatch", "devices": 8, "tokens": 4096, "hidden": 7168, "top_k": 8,
     "experts": 256, "dtype": "fp8"},
    {"kernel": "all_reduce", "devices": 8, "message_bytes": 1e6},
    {"kernel": "all_gather", "devices": 8, "message_bytes": 1e6},
    {"kernel": "moe_dispatch", "devices": 8, "tokens": 64, "hidden": 7168, "top_k": 8,
     "experts": 256, "dtype": "fp8", "library": "deepep_ht"},
    {"kernel": "elementwise", "bytes": 1e6},
    {"kernel": "router", "tokens": 64, "hidden": 7168, "experts": 256, "top_k": 8, "dtype": "bf16"},
]  # fmt: skip


def test_groups_come_in_the_order_of_their_first_rows() -> None:
    found = [(g.kernel, g.wanted["library"], g.chosen.tolist())
             for g in groups_of(Columns(kernel_rows(MIX)), width=8)]  # fmt: skip
    assert found == [
        ("gemm", None, [0, 2]),
        ("moe_dispatch", "deepep_low_latency", [1]),
        ("moe_dispatch", "deepep_normal", [3, 6]),
        ("all_reduce", "custom", [4]),
        ("all_gather", "nccl", [5]),
        ("elementwise", None, [7]),
        ("router", None, [8]),
    ]


def test_an_all_reduce_wider_than_a_node_is_nccls() -> None:
    row = {"kernel": "all_reduce", "message_bytes": 1e6}
    table = Columns(kernel_rows([row | {"devices": 8}, row | {"devices": 16}, row]))
    found = {g.wanted["library"]: g.chosen.tolist() for g in groups_of(table, width=8)}
    assert found == {"custom": [0, 2], "nccl": [1]}


def test_some_rows_only() -> None:
    found = [g.chosen.tolist() for g in groups_of(Columns(kernel_rows(MIX)), np.array([2, 5, 7]))]
    assert found == [[2], [5], [7]]


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(len(MIX))))
def test_company_does_not_change_an_answer(order: list[int]) -> None:
    cluster = cluster_for("h200-sxm", 8)
    alone = pl.concat(time_kernels(kernel_rows([MIX[i]]), cluster, "vllm") for i in order)
    together = time_kernels(kernel_rows([MIX[i] for i in order]), cluster, "vllm")
    for name, kind in TIMED.items():
        if kind == pl.Float64:
            assert np.allclose(alone[name], together[name], rtol=1e-12)
        else:
            assert alone[name].to_list() == together[name].to_list()


def test_nulls_take_the_default_and_missing_sizes_are_told() -> None:
    frame = kernel_rows([{"kernel": "gemm", "m": 1}, {"kernel": "gemm", "m": 2, "n": 3}])
    rows = Rows(frame)
    assert rows.get("n", 7).tolist() == [7, 3]
    assert rows.get("k", 5).tolist() == [5, 5]
    assert Rows(frame.select("kernel")).get("k", 5).tolist() == [5, 5]
    for column in ("n", "k"):
        with pytest.raises(MoesaicError, match=f"gemm needs {column}"):
            rows.get(column)
    with pytest.raises(MoesaicError, match="gemm needs k"):
        Rows(frame.select("kernel")).get("k")
    part = Rows(frame, np.array([1]))
    assert (part.count, part.get("n").tolist(), part.kernel) == (1, [3], "gemm")


def test_texts_of_chosen_rows_only() -> None:
    frame = kernel_rows([{"kernel": "gemm", "dtype": name} for name in ("bf16", "fp8", "bf16")])
    widths = {"bf16": 2.0}
    rows = Rows(frame, np.array([0, 2]))
    assert rows.by_dtype("dtype", widths.__getitem__, "bf16").tolist() == [2.0, 2.0]
    with pytest.raises(KeyError):
        Rows(frame).by_dtype("dtype", widths.__getitem__, "bf16")
    assert Rows(frame, names={"dtype": "bf16"}).texts("dtype")[0] == ["bf16"]


def test_a_copy_takes_as_long_as_its_tier() -> None:
    cluster = cluster_for("h100-sxm")
    rows = [{"kernel": "copy", "bytes": 1e9, "tier": tier} for tier in ("hbm", "dram", None)]
    near, host, usual = time_kernels(kernel_rows(rows), cluster)["typical_s"].to_list()
    assert near == usual < host
    link = tier_bytes_per_s(cluster.device, "dram")
    assert host >= 1e9 / link
    with pytest.raises(MoesaicError, match="states no bandwidth of ssd; known: hbm, dram"):
        time_kernels(kernel_rows([{"kernel": "copy", "bytes": 1e9, "tier": "ssd"}]), cluster)


def test_a_router_costs_more_with_more_experts_and_tokens() -> None:
    base = {"kernel": "router", "tokens": 4096, "hidden": 4096, "experts": 64, "top_k": 8,
            "dtype": "bf16"}  # fmt: skip
    rows = [base, base | {"experts": 512}, base | {"tokens": 65536}]
    one, wide, long = time_kernels(kernel_rows(rows), cluster_for("h100-sxm"))["typical_s"]
    assert one < wide < long


def test_neighbours_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = kernel_rows([{"kernel": "gemm", "m": 7, "n": 1000 + i, "k": 3000, "dtype": "bf16"}
                        for i in range(6)])  # fmt: skip
    cluster = cluster_for("h200-sxm")
    first = time_kernels(rows, cluster, "vllm")
    monkeypatch.setattr(measured, "MOST_KNOWN", 2)
    assert time_kernels(rows.reverse(), cluster, "vllm").reverse().equals(first)
    more = rows.with_columns(n=pl.col("n") + 50)
    assert time_kernels(more, cluster, "vllm")["typical_s"].null_count() == 0
    assert np.allclose(time_kernels(rows, cluster, "vllm")["typical_s"], first["typical_s"])
