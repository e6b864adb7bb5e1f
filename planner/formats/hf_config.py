"""Read a Hugging Face `config.json` as a model: plain data in, never code, nothing guessed.

A family is one entry of `hf_families.yaml`. The reader finds sizes by role, decides layer by layer
what stands there, and writes down every default that is not in the file. An unknown model_type is
refused unless the caller says `assume`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from hwprofiles.document import invalid
from hwprofiles.errors import MoesaicError
from planner.formats.hf_families import find_family, roles_of
from planner.formats.hf_fields import MAX_LAYERS, Fields
from planner.formats.hf_formats import weight_formats
from planner.formats.hf_layers import moe_mask, single_parts, token_mixers
from planner.formats.hf_parts import Parts
from planner.formats.hf_special import SPECIAL_STACKS
from planner.formats.hf_stack import LayerPlan, build_kinds, mtp_plan
from planner.moe_model import MoeModel

ASSUMED_ROLES = ("hidden", "layers", "vocab", "heads", "kv_heads", "head_dim", "v_head_dim",
                 "ffn_width", "experts", "top_k", "expert_width", "shared_experts", "shared_width",
                 "latent", "groups", "top_groups", "window", "mtp")  # fmt: skip
"""Roles whose field is named when a family is not known."""
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")


def read_config(
    data: Mapping[str, Any],
    *,
    name: str,
    quant: Mapping[str, Any] | None = None,
    assume: bool = False,
) -> MoeModel:
    """Read one config.

    Args:
        data: the plain JSON object of `config.json`.
        name: what the model is called.
        quant: `hf_quant_config.json` beside it.
        assume: read an unknown model_type by its field names; each assumption is listed.

    Returns:
        The model, with `assumptions` naming every default taken.

    Raises:
        MoesaicError: `invalid` with the field's path; `outside_evidence` for unknown families.
    """
    if not isinstance(data, dict):
        raise MoesaicError("invalid", "a config is one JSON object", "/")
    inner, pointer, types = _inner(data)
    family, model_type = find_family(types, assume=assume)
    fields = Fields(inner, roles_of(family), pointer)
    notes: list[str] = []
    if not family.types:
        notes += _assumed(fields, model_type)
    try:
        parts = Parts(fields, family, notes)
        special = SPECIAL_STACKS.get(family.name)
        plans = special(parts) if special else _plans(parts)
        return _model(parts, plans, {"name": name, "family": model_type}, (data, quant))
    except ValidationError as error:
        raise invalid(error, "config") from error


def _assumed(fields: Fields, model_type: str) -> list[str]:
    """Everything taken for granted of a family that is not known, one sentence each."""
    found = ((role, fields.find(role)) for role in ASSUMED_ROLES)
    read = [f"{role.replace('_', ' ')} read from {at[0]}" for role, at in found if at is not None]
    return [
        f"model_type {model_type!r} is not known: read by its field names",
        *read,
        "a decoder; every feed-forward block is gated, three matrices",
        "no biases and no norms of queries and keys but those that flags name",
        "two norms a layer; layers hold experts unless a field says otherwise",
    ]


def _inner(data: dict[str, Any]) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """The object that holds the language model, its place, and the model types to try."""
    inner, pointer = data, ""
    types = [data.get("model_type")]
    for name in (*NESTED, *NESTED):
        child = inner.get(name)
        if isinstance(child, dict) and any(key in child for key in ("hidden_size", *NESTED)):
            inner, pointer = child, f"{pointer}/{name}"
            types.insert(0, child.get("model_type"))
    words = [word for word in types if word is not None]
    for word in words:
        if not isinstance(word, str):
            raise MoesaicError("invalid", f"model_type is {str(word)[:40]!r}", "/model_type")
    return inner, pointer, tuple(words)


def _plans(parts: Parts) -> list[LayerPlan]:
    """Mixer word and feed-forward word of every layer, and how many norms it has."""
    fields, family = parts.fields, parts.family
    if family.single_part_layers:
        return [LayerPlan(mixer, ffn, norms=family.norms) for mixer, ffn in single_parts(fields)]
    layers = layer_count(fields)
    mixers = token_mixers(fields, family, layers)
    mixers = _marked(fields, mixers)
    experts = _experts_count(parts)
    mask = moe_mask(fields, layers) if experts > 1 else [False] * layers
    return [
        LayerPlan(mixer, "moe" if routed else "dense", norms=family.norms)
        for mixer, routed in zip(mixers, mask, strict=True)
    ]


def layer_count(fields: Fields) -> int:
    """Layers of the stack.

    Raises:
        MoesaicError: `invalid`, at the field, for none or more than `MAX_LAYERS`.
    """
    count = fields.size("layers")
    if count > MAX_LAYERS:
        found = fields.find("layers")
        raise fields.error(found[0] if found else "layers", f"{count} layers; at most {MAX_LAYERS}")
    return count


def _experts_count(parts: Parts) -> int:
    """Routed experts, zero for a dense model; a config half of each is an error."""
    fields = parts.fields
    if fields.data.get("enable_moe_block") is False:
        return 0
    return fields.optional("experts")


def _marked(fields: Fields, mixers: list[str]) -> list[str]:
    """Mark attention layers that reuse an index, read blocks, compress or borrow a cache."""
    layers = len(mixers)
    ratios = fields.each("compress_ratios", layers)
    if ratios is not None:
        return [f"compress-{fields.whole('compress_ratios', ratio, 0)}" for ratio in ratios]
    indexers = fields.each("indexer_types", layers)
    if indexers is not None:
        mixers = ["reuse" if word == "shared" else mixer
                  for word, mixer in zip(indexers, mixers, strict=True)]  # fmt: skip
    sparse = fields.child("sparse_attention_config")
    flags = sparse.each("sparse_attention_freq", layers) if sparse is not None else None
    if flags is not None:
        mixers = ["sparse" if flag else mixer for flag, mixer in zip(flags, mixers, strict=True)]
    return [f"{mixer}-borrow" if lent else mixer
            for mixer, lent in zip(mixers, _borrowing(fields, layers), strict=True)]  # fmt: skip


def _borrowing(fields: Fields, layers: int) -> list[bool]:
    """Which layers read an earlier layer's cache: the last ones, or all but each n-th (CLA)."""
    if fields.flag("use_cla", default=False):
        every = fields.size("cla_share_factor")
        return [index % every != 0 for index in range(layers)]
    borrowed = fields.optional("num_kv_shared_layers")
    return [index >= layers - borrowed for index in range(layers)]


