"""Which kernel rows to measure: sizes that models have, from latency-bound to ceiling-bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from hwprofiles.kernels import KERNELS, dtype

Case = dict[str, Any]
_WIDE = 192  # key width of DeepSeek-V2/V3 (config.json)
SHAPES = ((2048, 2048), (2048, 6144), (4096, 1536), (1024, 4096), (1536, 512), (768, 2048))
"""(n, k) of projections as 1-30 B models have them (Qwen3, SmallThinker config.json)."""
ROWS = (1, 4, 16, 64, 256, 1024)
EXPERTS = ((2048, 768, 16), (1536, 768, 16), (2048, 512, 8), (768, 2048, 4))
"""(hidden, expert width, experts on the rank), likewise."""
HEADS = ((16, 2, 128), (8, 8, 64), (32, 4, 128), (12, 2, 128))
"""(query heads, key-value heads, head width), likewise."""
ROUTERS = ((2048, 128, 8), (1536, 64, 6), (4096, 8, 2), (7168, 256, 8), (2880, 32, 4))
"""(hidden, experts, top k) of Qwen3-30B-A3B, small fine-grained models, Mixtral-8x7B, DeepSeek-V3,
gpt-oss-20b (config.json)."""
MESSAGES = tuple(2.0**power for power in range(10, 25, 2))
"""Bytes of one rank's buffer."""
STREAMS = (2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)


def cases(
    families: frozenset[str], forms: tuple[str, ...], tiers: tuple[str | None, ...] = ("dram",), *,
    room_bytes: float, quick: bool = False,
) -> list[Case]:  # fmt: skip
    """Kernel rows for a machine, cheapest family first.

    Args:
        families: kernel families the runner can run.
        forms: numeric formats it can run; the first is the one for attention.
        tiers: where copies come from.
        room_bytes: memory a row may take.
        quick: every third row, for a first look.
    """
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "elementwise": lambda: _streams("elementwise", None),
        "copy": lambda: (case for tier in tiers for case in _streams("copy", tier)),
        "gemm": lambda: _gemms(forms),
        "grouped_gemm": lambda: _experts(forms),
        "router": lambda: _routers(forms[0]),
        "attention_decode": lambda: _decodes(forms[0]),
        "attention_prefill": lambda: _prefills(forms[0]),
        "mla_decode": lambda: _latents(forms[0]),
        "mla_prefill": lambda: _latent_prefills(forms[0]),
    }
    found = [
        case
        for family, maker in makers.items()
        if family in families
        for case in maker()
        if footprint_bytes(case) <= room_bytes
    ]
    return found[::3] if quick else found


def disk_cases(room_bytes: float) -> list[Case]:
    """Reads from the local disk, as large as the memory allows up to 1 GiB."""
    sizes = (2**20, 2**24, 2**26, 2**28, 2**30)
    return [{"kernel": "copy", "tier": "ssd", "bytes": float(n)} for n in sizes if n <= room_bytes]


def collective_cases(ranks: int, library: str = "gloo", *, quick: bool = False) -> list[Case]:
    """Collectives of groups of 2 to `ranks` processes of one node, by message size."""
    names = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    found = [
        {"kernel": kernel, "library": library, "devices": devices, "nodes": 1,
         "message_bytes": size}
        for kernel, devices, size in product(names, range(2, ranks + 1), MESSAGES)
    ]  # fmt: skip
    return found[::3] if quick else found


