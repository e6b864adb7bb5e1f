"""Read the measured tables of the aiconfigurator-core package as kernel rows with seconds.

The package (Apache-2.0) ships parquet files under
`systems/data/<system>/<family>/<framework>/<version>/*_perf.parquet`. Names and units differ by
file; this is the only place that knows them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.timing.skew import busiest_of

PACKAGE = "aiconfigurator-core"
PACKAGE_VERSION = "0.12.0"
SYSTEMS = {
    "a100_sxm": "a100-sxm-80g",
    "l40s": "l40s",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
"""System folders: our device names."""
FORMATS = {
    "bfloat16": "bf16",
    "half": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "int4_wo": "w4a16",
    "w4a16_mxfp4": "w4a16_mxfp4",
    "w4a8_mxfp4_mxfp8": "w4a8_mxfp4",
}
"""Their formats: ours. Rows in any other format are left out and counted."""
NEWER_SHARE = 0.5
"""A version is used with every newer one until it alone holds this share of the largest's rows."""
HALF_BYTES = 2
"""Their message sizes are counted in elements of two bytes."""
MULTI_NODE = ("h100_sxm", "0.5.6.post2")
"""The one table with several nodes; the same file under h200_sxm is a copy of it."""


@dataclass(frozen=True)
class Source:
    """Measured rows of one file kind: kernel rows with `seconds`, and where they come from."""

    kernel: str
    origin: str
    rows: pl.DataFrame
    dropped_count: int
    """Rows with zero, negative or missing times, or in a format without a name here."""


def data_root(folder: Path | None = None) -> Path:
    """Folder `systems/data` of the installed package, or below the folder given.

    Raises:
        MoesaicError: `invalid` when neither is there.
    """
    if folder is not None:
        if not folder.is_dir():
            raise MoesaicError("invalid", f"{folder} is no folder of measured tables")
        return folder
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise MoesaicError(
            "invalid",
            f"{PACKAGE} is not installed; `pip install moesaic[aiconfigurator]` brings it",
        )
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


def read_system(root: Path, system: str, framework: str) -> Iterator[Source]:
    """Every usable table of one system and engine (`trtllm`, `sglang`, `vllm` or `nccl`).

    Raises:
        MoesaicError: `unknown_name` for a system that is not in `SYSTEMS`.
    """
    if system not in SYSTEMS:
        raise unknown_name("system", system, SYSTEMS)
    for reader in READERS:
        folder = root / system / reader.family / framework
        paths = _versions(folder, reader.file)
        if paths:
            raw = pl.concat([pl.read_parquet(p) for p in paths], how="diagonal_relaxed")
            origin = ", ".join(str(path.relative_to(root)) for path in paths)
            yield from _sources(reader, raw, origin)
    if framework == "sglang" and system in {"h100_sxm", "h200_sxm"}:
        yield from _multi_node(root)


@dataclass(frozen=True)
class Reader:
    """One kind of file: where it lies and how its columns become kernel rows."""

    family: str
    file: str
    convert: Callable[[pl.DataFrame], pl.DataFrame]


def _versions(folder: Path, file: str) -> list[Path]:
    """Newest version, and older ones until one is a full table; newest first."""
    found = folder.glob(f"*/{file}.parquet")
    paths = sorted(found, key=lambda path: _order(path.parent.name), reverse=True)
    paths = [p for p in paths if p.parent.name != MULTI_NODE[1]]
    counts = [pl.scan_parquet(p).select(pl.len()).collect().item() for p in paths]
    chosen = []
    for path, count in zip(paths, counts, strict=True):
        chosen.append(path)
        if count >= NEWER_SHARE * max(counts):
            break
    return chosen


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _sources(reader: Reader, raw: pl.DataFrame, origin: str) -> Iterator[Source]:
    rows = reader.convert(raw)
    good = rows.filter(
        pl.col("seconds").is_finite() & (pl.col("seconds") > 0) & pl.col("dtype").is_not_null()
    )
    keys = [c for c in good.columns if c not in ("seconds", "kernel")]
    for (kernel,), part in good.group_by("kernel", maintain_order=True):
        fastest = part.group_by("kernel", *keys, maintain_order=True).agg(pl.col("seconds").min())
        yield Source(str(kernel), origin, fastest, rows.height - good.height)