def _model(
    parts: Parts,
    plans: list[LayerPlan],
    called: dict[str, str],
    documents: tuple[Mapping[str, Any], Mapping[str, Any] | None],
) -> MoeModel:
    fields, family, notes = parts.fields, parts.family, parts.notes
    data, quant = documents
    kinds, names = build_kinds(parts, plans)
    mtp_layers, mtp_kind = mtp_plan(parts, plans, kinds)
    vocab = fields.size("vocab")
    if data.get("auto_map") or fields.data.get("auto_map"):
        parts.note("auto_map names code that was not read or run")
    for tower in ("vision_config", "audio_config"):
        if isinstance(data.get(tower), dict):
            parts.note(f"{tower}: its tower is not counted, only the language model")
    weights = weight_formats(parts, kinds, names, (data, quant))
    return MoeModel.parse(
        {
            **called,
            "hidden": parts.hidden,
            "vocab": vocab,
            "tied_embeddings": _tied(data, parts),
            "position_rows": (fields.optional("context") or 0) if family.positions else 0,
            "norm_bias": family.norm_bias,
            "extra_parameters": vocab * fields.flag("head_bias", default=family.head_bias),
            "kinds": kinds,
            "layers": [{"kind": name, "count": len(list(run))} for name, run in groupby(names)],
            "mtp_layers": mtp_layers,
            "mtp_kind": mtp_kind,
            "weights": weights,
            "max_context_tokens": _context(parts),
            "assumptions": tuple(notes),
        },
        what="config",
    )


def _context(parts: Parts) -> int | None:
    found = parts.fields.find("context")
    if found is None:
        return None
    name, value = found
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise parts.fields.error(name, f"{str(value)[:40]!r} is no number of tokens")
    return value


def _tied(data: Mapping[str, Any], parts: Parts) -> bool:
    """Whether output and embedding are one matrix; the outer object may say it for the inner."""
    if parts.fields.find("tied") is not None:
        return parts.fields.flag("tied", default=False)
    outer = data.get("tie_word_embeddings")
    if isinstance(outer, bool):
        return outer
    tied = parts.family.tied
    parts.note(f"tie_word_embeddings is absent: {'tied' if tied else 'two matrices'}, as the "
               "family's code has it")  # fmt: skip
    return tied