def _streams(kernel: str, tier: str | None) -> Iterator[Case]:
    for size in STREAMS:
        yield {"kernel": kernel, "bytes": float(size), "tier": tier}
        yield {"kernel": kernel, "bytes": float(size * 3 // 2), "tier": tier}


def _gemms(forms: tuple[str, ...]) -> Iterator[Case]:
    for form, (n, k), m in product(forms, SHAPES, ROWS):
        if form == forms[0] or m <= ROWS[2]:
            yield {"kernel": "gemm", "m": m, "n": n, "k": k, "dtype": form}


def _experts(forms: tuple[str, ...]) -> Iterator[Case]:
    """Balanced splits over all experts, and the same tokens on a few of them."""
    for form, (hidden, inter, experts), tokens in product(forms, EXPERTS, (1, 8, 64, 512)):
        if form != forms[0] and tokens > ROWS[2]:
            continue
        for active in sorted({max(1, experts // 4), experts}):
            if tokens * 2 >= active:
                yield {
                    "kernel": "grouped_gemm", "tokens": tokens, "hidden": hidden, "inter": inter,
                    "matrices": 3, "experts": experts, "top_k": 2, "moe_tp": 1, "moe_ep": 1,
                    "busy_ratio": 1.0, "active_experts": active, "dtype": form,
                }  # fmt: skip


def _routers(form: str) -> Iterator[Case]:
    for (hidden, experts, top_k), tokens in product(ROUTERS, (1, 8, 64, 256, 1024)):
        yield {
            "kernel": "router", "tokens": tokens, "hidden": hidden, "experts": experts,
            "top_k": top_k, "dtype": form,
        }  # fmt: skip


def _decodes(form: str) -> Iterator[Case]:
    for (heads, kv_heads, width), batch, seq in product(HEADS, (1, 4, 16), (256, 1024, 4096)):
        yield {
            "kernel": "attention_decode", "batch": batch, "seq": seq, "heads": heads,
            "kv_heads": kv_heads, "head_dim": width, "dtype": form, "kv_dtype": form,
        }  # fmt: skip


def _prefills(form: str) -> Iterator[Case]:
    for (heads, kv_heads, width), seq in product(HEADS, (64, 128, 256, 512, 1024)):
        yield {
            "kernel": "attention_prefill", "batch": 1, "seq": seq, "heads": heads,
            "kv_heads": kv_heads, "head_dim": width, "dtype": form, "kv_dtype": form,
        }  # fmt: skip


def _latents(form: str) -> Iterator[Case]:
    for heads, batch, seq in product((8, 16, 32, 64), (1, 4), (256, 1024, 4096)):
        yield {
            "kernel": "mla_decode", "batch": batch, "seq": seq, "heads": heads,
            "kv_rank": 512, "rope_dim": 64, "dtype": form, "kv_dtype": form,
        }  # fmt: skip


def _latent_prefills(form: str) -> Iterator[Case]:
    for heads, seq in product((4, 8, 16, 32), (64, 128, 256, 512)):
        yield {
            "kernel": "mla_prefill", "batch": 1, "seq": seq, "heads": heads, "dtype": form,
            "kv_dtype": form,
        }  # fmt: skip


def footprint_bytes(case: Case) -> float:
    """Memory that building a case takes, generously."""
    kernel = case["kernel"]
    if kernel not in KERNELS:
        return 0.0
    if "bytes" in case:
        return float(case["bytes"]) * 1.5
    width = max(dtype(case["dtype"]).weight_bytes, dtype(case["dtype"]).activation_bytes)
    return width * 1.5 * _numbers(case)


def _numbers(case: Case) -> float:
    if case["kernel"] == "gemm":
        m, n, k = case["m"], case["n"], case["k"]
        return float(m * k + n * k + m * n)
    if case["kernel"] == "grouped_gemm":
        weights = case["experts"] * case["matrices"] * case["hidden"] * case["inter"]
        pairs = case["tokens"] * case["top_k"]
        return float(weights + pairs * (2 * case["hidden"] + 2 * case["inter"]))
    if case["kernel"] == "router":
        return float(case["tokens"] * (case["hidden"] + 4 * case["experts"])
                     + case["hidden"] * case["experts"])  # fmt: skip
    if case["kernel"] == "mla_decode":
        return float(case["batch"] * case["seq"] * (case["kv_rank"] + case["rope_dim"] + 64))
    cache = case["seq"] * case.get("kv_heads", case["heads"]) * case.get("head_dim", _WIDE)
    scores = case["heads"] * case["seq"] * (case["seq"] if "prefill" in case["kernel"] else 1)
    return float(2 * case["batch"] * (cache + scores))
