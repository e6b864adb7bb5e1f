"""Weigh a checkpoint's modules by size to say in which format each bucket is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.formats.hf_parts import Parts
from planner.formats.hf_quantization import PLAIN, Mean, Scheme, kv_format, read_scheme
from planner.moe_model import (
    DenseFfn,
    GqaAttention,
    LayerKind,
    MlaAttention,
    MoeFfn,
    WeightFormats,
)
from planner.parameters import attention_parameters, mixer_parameters

ROUTED = ("mlp.experts.0.down_proj",)
SHARED = ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj")
DENSE = ("mlp.down_proj",)
BUCKETS = ("routed", "shared", "dense", "attention")
Modules = list[tuple[str, tuple[str, ...], float]]


def weight_formats(
    parts: Parts,
    kinds: Mapping[str, LayerKind],
    names: list[str],
    documents: tuple[Mapping[str, Any], Mapping[str, Any] | None],
) -> WeightFormats:
    """Stored formats by bucket; a bucket of several formats also gets its mean bytes.

    Args:
        parts: the config's fields and its family.
        kinds: layer kinds by name.
        names: kind of every layer in order.
        documents: config.json and hf_quant_config.json, the latter may be none.
    """
    data, quant = documents
    config = parts.fields.data.get("quantization_config") or data.get("quantization_config") or {}
    plain = _plain(parts, data)
    if not isinstance(config, dict):
        raise parts.fields.error("quantization_config", "it is no object")
    scheme = read_scheme(config, quant, plain)
    fields = _fields(parts, scheme, kinds, names)
    if parts.fields.data.get("expert_dtype") == "fp4" and scheme.default == "fp8_block":
        fields["routed"] = fields["routed"] if scheme.listed else "mxfp4"
    fields |= {"embedding": plain, "kv_cache": kv_format(config, quant)}
    head = scheme.listed.get("lm_head", {}).get("*")
    return WeightFormats(**fields, head=head)


def _plain(parts: Parts, data: Mapping[str, Any]) -> str:
    """Format of what is not quantised."""
    for source in (parts.fields.data, data):
        for key in ("torch_dtype", "dtype"):
            word = source.get(key)
            if isinstance(word, str) and word.removeprefix("torch.") in PLAIN:
                return PLAIN[word.removeprefix("torch.")]
    parts.note("no torch_dtype: plain weights are taken as bf16")
    return "bf16"


def _fields(
    parts: Parts, scheme: Scheme, kinds: Mapping[str, LayerKind], names: list[str]
) -> dict[str, Any]:
    only_routed = scheme.default == "mxfp4" and not scheme.listed
    if scheme.uniform:
        stored = scheme.default or scheme.plain
        others = scheme.plain if only_routed else stored
        return {"routed": stored, "shared": others, "dense": others, "attention": others}
    means = {bucket: Mean() for bucket in BUCKETS}
    rules: dict[tuple[str, ...], Any] = {}
    for name, where in _layers_of(names).items():
        for bucket, suffixes, parameters in _modules(parts, kinds[name]):
            if suffixes not in rules:
                rules[suffixes] = [scheme.rules(suffix) for suffix in suffixes]
            _weigh(scheme, means[bucket], (where, rules[suffixes], parameters))
    found: dict[str, Any] = {bucket: mean.main or scheme.plain for bucket, mean in means.items()}
    mixed = {bucket: mean.mean_bytes for bucket, mean in means.items() if mean.mean_bytes}
    for bucket in mixed:
        parts.note(f"{bucket}: layers or modules differ in format; their mean bytes are weighed")
    return found | {"mean_bytes": mixed}


def _layers_of(names: list[str]) -> dict[str, list[int]]:
    """Indices of the layers of each kind."""
    layers: dict[str, list[int]] = {}
    for layer, name in enumerate(names):
        layers.setdefault(name, []).append(layer)
    return layers


def _weigh(scheme: Scheme, mean: Mean, module: tuple[list[int], list[Any], float]) -> None:
    """Count one module of every layer in `where`; one sum where no rule speaks of it."""
    where, rules, parameters = module
    if not any(any(rule) for rule in rules):
        mean.add(scheme.default or scheme.plain, parameters * len(where))
        return
    for layer in where:
        mean.add(_one(scheme, layer, rules), parameters)


def _one(scheme: Scheme, layer: int, rules: list[Any]) -> str:
    """A module known by several names is an exception under any of them."""
    usual = scheme.default or scheme.plain
    for rule in rules:
        stored = scheme.stored(layer, rule)
        if stored != usual:
            return stored
    return usual


def _modules(parts: Parts, kind: LayerKind) -> Modules:
    """Bucket, names and parameters of one layer's matrices."""
    names = parts.family.modules
    hidden = parts.hidden
    modules = _attention_modules(kind, hidden, names.get("mixer", ()))
    if isinstance(kind.ffn, DenseFfn):
        size = float(kind.ffn.matrices * hidden * kind.ffn.width)
        modules.append(("dense", names.get("dense", DENSE), size))
    if isinstance(kind.ffn, MoeFfn):
        width_in = kind.ffn.latent or hidden
        one = kind.ffn.matrices * width_in * kind.ffn.width
        modules.append(("routed", names.get("routed", ROUTED), one * kind.ffn.experts))
        size = float(kind.ffn.matrices * hidden * kind.ffn.shared_width)
        if size:
            modules.append(("shared", names.get("shared", SHARED), size))
    return modules


def _attention_modules(kind: LayerKind, hidden: int, prefixes: tuple[str, ...]) -> Modules:
    if kind.mixer is not None:
        mixer = float(mixer_parameters(kind.mixer, hidden))
        out = ("linear_attn.out_proj", "mixer.out_proj", "mamba.out_proj")
        return [("attention", prefixes or out, mixer)]
    part = kind.attention
    if part is None:
        return []
    if isinstance(part, MlaAttention):
        return _mla_modules(part, hidden)
    size = float(attention_parameters(part, hidden))
    if not isinstance(part, GqaAttention):
        return [("attention", ("attn.wq_a", "self_attn.o_proj"), size)]
    return [("attention", ("self_attn.o_proj", "mixer.o_proj"), size)]


def _mla_modules(part: MlaAttention, hidden: int) -> Modules:
    queries = part.heads * part.qk_head_dim
    heads = part.kv_lora_rank * part.heads * (part.qk_nope_head_dim + part.v_head_dim)
    out = part.heads * part.v_head_dim * hidden
    latent = hidden * (part.kv_lora_rank + part.qk_rope_head_dim)
    rank = part.q_lora_rank
    sizes = {
        "self_attn.q_a_proj": hidden * (rank or 0),
        "self_attn.q_b_proj" if rank else "self_attn.q_proj": queries * (rank or hidden),
        "self_attn.kv_a_proj_with_mqa": latent,
        "self_attn.kv_b_proj": heads,
        "self_attn.o_proj": out,
    }
    rest = attention_parameters(part, hidden) - sum(sizes.values())
    sizes["self_attn.indexer.wq_b"] = rest
    return [("attention", (name,), float(size)) for name, size in sizes.items() if size > 0]
