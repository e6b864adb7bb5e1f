"""Which layer is what: attention, window, state or nothing; experts, one dense block or nothing.

Every rule answers from fields that a config has; the first rule whose fields are there decides.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.formats.hf_families import Family
from planner.formats.hf_fields import Fields

MIXER_WORDS = {
    "full_attention": "full", "attention": "full", "full": "full", "global": "full",
    "deepseek_sparse_attention": "full", "sparse_attention": "full", "hybrid": "full",
    "sliding_attention": "sliding", "sliding": "sliding", "chunked_attention": "sliding",
    "local": "sliding", "linear_attention": "linear", "kda": "linear", "linear": "linear",
    "mamba": "mamba", "mamba2": "mamba", "conv": "conv", "short_conv": "conv",
}  # fmt: skip
"""Words of `layer_types` and the mixer they mean."""

PATTERN_LETTERS = {
    "M": ("mamba", "none"), "*": ("full", "none"), "E": ("none", "moe"), "-": ("none", "dense"),
}  # fmt: skip
"""Letters of `hybrid_override_pattern` (Nemotron-H)."""

BLOCK_WORDS = {
    "mamba": ("mamba", "none"), "attention": ("full", "none"), "moe": ("none", "moe"),
    "mlp": ("none", "dense"),
}  # fmt: skip
"""Words of `layers_block_type` where a layer is a single part."""


def single_parts(fields: Fields) -> list[tuple[str, str]]:
    """Mixer and feed-forward of stacks whose layers hold one part each (Nemotron-H)."""
    pattern = fields.text("hybrid_override_pattern")
    if pattern is not None:
        return [_part(fields, "hybrid_override_pattern", PATTERN_LETTERS, part) for part in pattern]
    words = fields.data.get("layers_block_type")
    if not isinstance(words, list) or not words:
        raise fields.error("layers_block_type", "neither a pattern nor a list says what layers are")
    return [_part(fields, "layers_block_type", BLOCK_WORDS, word) for word in words]


def _part(
    fields: Fields, name: str, table: dict[str, tuple[str, str]], word: object
) -> tuple[str, str]:
    if not isinstance(word, str) or word not in table:
        raise fields.error(name, f"{str(word)[:40]!r} is no known part; known: {', '.join(table)}")
    return table[word]


def token_mixers(fields: Fields, family: Family, layers: int) -> list[str]:
    """Name what mixes tokens in each layer: full, sliding, linear, mamba, conv.

    Raises:
        MoesaicError: `invalid` for lists of the wrong length or words that are not known.
    """
    for rule in MIXER_RULES:
        found = rule(fields, layers)
        if found is not None:
            return found
    return _window_rule(fields, family, layers)


def _by_layer_types(fields: Fields, layers: int) -> list[str] | None:
    for name in ("layer_types", "layers_block_type"):
        words = fields.each(name, layers)
        if words is not None:
            unknown = [word for word in words if word not in MIXER_WORDS]
            if unknown:
                raise fields.error(name, f"{str(unknown[0])[:40]!r} is no known layer type")
            return [MIXER_WORDS[word] for word in words]
    return None


def _by_swa_list(fields: Fields, layers: int) -> list[str] | None:
    for name in ("hybrid_layer_pattern", "sliding_window_layout"):
        flags = fields.each(name, layers)
        if flags is not None:
            return ["sliding" if flag else "full" for flag in flags]
    return None


def _by_attn_type_list(fields: Fields, layers: int) -> list[str] | None:
    flags = fields.each("attn_type_list", layers)
    return None if flags is None else ["full" if flag else "linear" for flag in flags]


def _by_linear_config(fields: Fields, layers: int) -> list[str] | None:
    """Kimi-Linear lists its layers from one."""
    inner = fields.child("linear_attn_config")
    if inner is None:
        return None
    linear = inner.indices("kda_layers", layers)
    if linear is None:
        raise inner.error("kda_layers", "linear_attn_config does not list its kda_layers")
    wanted = set(linear)
    return ["linear" if i + 1 in wanted else "full" for i in range(layers)]


def _every(fields: Fields, layers: int, name: str, others: str) -> list[str] | None:
    """Every n-th layer sees all tokens, the others are `others`."""
    period = fields.maybe(name)
    if period is None:
        return None
    return ["full" if (i + 1) % period == 0 else others for i in range(layers)]


def _by_interval(fields: Fields, layers: int) -> list[str] | None:
    return _every(fields, layers, "full_attention_interval", "linear")


def _by_group_size(fields: Fields, layers: int) -> list[str] | None:
    return _every(fields, layers, "layer_group_size", "linear")


def _by_global_every(fields: Fields, layers: int) -> list[str] | None:
    return _every(fields, layers, "global_attn_every_n_layers", "sliding")


def _by_pattern_number(fields: Fields, layers: int) -> list[str] | None:
    """`sliding_window_pattern`: 4, or letters like "LLLG"."""
    value = fields.data.get("sliding_window_pattern")
    if isinstance(value, str) and value and set(value) <= {"L", "G"}:
        return ["full" if value[i % len(value)] == "G" else "sliding" for i in range(layers)]
    return _every(fields, layers, "sliding_window_pattern", "sliding")


def _by_attention_period(fields: Fields, layers: int) -> list[str] | None:
    """Jamba: one attention layer in each period, Mamba elsewhere."""
    period = fields.maybe("attn_layer_period")
    if period is None:
        return None
    offset = fields.optional("attn_layer_offset")
    return ["full" if i % period == offset else "mamba" for i in range(layers)]


def _by_full_indices(fields: Fields, layers: int) -> list[str] | None:
    """LFM2: attention at the listed layers, short convolutions elsewhere."""
    wanted = fields.indices("full_attn_idxs", layers)
    return None if wanted is None else ["full" if i in wanted else "conv" for i in range(layers)]


def _by_chunks(fields: Fields, layers: int) -> list[str] | None:
    """Llama-4: 1 in `no_rope_layers` marks layers with rotary position, which see one chunk."""
    flags = fields.data.get("no_rope_layers")
    if not flags:
        return None
    words = fields.each("no_rope_layers", layers) or []
    return ["sliding" if flag else "full" for flag in words]


MIXER_RULES: tuple[Callable[[Fields, int], list[str] | None], ...] = (
    _by_layer_types, _by_swa_list, _by_attn_type_list, _by_linear_config, _by_interval,
    _by_group_size, _by_global_every, _by_attention_period, _by_full_indices, _by_chunks,
    _by_pattern_number,
)  # fmt: skip


def _window_rule(fields: Fields, family: Family, layers: int) -> list[str]:
    """One window for all, for the upper layers (`max_window_layers`), alternating, or none."""
    if fields.find("window") is None or family.window_never:
        return ["full"] * layers
    if family.window_alternates:
        return ["full" if (i + 1) % family.window_alternates == 0 else "sliding"
                for i in range(layers)]  # fmt: skip
    if fields.flag("use_sliding_window", default=family.window_always):
        first = fields.optional("max_window_layers")
        return ["sliding" if i >= first else "full" for i in range(layers)]
    return ["full"] * layers


def moe_mask(fields: Fields, layers: int) -> list[bool]:
    """Say for each layer whether it routes to experts.

    Raises:
        MoesaicError: `invalid` for lists of the wrong length, words or numbers out of range.
    """
    for rule in MOE_RULES:
        found = rule(fields, layers)
        if found is not None:
            return found
    return [True] * layers


def _moe_words(fields: Fields, layers: int) -> list[bool] | None:
    words = fields.each("mlp_layer_types", layers)
    if words is None:
        return None
    known = {"sparse": True, "moe": True, "dense": False, "mlp": False}
    for word in words:
        if word not in known:
            raise fields.error("mlp_layer_types", f"{str(word)[:40]!r}; known: dense, sparse")
    return [known[word] for word in words]


def _moe_freq_list(fields: Fields, layers: int) -> list[bool] | None:
    value = fields.data.get("moe_layer_freq")
    flags = fields.each("moe_layer_freq", layers) if isinstance(value, list) else None
    return None if flags is None else [bool(flag) for flag in flags]


def _moe_indices(fields: Fields, layers: int) -> list[bool] | None:
    for name in ("moe_layers", "moe_layers_enum", "moe_layer_indices"):
        wanted = fields.indices(name, layers) if fields.data.get(name) else None
        if wanted is not None:
            return [i in wanted for i in range(layers)]
    return None


def _moe_interleave(fields: Fields, layers: int) -> list[bool] | None:
    step = fields.maybe("interleave_moe_layer_step")
    return None if step is None else [(i + 1) % step == 0 for i in range(layers)]


def _moe_period(fields: Fields, layers: int) -> list[bool] | None:
    period = fields.maybe("expert_layer_period")
    if period is None:
        return None
    offset = fields.optional("expert_layer_offset")
    return [i % period == offset for i in range(layers)]


def _moe_range(fields: Fields, layers: int) -> list[bool] | None:
    """ERNIE: from start to end, each `moe_layer_interval`-th; the end counts, -1 is the last."""
    if fields.find("moe_layer_start_index") is None:
        return None
    start = fields.optional("moe_layer_start_index")
    last = fields.data.get("moe_layer_end_index")
    end = layers - 1 if last in (None, -1) else fields.optional("moe_layer_end_index")
    step = fields.optional("moe_layer_interval", 1) or 1
    return [start <= i <= end and (i + 1) % step == 0 for i in range(layers)]


def _moe_first(fields: Fields, layers: int) -> list[bool] | None:
    """The first layers are dense, then each `moe_layer_freq`-th routes."""
    names = ("first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped", "num_dense")
    first = next(
        (fields.optional(name) for name in names if fields.data.get(name) is not None), None
    )
    step = fields.optional("moe_layer_frequency") or fields.optional("moe_layer_freq") or None
    if first is None and step is None:
        return None
    if first is not None and first > layers:
        raise fields.error(names[0], f"{first} dense layers in a stack of {layers}")
    start, every = first or 0, step or 1
    return [i >= start and i % every == 0 for i in range(layers)]


def _moe_step(fields: Fields, layers: int) -> list[bool] | None:
    """Qwen: every `decoder_sparse_step`-th layer, but not those of `mlp_only_layers`."""
    only = fields.indices("mlp_only_layers", layers)
    step = fields.maybe("decoder_sparse_step")
    if only is None and step is None:
        return None
    dense, every = set(only or ()), step or 1
    return [i not in dense and (i + 1) % every == 0 for i in range(layers)]


MOE_RULES: tuple[Callable[[Fields, int], list[bool] | None], ...] = (
    _moe_words, _moe_freq_list, _moe_indices, _moe_interleave, _moe_period, _moe_range,
    _moe_first, _moe_step,
)  # fmt: skip
"""Rules by which configs say which layers hold experts, the most explicit first."""
