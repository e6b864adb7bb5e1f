"""Stacks no list of layer words describes: two blocks a layer, two stacks, widths by block."""

from __future__ import annotations

from collections.abc import Callable

from planner.formats.hf_fields import Fields
from planner.formats.hf_parts import Parts
from planner.formats.hf_stack import LayerPlan

WIDTH_MULTIPLE = 256


def shortcut_stack(parts: Parts) -> list[LayerPlan]:
    """LongCat-Flash: each layer holds attention and a dense block twice, experts beside the first.

    It is written as two layers, the first with the dense block as a shared expert: the same weights
    and the same cache.
    """
    fields = parts.fields
    layers = fields.size("layers")
    width = fields.size("ffn_width")
    parts.note(f"{layers} layers with two attention parts each are described as {2 * layers}")
    return [LayerPlan("full", "moe", width=width), LayerPlan("full", "dense")] * layers


def block_stack(parts: Parts) -> list[LayerPlan]:
    """Nemotron-NAS: `block_configs` says attention heads and width layer by layer."""
    blocks = parts.fields.data.get("block_configs")
    if not isinstance(blocks, list) or not blocks:
        raise parts.fields.error("block_configs", "it is not a list of one object a layer")
    return [_block(parts, index, block) for index, block in enumerate(blocks)]


def _block(parts: Parts, index: int, block: object) -> LayerPlan:
    fields = Fields(
        block if isinstance(block, dict) else {}, parts.fields.roles,
        f"{parts.fields.pointer}/block_configs/{index}",
    )  # fmt: skip
    attention, ffn = fields.child("attention"), fields.child("ffn")
    if attention is None or ffn is None:
        raise fields.error("attention", "a block needs its attention and its ffn")
    square = parts.hidden * parts.hidden
    linear = (_flag(attention, "replace_with_linear"), _flag(ffn, "replace_with_linear"))
    no_attention = _flag(attention, "no_op") or linear[0]
    no_ffn = _flag(ffn, "no_op") or linear[1]
    return LayerPlan(
        "none" if no_attention else "full",
        "none" if no_ffn else "dense",
        norms=2 - _flag(attention, "no_op") - _flag(ffn, "no_op"),
        width=None if no_ffn else _block_width(parts, ffn),
        kv_heads=None if no_attention else _block_kv_heads(parts, attention),
        extra=square * sum(linear),
    )


def _flag(fields: Fields, name: str) -> bool:
    return fields.flag(name, default=False)


def _block_width(parts: Parts, ffn: Fields) -> int:
    """Llama's rule: two thirds of the multiple, up to a multiple of 256."""
    multiple = ffn.number("ffn_mult")
    if multiple is None:
        return ffn.size("intermediate_size")
    width = int(2 * multiple * parts.hidden / 3)
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def _block_kv_heads(parts: Parts, attention: Fields) -> int:
    heads = parts.fields.size("heads")
    group = attention.size("n_heads_in_group")
    if heads % group:
        raise attention.error("n_heads_in_group", f"{group} must divide heads {heads}")
    return heads // group


def two_stacks(parts: Parts) -> list[LayerPlan]:
    """T5 and Switch: an encoder, then a decoder with cross attention; some layers route.

    The first layer of each stack has the relative-position table.
    """
    fields = parts.fields
    buckets = fields.size("relative_attention_num_buckets") * fields.size("heads")
    stacks = (
        (fields.size("layers"), _sparse_step(fields, "sparse_encoder", "layers"), True),
        (
            fields.optional("decoder_layers") or fields.size("layers"),
            _sparse_step(fields, "sparse_decoder", "decoder_layers"),
            False,
        ),
    )
    parts.note("the final norm of the encoder is counted with its last layer")
    plans = []
    for count, step, encoder in stacks:
        for index in range(count):
            routed = bool(step) and index % step == 1 % step
            last = encoder and index == count - 1
            plans.append(
                LayerPlan(
                    "full",
                    "moe" if routed else "dense",
                    norms=(2 if encoder else 3) + last,
                    extra=buckets if index == 0 else 0,
                    encoder=encoder,
                    cross=not encoder,
                )
            )
    return plans


def _sparse_step(fields: Fields, sparse: str, layers: str) -> int:
    """Every how many layers one routes."""
    count = fields.optional(sparse)
    if not count or fields.optional("experts") == 0:
        return 0
    return (fields.optional(layers) or fields.size("layers")) // count


SPECIAL_STACKS: dict[str, Callable[[Parts], list[LayerPlan]]] = {
    "longcat_flash": shortcut_stack,
    "nemotron_nas": block_stack,
    "t5": two_stacks,
}
"""Family: how its stack is laid out, where no list of layer words says it."""
