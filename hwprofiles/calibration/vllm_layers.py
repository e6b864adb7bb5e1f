"""Read LLMServingSim's layer profiles of vLLM, and fit the profile of an RTX 4090.

github casys-kaist/LLMServingSim (MIT), profiler/perf/<machine>/<model>/bf16/tp<n>: layers of a
model timed one by one in vLLM 0.19. Products and attention become kernel rows.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.profiles import card_of, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for

SYSTEMS = {"rtx4090": "rtx-4090"}
"""Systems that a profile is fitted for: our device names."""
BACKEND = "vllm"
ORIGIN = "github casys-kaist/LLMServingSim @ 5daddb21 (2026-08-21, MIT), profiler/perf/RTX4090"
PUBLISHED = datetime.date(2026, 8, 21)
FILES = ("dense.csv", "per_sequence.csv", "attention.csv")
MICRO = 1e-6
_ROW = ("kernel", "dtype", "kv_dtype", "heads", "kv_heads", "head_dim")


@dataclass(frozen=True)
class Model:
    """The part of a dense model that one rank holds."""

    heads: int
    kv_heads: int
    head_dim: int
    products: dict[str, tuple[int, int]]
    """(n, k) of each layer that is a product."""


LLAMA_8B = Model(32, 8, 128, {
    "qkv_proj": (6144, 4096), "o_proj": (4096, 4096), "gate_up_proj": (28672, 4096),
    "down_proj": (4096, 14336), "lm_head": (128256, 4096),
})  # fmt: skip
"""Llama-3.1-8B, config.json."""


def read_products(folder: Path, model: Model) -> pl.DataFrame:
    """Products as kernel rows with seconds."""
    dense = _read(folder, "dense.csv").rename({"tokens": "m"})
    last = _read(folder, "per_sequence.csv").rename({"sequences": "m"})
    sides = pl.DataFrame(
        [{"layer": name, "n": float(n), "k": float(k)} for name, (n, k) in model.products.items()]
    )
    return pl.concat([dense, last]).join(sides, on="layer").select(
        pl.lit("gemm").alias("kernel"), pl.lit("bf16").alias("dtype"),
        pl.col("m").cast(pl.Float64), "n", "k", (pl.col("time_us") * MICRO).alias("seconds"),
    )  # fmt: skip


def read_attention(folder: Path, model: Model) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Prefill of one sequence after a past, and decode; passes that mix both are left out."""
    values = ("", "bf16", "bf16", float(model.heads), float(model.kv_heads), float(model.head_dim))
    same = dict(zip(_ROW, map(pl.lit, values), strict=True))
    whole = _read(folder, "attention.csv").with_columns(
        **same, seconds=pl.col("time_us") * MICRO, batch=pl.lit(1.0)
    )
    chunk, decoding = pl.col("prefill_chunk"), pl.col("n_decode")
    prefill = whole.filter((chunk > 0) & (decoding == 0)).select(
        *_ROW, "batch", chunk.cast(pl.Float64).alias("seq"),
        pl.col("kv_prefill").cast(pl.Float64).alias("past"), "seconds",
    )  # fmt: skip
    decode = whole.filter((chunk == 0) & (decoding > 0)).select(
        *_ROW, decoding.cast(pl.Float64).alias("batch"),
        pl.col("kv_decode").cast(pl.Float64).alias("seq"), "seconds",
    )  # fmt: skip
    return (
        prefill.with_columns(kernel=pl.lit("attention_prefill")),
        decode.with_columns(kernel=pl.lit("attention_decode")),
    )


def _read(folder: Path, name: str) -> pl.DataFrame:
    path = folder / name
    if not path.is_file():
        raise MoesaicError(
            "invalid", f"no file {path}: a layer profile holds {', '.join(FILES)}", "/tables"
        )
    return pl.read_csv(path)


def fit_system(folder: Path, system: str) -> tuple[dict[str, Any], list[Fitted]]:
    """Fit products and attention of Llama-3.1-8B on one machine.

    Returns:
        The profile's card and its tables, in the card's order.

    Raises:
        MoesaicError: `invalid` where a file is missing.
    """
    cluster = cluster_for(SYSTEMS[system])
    attention = read_attention(folder, LLAMA_8B)
    tables = [fit_table(read_products(folder, LLAMA_8B), {"dtype": "bf16"}, cluster, FILES[0])]
    keys: dict[str, str | None] = {"dtype": "bf16", "kv_dtype": "bf16"}
    tables += [fit_table(rows, keys, cluster, FILES[2]) for rows in attention]
    return card_of(tables, (SYSTEMS[system], BACKEND), (ORIGIN, PUBLISHED)), tables


def fit_all(root: Path, system: str, folder: Path) -> list[dict[str, Any]]:
    """Fit a machine's layer profile in `root` and write it; returns the cards."""
    card, tables = fit_system(root, system)
    write_profile(folder, card, tables)
    return [card]