def _format(column: str) -> pl.Expr:
    return pl.col(column).replace_strict(FORMATS, default=None, return_dtype=pl.String)


def _seconds() -> pl.Expr:
    return (pl.col("latency") * 1e-3).alias("seconds")


def _gemm(raw: pl.DataFrame) -> pl.DataFrame:
    return raw.select(
        pl.lit("gemm").alias("kernel"), _format("gemm_dtype").alias("dtype"), "m", "n", "k",
        _seconds(),
    )  # fmt: skip


def _attention(kernel: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def convert(raw: pl.DataFrame) -> pl.DataFrame:
        window = pl.col("window_size") if "window_size" in raw.columns else pl.lit(0)
        return raw.select(
            pl.lit(kernel).alias("kernel"),
            _format("attn_dtype").alias("dtype"), _format("kv_cache_dtype").alias("kv_dtype"),
            pl.col("batch_size").alias("batch"), (pl.col("isl") + pl.col("step")).alias("seq"),
            pl.col("num_heads").alias("heads"), pl.col("num_key_value_heads").alias("kv_heads"),
            "head_dim", pl.when(window > 0).then(window).alias("window"), _seconds(),
        )  # fmt: skip

    return convert


def _mla(kernel: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def convert(raw: pl.DataFrame) -> pl.DataFrame:
        return raw.select(
            pl.lit(kernel).alias("kernel"),
            _format("mla_dtype").alias("dtype"), _format("kv_cache_dtype").alias("kv_dtype"),
            pl.col("batch_size").alias("batch"), (pl.col("isl") + pl.col("step")).alias("seq"),
            pl.col("num_heads").alias("heads"), _seconds(),
        )  # fmt: skip

    return convert


_EXPONENT = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}


def _moe(raw: pl.DataFrame) -> pl.DataFrame:
    plain = pl.col("kernel_source").str.contains("nongated")
    rows = raw.select(
        pl.lit("grouped_gemm").alias("kernel"), _format("moe_dtype").alias("dtype"),
        pl.col("num_tokens").alias("tokens"), pl.col("hidden_size").alias("hidden"),
        pl.col("inter_size").alias("inter"), pl.col("topk").alias("top_k"),
        pl.col("num_experts").alias("experts"), pl.col("moe_tp_size").alias("moe_tp"),
        pl.col("moe_ep_size").alias("moe_ep"),
        pl.when(plain).then(2.0).otherwise(3.0).alias("matrices"),
        pl.col("distribution").replace_strict(_EXPONENT, default=None, return_dtype=pl.Float64)
        .alias("skew_alpha"),
        _seconds(),
    ).drop_nulls("skew_alpha")  # fmt: skip
    load = ("skew_alpha", "tokens", "top_k", "experts", "moe_ep")
    busy, active = busiest_of([rows[c].to_numpy().astype(float) for c in load])
    return rows.with_columns(
        pl.Series("busy_ratio", np.round(busy, 6)), pl.Series("active_experts", np.round(active, 6))
    )


_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}


