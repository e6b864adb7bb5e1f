"""From layer plans to the kinds of layer a model document names."""

from __future__ import annotations

from typing import Any, NamedTuple

from planner.formats.hf_parts import Parts
from planner.moe_model import LayerKind


class LayerPlan(NamedTuple):
    """What one layer is to hold, in words.

    `mixer` is a word of `Parts.mixer`, `ffn` is moe, dense or none; `width` and `kv_heads` replace
    the config's own where layers differ; `extra` counts weights no part describes.
    """

    mixer: str
    ffn: str
    norms: int = 2
    width: int | None = None
    kv_heads: int | None = None
    extra: int = 0
    encoder: bool = False
    cross: bool = False
    lone: bool = False
    """A routed block without the dense block that stands beside it elsewhere."""


def build_kinds(parts: Parts, plans: list[LayerPlan]) -> tuple[dict[str, LayerKind], list[str]]:
    """Build each distinct layer once.

    Returns:
        Kinds by name, and the name of every layer in order.
    """
    kinds: dict[str, LayerKind] = {}
    named: dict[LayerPlan, str] = {}
    for plan in plans:
        if plan not in named:
            name = _name(plan, plans, set(kinds))
            named[plan] = name
            kinds[name] = build_kind(parts, plan)
    return kinds, [named[plan] for plan in plans]


def build_kind(parts: Parts, plan: LayerPlan) -> LayerKind:
    """One layer as a document."""
    attention, mixer = parts.mixer(plan.mixer)
    changes: dict[str, Any] = {}
    if attention is not None and plan.kv_heads is not None:
        changes = {"kv_heads": plan.kv_heads}
        attention = attention.model_copy(update=changes)
    ffn = None
    if plan.ffn == "dense":
        ffn = parts.dense(plan.width)
    routed = parts.experts() if plan.ffn == "moe" else None
    if routed is not None and plan.width is not None:
        routed = routed.model_copy(update={"shared_experts": 1, "shared_width": plan.width})
    return LayerKind(
        attention=attention, ffn=routed or ffn, mixer=mixer, norms=plan.norms,
        cross_attention=plan.cross, encoder=plan.encoder,
        extra_parameters=plan.extra + hyper_connections(parts),
    )  # fmt: skip


def _name(plan: LayerPlan, plans: list[LayerPlan], taken: set[str]) -> str:
    mixers = {other.mixer for other in plans}
    words = [] if len(mixers) == 1 or plan.mixer == "none" else [plan.mixer]
    words += [] if plan.ffn == "none" else [plan.ffn]
    name = "-".join(words) or "empty"
    number = 2
    unique = name
    while unique in taken:
        unique = f"{name}-{number}"
        number += 1
    return unique


def hyper_connections(parts: Parts) -> int:
    """Weights that mix `hc_mult` residual streams around both parts of a layer (DeepSeek-V4).

    Each part reads mult·hidden numbers and makes (2 + mult)·mult mixing weights, as many biases and
    three scales.
    """
    mult = parts.fields.optional("hc_mult") if parts.family.hyper_connections else 0
    if not mult:
        return 0
    mixes = (2 + mult) * mult
    return 2 * (mixes * mult * parts.hidden + mixes + 3)


def mtp_plan(
    parts: Parts, plans: list[LayerPlan], kinds: dict[str, LayerKind]
) -> tuple[int, str | None]:
    """Multi-token-prediction modules and the kind they copy: like the last layer of the stack.

    Where layers hold single parts, a module is attention plus experts (`mtp_layers_block_type`).
    """
    fields, needed = parts.fields, parts.family.mtp_needs
    count = fields.optional("mtp")
    if not count or (needed and fields.data.get(needed) is False):
        return 0, None
    if parts.family.single_part_layers:
        kinds["mtp"] = build_kind(parts, LayerPlan("full", "moe", norms=2))
        return count, "mtp"
    ratios = fields.data.get("compress_ratios")
    mixer = "full"
    if isinstance(ratios, list):
        last = ratios[len(plans)] if len(ratios) > len(plans) else 0
        mixer = f"compress-{fields.whole('compress_ratios', last, 0)}"
    plan = LayerPlan(mixer, plans[-1].ffn, norms=plans[-1].norms)
    parts.note("multi-token-prediction modules are sized like the last layer, with full attention")
    for name, kind in kinds.items():
        if kind == build_kind(parts, plan):
            return count, name
    kinds["mtp"] = build_kind(parts, plan)
    return count, "mtp"
