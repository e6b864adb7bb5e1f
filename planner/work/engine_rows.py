"""Rows that an engine adds to a work sheet where it runs an expert block as separate kernels.

NVIDIA's measured expert tables hold sorting, both products and the weighted sum in one row. Ascend
runs MoeGatingTopK, MoeInitRouting, GroupedMatmul, DequantSwigluQuant, GroupedMatmul and
MoeFinalizeRouting one after the other (torch_npu's operators, CANN documentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.work.rows import Array, Part, write_rows

BF16_BYTES, INT8_BYTES, FP32_BYTES = 2, 1, 4
STAGE = "permute"


def with_drafts(parts: Sequence[Part], layers: int) -> list[Part]:
    """Add what multi-token prediction runs beside the checked pass: one layer and a head a draft.

    A pass that checks drafts has `new_tokens` - 1 of them for each sequence (DeepSeek-V3, section
    2.2; CloudMatrix384, arXiv:2506.12708, section 4.2.4).
    """
    found = []
    for part in parts:
        points = part.points
        count = np.where(points.decoding, np.maximum(points["new_tokens"] - 1, 0.0), 0.0)
        more = count / (1 + count) if part.texts["stage"] == "head" else count / layers
        runs = part.number("repeat_count") * (1 + more)
        found.append(replace(part, numbers={**part.numbers, "repeat_count": runs}))
    return found


def with_separate_kernels(parts: Sequence[Part]) -> list[Part]:
    """Add what moves between the kernels of each expert block, on the busiest rank."""
    routed = [part for part in parts if part.texts["kernel"] == "grouped_gemm"]
    moved = [_moved(part) for part in routed]
    added = [
        write_rows(part.points, STAGE, "elementwise", part.number("repeat_count"), bytes=sizes[i])
        for i in range(MOVES)
        for part, sizes in zip(routed, moved, strict=True)
    ]
    return [*parts, *added]


MOVES = 5
"""Tensors that move between the kernels of an expert block."""


def _moved(part: Part) -> tuple[Array, ...]:
    tokens, hidden, ranks = (part.number(name) for name in ("tokens", "hidden", "moe_ep"))
    pairs = tokens * part.number("top_k") / ranks * part.number("busy_ratio")
    inner = part.number("inter") / part.number("moe_tp")
    return (
        tokens / ranks * part.number("experts") * FP32_BYTES,  # scores to chosen experts
        pairs * hidden * (BF16_BYTES + INT8_BYTES),  # tokens in expert order, quantised
        pairs * inner * (2 * BF16_BYTES + INT8_BYTES),  # gate times up, quantised again
        pairs * hidden * 2 * BF16_BYTES,  # what the second product leaves, and reads
        pairs * hidden * BF16_BYTES,  # weighted sum of a token's experts
    )