def _collectives(library: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def convert(raw: pl.DataFrame) -> pl.DataFrame:
        if "nccl_dtype" in raw.columns:
            raw = raw.filter(pl.col("nccl_dtype") == "half")
        name = pl.col("op_name").replace_strict(_COLLECTIVES, default="all_reduce")
        return raw.select(
            name.alias("kernel"), pl.lit("bf16").alias("dtype"), pl.lit(library).alias("library"),
            pl.col("num_gpus").alias("devices"),
            (pl.col("message_size") * HALF_BYTES).alias("message_bytes"), _seconds(),
        )  # fmt: skip

    return convert


def _deepep(library: str, fields: tuple[str, str]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """DeepEP tables hold dispatch and combine side by side, in microseconds; fastest SM count."""

    def convert(raw: pl.DataFrame) -> pl.DataFrame:
        per_node = pl.when(pl.col("device").str.contains("GB")).then(4).otherwise(8)
        parts = [
            raw.select(
                pl.lit(kernel).alias("kernel"), pl.lit("any").alias("dtype"),
                pl.lit(library).alias("library"), pl.col("node_num").alias("nodes"),
                (pl.col("node_num") * per_node).alias("devices"),
                pl.col("num_token").alias("tokens"), pl.col("hidden_size").alias("hidden"),
                pl.col("num_topk").alias("top_k"), pl.col("num_experts").alias("experts"),
                (pl.col(field) * 1e-6).alias("seconds"),
            )
            for kernel, field in zip(("moe_dispatch", "moe_combine"), fields, strict=True)
        ]  # fmt: skip
        return pl.concat(parts)

    return convert


_LL = _deepep("deepep_low_latency", ("dispatch_avg_t_us", "combine_avg_t_us"))
_NORMAL = _deepep("deepep_normal", ("dispatch_transmit_us", "combine_transmit_us"))


def _multi_node(root: Path) -> Iterator[Source]:
    system, version = MULTI_NODE
    for kind, convert in (("ll", _LL), ("normal", _NORMAL)):
        file = f"wideep_deepep_{kind}_perf"
        path = root / system / "comm" / "sglang" / version / f"{file}.parquet"
        if path.exists():
            raw = pl.read_parquet(path).filter(pl.col("node_num") > 1)
            yield from _sources(Reader("comm", file, convert), raw, str(path.relative_to(root)))


_A2A_LIBRARY = {
    "trtllm_deepep_ht": "deepep_normal",
    "trtllm_deepep_ll": "deepep_low_latency",
    "deepep_ht": "deepep_normal",
    "deepep_ll": "deepep_low_latency",
}


def _a2a(raw: pl.DataFrame) -> pl.DataFrame:
    return raw.select(
        ("moe_" + pl.col("phase")).alias("kernel"),
        pl.col("comm_dtype").replace_strict({**FORMATS, "default": "any"}, default=None)
        .alias("dtype"),
        pl.col("comm_backend").replace(_A2A_LIBRARY).alias("library"),
        pl.col("node_num").alias("nodes"), pl.col("ep_size").alias("devices"),
        pl.col("num_tokens").alias("tokens"), pl.col("hidden_size").alias("hidden"),
        pl.col("topk").alias("top_k"), pl.col("num_experts").alias("experts"),
        (pl.col("latency") * 1e-6).alias("seconds"),
    )  # fmt: skip


_NVLINK = {"NVLinkOneSided": "nvlink_one_sided", "NVLinkTwoSided": "nvlink_two_sided"}
_NVLINK_PHASE = {"alltoall_dispatch": "moe_dispatch", "alltoall_combine": "moe_combine"}


def _nvlink(raw: pl.DataFrame) -> pl.DataFrame:
    ranks = pl.col("moe_ep_size")
    return raw.filter(pl.col("op_name").is_in(list(_NVLINK_PHASE))).select(
        pl.col("op_name").replace(_NVLINK_PHASE).alias("kernel"),
        _format("moe_dtype").alias("dtype"),
        pl.col("kernel_source").replace(_NVLINK).alias("library"),
        pl.lit(1).alias("nodes"), ranks.alias("devices"),
        pl.col("num_tokens").alias("tokens"), pl.col("hidden_size").alias("hidden"),
        pl.col("topk").alias("top_k"), pl.col("num_experts").alias("experts"), _seconds(),
    )  # fmt: skip


READERS = (
    Reader("gemm", "gemm_perf", _gemm),
    Reader("attention", "context_attention_perf", _attention("attention_prefill")),
    Reader("attention", "generation_attention_perf", _attention("attention_decode")),
    Reader("mla", "context_mla_perf", _mla("mla_prefill")),
    Reader("mla", "generation_mla_perf", _mla("mla_decode")),
    Reader("moe", "moe_perf", _moe),
    Reader("comm", "custom_allreduce_perf", _collectives("custom")),
    Reader("comm", "wideep_deepep_ll_perf", _LL),
    Reader("comm", "wideep_deepep_normal_perf", _NORMAL),
    Reader("comm", "moe_a2a_perf", _a2a),
    Reader("comm", "trtllm_alltoall_perf", _nvlink),
)
"""Kinds of files that hold kernels of ours."""
NCCL = Reader("comm", "nccl_perf", _collectives("nccl"))


def read_nccl(root: Path, system: str) -> Iterator[Source]:
    """NCCL collectives of one system, the same for every engine."""
    paths = _versions(root / system / "comm" / "nccl", NCCL.file)[:1]
    for path in paths:
        yield from _sources(NCCL, pl.read_parquet(path), str(path.relative_to(root)))
