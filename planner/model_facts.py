"""What is known of one model in plain fields: structure, parameters, cache and weight bytes."""

from __future__ import annotations

from typing import Any

from planner.moe_model import MoeModel
from planner.parameters import count_parameters, kv_bytes_per_token, mtp_bytes, weight_bytes

KV_DTYPES = ("bf16", "fp8", "int8", "nvfp4")


def model_facts(model: MoeModel) -> dict[str, Any]:
    """State a model's sizes.

    `weight_bytes` counts block scales; its `total` is what the checkpoint stores, multi-token
    prediction included. `kv_bytes_per_token` is one token at full context, all layers, no window
    applied. Expert fields are zero for a dense model.
    """
    count = count_parameters(model)
    stored = weight_bytes(model) | {"mtp": mtp_bytes(model)}
    moe = model.moe
    return {
        "name": model.name,
        "family": model.family,
        "layers": model.layer_count,
        "moe_layers": len(model.moe_layers),
        "hidden": model.hidden,
        "experts": moe.experts if moe else 0,
        "top_k": moe.top_k if moe else 0,
        "expert_width": moe.width if moe else 0,
        "shared_experts": moe.shared_experts if moe else 0,
        "params_total": count.total,
        "params_active": count.active,
        "params_routed": count.routed,
        "params_attention": count.attention,
        "params_embedding": count.embedding,
        "kv_bytes_per_token": {name: kv_bytes_per_token(model, name) for name in KV_DTYPES},
        "weight_bytes": stored | {"total": sum(stored.values())},
        "assumptions": list(model.assumptions),
        "sources": list(model.sources),
    }
