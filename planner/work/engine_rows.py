"""Rows that an engine adds to a work sheet where it runs an expert block as separate kernels.

NVIDIA's measured expert tables hold sorting, both products and the weighted sum in one row. Ascend
runs MoeGatingTopK, MoeInitRouting, GroupedMatmul, DequantSwigluQuant, GroupedMatmul and
MoeFinalizeRouting one after the other (torch_npu's operators, CANN documentation).
"""

from __future__ import annotations

import polars as pl

from planner.work.rows import SHEET

BF16_BYTES, INT8_BYTES, FP32_BYTES = 2, 1, 4
STAGE = "permute"


def with_drafts(sheet: pl.DataFrame, points: pl.DataFrame, layers: int) -> pl.DataFrame:
    """Add what multi-token prediction runs beside the checked pass: one layer and a head a draft.

    A pass that checks drafts has `new_tokens` - 1 of them for each sequence (DeepSeek-V3, section
    2.2; CloudMatrix384, arXiv:2506.12708, section 4.2.4).
    """
    drafts = points.filter((pl.col("phase") == "decode") & (pl.col("new_tokens") > 1)).select(
        "point", (pl.col("new_tokens") - 1).alias("_drafts")
    )
    if drafts.is_empty():
        return sheet
    joined = sheet.join(drafts, on="point", how="left", maintain_order="left")
    count = pl.col("_drafts").fill_null(0.0)
    more = pl.when(pl.col("stage") == "head").then(count / (1 + count)).otherwise(count / layers)
    return joined.with_columns(pl.col("repeat_count") * (1 + more)).drop("_drafts")


def with_separate_kernels(sheet: pl.DataFrame) -> pl.DataFrame:
    """Add what moves between the kernels of each expert block, on the busiest rank."""
    routed = sheet.filter((pl.col("stage") == "experts") & (pl.col("kernel") == "grouped_gemm"))
    ranks = pl.col("moe_ep").fill_null(1.0)
    pairs = pl.col("tokens") * pl.col("top_k") / ranks * pl.col("busy_ratio").fill_null(1.0)
    inner = pl.col("inter") / pl.col("moe_tp").fill_null(1.0)
    moved = (
        pl.col("tokens") / ranks * pl.col("experts") * FP32_BYTES,  # scores to chosen experts
        pairs * pl.col("hidden") * (BF16_BYTES + INT8_BYTES),  # tokens in expert order, quantised
        pairs * inner * (2 * BF16_BYTES + INT8_BYTES),  # gate times up, quantised again
        pairs * pl.col("hidden") * 2 * BF16_BYTES,  # what the second product leaves, and reads
        pairs * pl.col("hidden") * BF16_BYTES,  # weighted sum of a token's experts
    )
    added = [
        routed.select(
            "point", "repeat_count", pl.lit(STAGE).alias("stage"),
            pl.lit("elementwise").alias("kernel"), size.cast(SHEET["bytes"]).alias("bytes"),
        )
        for size in moved
    ]  # fmt: skip
    return pl.concat([sheet, *added], how="diagonal")
