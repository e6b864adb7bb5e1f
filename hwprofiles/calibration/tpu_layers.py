"""Fit matrix products of a TPU v6e chip from LLMServingSim's layer times; shapes left out judge.

github casys-kaist/LLMServingSim (MIT), profiler/v0/perf_models/TPU-v6e-1: nanoseconds of each layer
of Llama-3.1-8B in BF16 for 1 to 2,048 tokens; `layers.csv` holds layer_name, input, kv_cache,
tp_size, latency(ns).
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from hwprofiles.calibration.profiles import card_of, write_profile
from hwprofiles.calibration.tables import Fitted, fit_table
from hwprofiles.library import cluster_for

DEVICE, BACKEND = "tpu-v6e", "vllm"
PRODUCTS = {
    "q_proj": (4096, 4096), "o_proj": (4096, 4096), "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096), "down_proj": (4096, 14336), "lm_head": (128256, 4096),
}  # fmt: skip
"""(n, k) of each layer (Llama-3.1-8B, config.json)."""
EVERY = 16
"""Of 2,048 numbers of tokens those that are powers of two or multiples of this are kept."""
ORIGIN = (
    "github casys-kaist/LLMServingSim @ 5daddb21, profiler/v0/perf_models/TPU-v6e-1, products of "
    "Llama-3.1-8B by hwprofiles/calibration/tpu_layers.py"
)
PUBLISHED = datetime.date(2026, 8, 21)


def read_products(path: Path) -> pl.DataFrame:
    """Products as kernel rows with seconds; of layers of one shape the faster."""
    sides = pl.DataFrame(
        [{"layer_name": name, "n": float(n), "k": float(k)} for name, (n, k) in PRODUCTS.items()]
    )
    tokens = pl.col("input")
    return (
        pl.read_csv(path)
        .join(sides, on="layer_name")
        .filter((tokens % EVERY == 0) | tokens.is_in([1, 2, 4, 8]))
        .select(
            pl.lit("gemm").alias("kernel"), pl.lit("bf16").alias("dtype"),
            tokens.cast(pl.Float64).alias("m"), "n", "k",
            (pl.col("latency(ns)") * 1e-9).alias("seconds"),
        )
        .filter(pl.col("seconds") > 0)
        .group_by("kernel", "dtype", "m", "n", "k", maintain_order=True)
        .agg(pl.col("seconds").min())
    )  # fmt: skip


def fit_tpu(path: Path) -> tuple[dict[str, Any], list[Fitted]]:
    """Fit the table; returns the profile's card and its table."""
    table = fit_table(read_products(path), {"dtype": "bf16"}, cluster_for(DEVICE), path.name)
    return card_of([table], (DEVICE, BACKEND), (ORIGIN, PUBLISHED)), [table]


def write_tpu(path: Path, folder: Path) -> Path:
    """Write the profile; returns the card's path."""
    return write_profile(folder, *fit_tpu(path))
