"""Read InferSim's kernel benchmarks of H20 and H800 as kernel rows with seconds, and fit profiles.

github alibaba/InferSim (Apache-2.0), folder `bench_data`: DeepGEMM, FlashAttention 3 and FlashMLA
as SGLang uses them, one CSV a kernel and machine, sizes in the columns or in the file's name.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.profiles import MIN_ROWS, card_of, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for
from hwprofiles.timing.places import FAMILIES

SYSTEMS = {"h20": "h20", "h800": "h800-sxm"}
"""Folders: our device names."""
BACKEND = "sglang"
ORIGIN = "github alibaba/InferSim @ f2293dab (2026-05-08, Apache-2.0), bench_data"
CONFLICTS = {
    "h800": "DeepGEMM README @ a6d97a1 (2025-02): the same FP8 products at 64 and 128 rows take "
    "0.65 to 0.87 of these times (no launch counted), at 4,096 rows 1.1 to 1.3 of them",
    "h20": "",
}
"""Other sources of the same figures, shown with the profile."""
PUBLISHED = datetime.date(2026, 5, 8)
MICRO = 1e-6


def _gemm(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path)
    return table.select(
        pl.lit("gemm").alias("kernel"), pl.lit("fp8_block").alias("dtype"),
        *(pl.col(c).cast(pl.Float64) for c in "mnk"),
        (pl.col("latency_us") * MICRO).alias("seconds"),
    )  # fmt: skip


def _experts(path: Path) -> pl.DataFrame:
    """Both products of a layer's experts; tokens are those of all ranks, evenly routed."""
    table = pl.read_csv(path)
    tokens = "batch_size_per_gpu" if "batch_size_per_gpu" in table.columns else "seq_len_per_gpu"
    ranks = pl.col("num_gpus").cast(pl.Float64)
    return table.select(
        pl.lit("grouped_gemm").alias("kernel"), pl.lit("fp8_block").alias("dtype"),
        (pl.col(tokens) * ranks).alias("tokens"),
        pl.col("hidden_size").cast(pl.Float64).alias("hidden"),
        pl.col("intermediate_size").cast(pl.Float64).alias("inter"),
        pl.lit(3.0).alias("matrices"),
        pl.col("num_experts").cast(pl.Float64).alias("experts"),
        pl.col("topk").cast(pl.Float64).alias("top_k"),
        pl.lit(1.0).alias("moe_tp"), ranks.alias("moe_ep"), pl.lit(1.0).alias("busy_ratio"),
        pl.lit(0.0).alias("skew_alpha"),
        ((pl.col("up_proj_us") + pl.col("down_proj_us")) * MICRO).alias("seconds"),
    )  # fmt: skip


DECODE_COLUMNS = ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"]


def _with_header(path: Path) -> pl.DataFrame:
    """A table; one decode file (64 heads on H20) comes without its header."""
    table = pl.read_csv(path)
    if "dtype" in table.columns:
        return table
    return pl.read_csv(path, has_header=False, new_columns=DECODE_COLUMNS)


def _attention(kernel: str) -> Callable[[Path], pl.DataFrame]:
    """Heads, key-value heads and width stand in the file's name; MLA names latent and rotary."""

    def read(path: Path) -> pl.DataFrame:
        table = _with_header(path)
        heads, second, third = (float(part) for part in path.stem.split("-"))
        wide = {"heads": heads} | (
            {"kv_heads": second, "head_dim": third} if kernel.startswith("attention") else {}
        )
        decode = "kv_len" in table.columns
        return table.select(
            pl.lit(kernel).alias("kernel"), pl.col("dtype"),
            (pl.col("kv_dtype") if decode else pl.lit("bf16")).alias("kv_dtype"),
            (pl.col("batch_size").cast(pl.Float64) if decode else pl.lit(1.0)).alias("batch"),
            pl.col("kv_len" if decode else "seq_len").cast(pl.Float64).alias("seq"),
            *(pl.lit(value).alias(name) for name, value in wide.items()),
            (pl.col("latency_us") * MICRO).alias("seconds"),
        )  # fmt: skip

    return read


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "gemm": _gemm,
    "grouped_gemm/decode": _experts,
    "grouped_gemm/prefill": _experts,
    "mha/decode": _attention("attention_decode"),
    "mha/prefill": _attention("attention_prefill"),
    "mla/decode": _attention("mla_decode"),
    "mla/prefill": _attention("mla_prefill"),
}
"""Folders that hold a machine's files, and what reads them."""


def rows_of(root: Path, system: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Kernel rows of one machine, a folder at a time, times of zero or less left out.

    Raises:
        MoesaicError: `invalid` where the folder holds nothing of the machine.
    """
    found = False
    for folder, reader in READERS.items():
        parts = [reader(path) for path in sorted((root / folder / system).glob("*.csv"))]
        if parts:
            found = True
            yield folder, pl.concat(parts).filter(pl.col("seconds") > 0)
    if not found:
        raise MoesaicError("invalid", f"{root} holds no files of {system}", "/tables")


def fit_system(root: Path, system: str) -> tuple[dict[str, Any], list[Fitted]]:
    """Fit every table of a machine; returns the profile's card and its tables."""
    cluster = cluster_for(SYSTEMS[system])
    by_kernel: dict[str, list[tuple[str, pl.DataFrame]]] = {}
    for folder, rows in rows_of(root, system):
        by_kernel.setdefault(str(rows["kernel"][0]), []).append((folder, rows))
    tables = []
    for kernel, parts in by_kernel.items():
        origin = "; ".join(f"{folder}/{system}" for folder, _ in parts)
        names = FAMILIES[kernel].keys
        for values, rows in pl.concat([r for _, r in parts]).group_by(*names, maintain_order=True):
            if rows.height >= MIN_ROWS:
                keys = {n: str(v) for n, v in zip(names, values, strict=True)}
                tables.append(fit_table(rows, dict(keys), cluster, origin))
    of, told = (SYSTEMS[system], BACKEND), (ORIGIN, PUBLISHED)
    return card_of(tables, of, told, conflicts=CONFLICTS[system]), tables


def fit_all(root: Path, system: str, folder: Path) -> list[dict[str, Any]]:
    """Fit and write the profile of a machine; returns its card alone in a list."""
    card, tables = fit_system(root, system)
    write_profile(folder, card, tables)
    return [card]
