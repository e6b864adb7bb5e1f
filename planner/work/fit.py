"""Does a model fit a device: buckets, headroom, the largest batch and context, what to shrink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Bytes, Share
from planner.moe_model import MoeModel
from planner.work.buffers import adapter_parameters, deepep_low_latency_bytes
from planner.work.memory import MEMORY, add_memory
from planner.work.sheet import formats_of

Degree = Annotated[int, Field(ge=1, le=65_536)]
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
BF16_BYTES = 2
MOST_SEQUENCES = 1 << 20
MOST_TOKENS = 1 << 27

HINTS = {
    "routed_bytes": "more moe_ep or moe_tp, fewer bits an expert, pruned or merged experts",
    "shared_bytes": "more tp, fewer bits",
    "dense_bytes": "more tp or pp, fewer bits",
    "attention_bytes": "more tp or pp, fewer bits",
    "embedding_bytes": "more tp",
    "redundant_bytes": "fewer redundant experts",
    "kv_bytes": "a smaller batch or context, an 8-bit cache, more tp (not for latent attention)",
    "activation_bytes": "a smaller prefill chunk",
    "buffer_bytes": "fewer tokens a low-latency step, fewer communicators",
    "adapter_bytes": "fewer adapters held at once, a lower rank",
}
"""Bucket: what makes it smaller."""


class Layout(Document):
    """How one worker is laid out and what it holds."""

    tp: Degree = 1
    pp: Degree = 1
    dp: Degree = 1
    moe_tp: Degree = 1
    moe_ep: Degree = 1
    batch: Degree = 1
    """Sequences one data-parallel rank decodes at once."""
    context_tokens: Tokens = 8192
    prefill_tokens: Tokens = 8192
    """Tokens of one prefill chunk."""
    precision: str | None = None
    kv_dtype: str = "bf16"
    redundant_experts: Annotated[int, Field(ge=0, le=4096)] = 0
    low_latency_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Tokens a rank may dispatch in one DeepEP low-latency step; 0: these kernels are not used."""
    context_bytes: Bytes = 4e9
    """Driver context, graphs and collectives; an engine's file has its own."""
    memory_share: Share = 0.9
    """Share of the device that may be filled."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    lora_count: Annotated[int, Field(ge=0, le=100_000)] = 0
    lora_experts: bool = False
    """Adapters reach the routed experts too, not attention alone."""


class MemoryFit(Document):
    """The answer for the fullest device."""

    fits: bool
    buckets: dict[str, float]
    """Bytes by bucket."""
    total_bytes: float
    capacity_bytes: float
    """What may be filled: the device's memory times `memory_share`."""
    headroom_bytes: float
    """Negative when it does not fit."""
    largest_batch: int
    """Sequences of `context_tokens` a rank can hold; 0: none."""
    largest_context_tokens: int
    """Tokens each of `batch` sequences can grow to; 0: none."""
    shrink: str
    """The largest bucket."""
    hint: str
    """What makes it smaller."""
    assumptions: tuple[str, ...] = ()


def fit(model: MoeModel, device_bytes: float, layout: Layout) -> MemoryFit:
    """Size one layout on one device.

    Args:
        model: what is served.
        device_bytes: memory of the device.
        layout: degrees, batch, context, formats and buffers.

    Raises:
        MoesaicError: `invalid` when tp·dp differs from moe_tp·moe_ep or heads cannot be cut.
    """
    _check(model, layout)
    capacity = device_bytes * layout.memory_share
    buckets = _buckets(model, layout)
    total = sum(buckets.values())
    largest = max(buckets, key=buckets.__getitem__)

    def with_batch(value: int) -> bool:
        return _total(model, layout, {"batch": value}) <= capacity

    def with_context(value: int) -> bool:
        return _total(model, layout, {"context_tokens": value}) <= capacity

    tokens = _most(with_context, MOST_TOKENS)
    if model.max_context_tokens is not None:
        tokens = min(tokens, model.max_context_tokens)
    return MemoryFit(
        fits=total <= capacity,
        buckets=buckets,
        total_bytes=total,
        capacity_bytes=capacity,
        headroom_bytes=capacity - total,
        largest_batch=_most(with_batch, MOST_SEQUENCES),
        largest_context_tokens=tokens,
        shrink=largest.removesuffix("_bytes"),
        hint=HINTS[largest],
        assumptions=model.assumptions,
    )


def _check(model: MoeModel, layout: Layout) -> None:
    left, right = layout.tp * layout.dp, layout.moe_tp * layout.moe_ep
    if model.moe is not None and left != right:
        raise MoesaicError(
            "invalid",
            f"tp·dp is {left} and moe_tp·moe_ep is {right}; both are the worker's devices",
            "/moe_ep",
        )  # fmt: skip
    if layout.pp > model.layer_count:
        raise MoesaicError("invalid", f"{layout.pp} stages for {model.layer_count} layers", "/pp")
    experts = 0 if model.moe is None else model.moe.experts + layout.redundant_experts
    if experts % layout.moe_ep:
        raise MoesaicError("invalid", f"moe_ep must divide {experts} experts", "/moe_ep")


def _most(holds: Callable[[int], bool], top: int) -> int:
    """The largest value up to `top` that holds, by halving; 0 when even one does not."""
    if not holds(1):
        return 0
    low, high = 1, 2
    while high <= top and holds(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _total(model: MoeModel, layout: Layout, changes: dict[str, Any]) -> float:
    return sum(_buckets(model, layout.model_copy(update=changes)).values())


def _buckets(model: MoeModel, layout: Layout) -> dict[str, float]:
    """Bytes by bucket: decode holds the cache, the larger of both phases the activations."""
    formats = formats_of(model, layout.precision, layout.kv_dtype)
    shared = layout.model_dump(include={"tp", "pp", "moe_tp", "moe_ep", "context_tokens",
                                        "redundant_experts"})  # fmt: skip
    rows = [
        shared | {"phase": "decode", "batch": float(layout.batch), "new_tokens": 1.0},
        shared | {"phase": "prefill", "batch": 1.0, "new_tokens": float(layout.prefill_tokens)},
    ]
    sized = add_memory(pl.DataFrame(rows), model, formats, layout.context_bytes)
    decode, prefill = sized.select(*MEMORY).iter_rows(named=True)
    found = dict(decode)
    found["activation_bytes"] = max(decode["activation_bytes"], prefill["activation_bytes"])
    found["buffer_bytes"] += _exchange(model, layout)
    found["adapter_bytes"] = _adapters(model, layout)
    return found


def _exchange(model: MoeModel, layout: Layout) -> float:
    if model.moe is None or not layout.low_latency_tokens or layout.moe_ep == 1:
        return 0.0
    experts = model.moe.experts + layout.redundant_experts
    hidden = model.moe.latent or model.hidden
    return deepep_low_latency_bytes(layout.low_latency_tokens, hidden, experts)


def _adapters(model: MoeModel, layout: Layout) -> float:
    if not layout.lora_rank or not layout.lora_count:
        return 0.0
    one = adapter_parameters(model, layout.lora_rank, experts=layout.lora_experts)
    return layout.lora_count * one * BF16_BYTES / (layout.tp * layout.pp)
