"""The kernel row: the one word that planner and hardware profiles both speak.

A row is one kernel on one device (the busiest of its group), or one collective of a group. It holds
sizes only, never seconds. `KERNEL_ROW` is the schema; columns that a kernel does not use are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name

KERNEL_ROW: dict[str, type[pl.DataType]] = {
    "kernel": pl.String,  # a key of KERNELS
    "dtype": pl.String,  # a key of DTYPES: what the arithmetic runs in
    "library": pl.String,  # collective or exchange library; null: the backend's usual one
    "m": pl.Float64,  # gemm: rows (tokens)
    "n": pl.Float64,  # gemm: columns of the weight
    "k": pl.Float64,  # gemm: inner width
    "tokens": pl.Float64,  # grouped_gemm: tokens entering the layer, all ranks; dispatch: per rank
    "hidden": pl.Float64,
    "inter": pl.Float64,  # expert width before moe_tp cuts it
    "matrices": pl.Float64,  # weight matrices of one expert: 3 gated, 2 plain
    "experts": pl.Float64,  # routed experts of the layer, all ranks, redundant copies included
    "top_k": pl.Float64,
    "moe_tp": pl.Float64,
    "moe_ep": pl.Float64,
    "busy_ratio": pl.Float64,  # busiest rank's token-expert pairs over the mean; 1 = balanced
    "active_experts": pl.Float64,  # experts with at least one token on the busiest rank
    "batch": pl.Float64,  # attention: sequences
    "seq": pl.Float64,  # prefill: new tokens a sequence; decode: tokens in the cache
    "past": pl.Float64,  # prefill: cached tokens before the new ones
    "queries": pl.Float64,  # decode: new tokens a sequence and step (1, more with MTP)
    "heads": pl.Float64,  # query heads on this device
    "kv_heads": pl.Float64,
    "head_dim": pl.Float64,
    "v_head_dim": pl.Float64,  # value width; null: head_dim
    "kv_rank": pl.Float64,  # mla: width of the shared latent
    "rope_dim": pl.Float64,  # mla: width of the shared rotary key
    "window": pl.Float64,  # tokens a query sees; null: all
    "kv_dtype": pl.String,
    "devices": pl.Float64,  # collective: ranks in the group
    "nodes": pl.Float64,  # nodes the group spans
    "ranks_reached": pl.Float64,  # exchange: distinct ranks that hold a token's experts
    "nodes_reached": pl.Float64,  # exchange: distinct nodes, where routing keeps to few
    "message_bytes": pl.Float64,  # collective: bytes in one rank's buffer
    "bytes": pl.Float64,  # elementwise, copy: bytes read plus written
    "tier": pl.String,  # copy: memory tier the bytes come from
}

KERNELS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k", "dtype"),
    "grouped_gemm": (
        "tokens", "hidden", "inter", "matrices", "experts", "top_k", "moe_tp", "moe_ep",
        "busy_ratio", "dtype",
    ),
    "router": ("tokens", "hidden", "experts", "top_k", "dtype"),
    "attention_prefill": ("batch", "seq", "heads", "kv_heads", "head_dim", "dtype", "kv_dtype"),
    "attention_decode": ("batch", "seq", "heads", "kv_heads", "head_dim", "dtype", "kv_dtype"),
    "mla_prefill": ("batch", "seq", "heads", "dtype", "kv_dtype"),
    "mla_decode": ("batch", "seq", "heads", "dtype", "kv_dtype"),
    "elementwise": ("bytes",),
    "copy": ("bytes", "tier"),
    "all_reduce": ("devices", "message_bytes"),
    "all_gather": ("devices", "message_bytes"),
    "reduce_scatter": ("devices", "message_bytes"),
    "all_to_all": ("devices", "message_bytes"),
    "send_recv": ("devices", "message_bytes"),
    "moe_dispatch": ("devices", "tokens", "hidden", "top_k", "experts", "dtype"),
    "moe_combine": ("devices", "tokens", "hidden", "top_k", "experts", "dtype"),
}  # fmt: skip
"""Every kernel family with the columns it must fill."""

EXCHANGES = ("moe_dispatch", "moe_combine")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")


@dataclass(frozen=True)
class Dtype:
    """Bytes a number takes and the arithmetic it runs in.

    `weight_bytes` and `activation_bytes` count block scales; `compute` names the peak it uses.
    """

    weight_bytes: float
    activation_bytes: float
    compute: str


_BLOCK_128_SCALE = 4 / 128**2  # fp32 scale for each 128 x 128 block, DeepSeek-V3 config
_TOKEN_128_SCALE = 4 / 128  # fp32 scale for each 128 activations of a token
_NVFP4_SCALE = 1 / 16  # one fp8 scale for 16 numbers, NVIDIA NVFP4 format
_MXFP4_SCALE = 1 / 32  # one e8m0 scale for 32 numbers, OCP MX format 1.0
_GROUP_128_SCALE = 2 / 128  # fp16 scale for each 128 weights of a column
_Q4_K_M_BYTES = 4.83 / 8  # DeepSeek-R1 671B Q4_K_M: 404.4 GB of 671 B weights (unsloth GGUF files)

DTYPES: dict[str, Dtype] = {
    "fp32": Dtype(4, 4, "fp32"),
    "bf16": Dtype(2, 2, "bf16"),
    "fp16": Dtype(2, 2, "fp16"),
    "fp8": Dtype(1, 1, "fp8"),
    "fp8_block": Dtype(1 + _BLOCK_128_SCALE, 1 + _TOKEN_128_SCALE, "fp8"),
    "int8": Dtype(1, 1, "int8"),
    "w16a32": Dtype(2, 4, "int16"),
    "w8a16": Dtype(1, 2, "bf16"),
    "w4a16": Dtype(0.5 + _GROUP_128_SCALE, 2, "bf16"),
    "w4a8": Dtype(0.5 + _GROUP_128_SCALE, 1, "int8"),
    "nvfp4": Dtype(0.5 + _NVFP4_SCALE, 0.5 + _NVFP4_SCALE, "fp4"),
    "mxfp4": Dtype(0.5 + _MXFP4_SCALE, 0.5 + _MXFP4_SCALE, "fp4"),
    "mxfp8": Dtype(1 + _MXFP4_SCALE, 1 + _MXFP4_SCALE, "fp8"),
    "w4a8_mxfp4": Dtype(0.5 + _MXFP4_SCALE, 1 + 1 / 32, "fp8"),
    "w4a16_mxfp4": Dtype(0.5 + _MXFP4_SCALE, 2, "bf16"),
    "q4_0": Dtype(18 / 32, 2, "bf16"),
    "q8_0": Dtype(34 / 32, 2, "bf16"),
    "q4_0_dot": Dtype(18 / 32, 34 / 32, "int8"),
    "q8_0_dot": Dtype(34 / 32, 34 / 32, "int8"),
    "q4_k_m": Dtype(_Q4_K_M_BYTES, 2, "bf16"),
    "q4_k_m_wide": Dtype(_Q4_K_M_BYTES, 4, "fp32"),
}
"""Numeric formats by the field's names; Q4_0, Q8_0 as in ggml (18, 34 bytes for 32 weights).

`q4_0_dot` and `q8_0_dot` are the same weights in integer dot products with Q8_0 activations, as
ggml's processor kernels run them (ggml-cpu/quants.c).
`q4_k_m_wide` is Q4_K_M computed in fp32 vectors, as processors without matrix units do."""


def dtype(name: str) -> Dtype:
    """Look a format up by name, or say which are known."""
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def kernel_rows(rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    """Build a kernel table from plain rows; absent columns become null.

    Raises:
        MoesaicError: `invalid` for an unknown column, `unknown_name` for an unknown kernel.
    """
    for row in rows:
        unknown = set(row) - set(KERNEL_ROW)
        if unknown:
            raise MoesaicError("invalid", f"kernel row has unknown fields {sorted(unknown)}")
        if row.get("kernel") not in KERNELS:
            raise unknown_name("kernel", str(row.get("kernel")), KERNELS, "/kernel")
    return pl.DataFrame([dict(row) for row in rows], schema=KERNEL_ROW)
