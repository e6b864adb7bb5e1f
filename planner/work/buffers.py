"""Bytes beside weights and cache: exchange buffers, collective buffers, adapters."""

from __future__ import annotations

from planner.moe_model import MoeModel
from planner.parameters import attention_parameters

BF16_BYTES = 2
HEADER_BYTES = 16
SCALE_BYTES = 4
FP8_GROUP = 128
HALVES = 2
"""Low-latency buffers are doubled: one half is filled while the other is read."""
HCCL_BUFFER_BYTES = 200 * 2**20
"""Each of send and receive, a communicator (CANN documentation, HCCL_BUFFSIZE, default 200 MB)."""


def deepep_low_latency_bytes(tokens: int, hidden: int, experts: int) -> float:
    """Registered buffer of DeepEP's low-latency kernels on one rank.

    Every rank may send `tokens` tokens to each expert; the receive side holds a slot for each. The
    layout is read off DeepEP's csrc/config.hpp (`LowLatencyLayout`, 2025): two halves of a send
    buffer, a receive buffer and flags.

    >>> round(deepep_low_latency_bytes(128, 7168, 288) / 2**30, 2)
    1.97

    Args:
        tokens: most tokens a rank dispatches in one step.
        hidden: token width.
        experts: routed experts of a layer, redundant copies included.
    """
    dispatch = HEADER_BYTES + max(hidden * BF16_BYTES, hidden + hidden / FP8_GROUP * SCALE_BYTES)
    combine = hidden * BF16_BYTES
    send = max(tokens * dispatch, experts * tokens * combine)
    receive = experts * tokens * max(dispatch, combine)
    return HALVES * (send + receive + experts * SCALE_BYTES)


def hccl_bytes(communicators: int, buffer_bytes: float = HCCL_BUFFER_BYTES) -> float:
    """Send and receive buffers of so many HCCL communicators."""
    return 2.0 * communicators * buffer_bytes


def adapter_parameters(model: MoeModel, rank: int, *, experts: bool) -> float:
    """Parameters of one LoRA adapter on attention, and on every routed expert if asked.

    Each matrix of m x n gets r·(m + n) (arXiv:2106.09685); attention counts as four square-ish
    matrices of the same total size, which is exact for multi-head attention.
    """
    total = 0.0
    for name, layers in model.kind_counts().items():
        kind = model.kinds[name]
        size = attention_parameters(kind.attention, model.hidden)
        total += layers * rank * (4 * model.hidden + size / model.hidden if size else 0)
    moe = model.moe
    if experts and moe is not None:
        inner = moe.latent or model.hidden
        pair = moe.matrices * rank * (inner + moe.width)
        total += len(model.moe_layers) * moe.experts * pair
    return total
