"""How many parameters a model has, by bucket: the self-check of every imported config."""

from __future__ import annotations

from hwprofiles.document import Document
from hwprofiles.kernels import dtype
from planner.moe_model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GqaAttention,
    LayerKind,
    LinearAttention,
    MambaMixer,
    MlaAttention,
    MoeFfn,
    MoeModel,
    ShortConv,
)


class ParameterCount(Document):
    """Parameters by bucket; `active` is what one token touches, both embeddings counted."""

    routed: int
    shared: int
    dense: int
    """Feed-forward of dense layers."""
    attention: int
    router: int
    projection: int
    """Shared projections of DCCA blocks."""
    embedding: int
    """Input embedding and, unless tied, the head."""
    norms: int
    mtp: int
    """Stored beside the model, in neither total nor active."""
    vision: int = 0
    """Image and audio towers, stored beside the language model, in neither total nor active."""
    routed_active: int

    @property
    def total(self) -> int:
        """All parameters of the model, MTP modules excluded."""
        return self.routed + self._always

    @property
    def active(self) -> int:
        """Parameters that one token runs through."""
        return self.routed_active + self._always

    @property
    def _always(self) -> int:
        parts = (self.shared, self.dense, self.attention, self.router, self.projection)
        return sum(parts) + self.embedding + self.norms


def attention_parameters(attention: Attention | None, hidden: int) -> int:
    """Weights of one attention part, biases and inner norms included."""
    if attention is None:
        return 0
    if isinstance(attention, MlaAttention):
        return _mla(attention, hidden)
    if isinstance(attention, CompressedAttention):
        return _compressed(attention, hidden)
    return _gqa(attention, hidden)


def _gqa(part: GqaAttention, hidden: int) -> int:
    query = part.heads * part.head_dim
    key = part.kv_heads * part.head_dim * part.owns_kv
    value = part.kv_heads * part.value_dim * (part.owns_kv and not part.shared_kv)
    out = part.heads * part.value_dim
    rank = part.query_rank
    asked = hidden * query if rank is None else rank * (hidden + query + 1)
    weights = asked + hidden * (query * part.output_gate + key + value + out)
    biases = (query + key + value) * part.qkv_bias + hidden * part.output_bias
    gates = part.heads * (hidden * part.head_gate + part.sinks)
    return weights + biases + gates + _qk_norms(part, query, key) + _block_indexer(part, hidden)


def _qk_norms(part: GqaAttention, query: int, key: int) -> int:
    if not part.qk_norm:
        return 0
    return query + key if part.qk_norm_full else part.head_dim * (1 + part.owns_kv)


def _block_indexer(part: GqaAttention, hidden: int) -> int:
    """Block-sparse attention: index queries, one index key, a norm each (MiniMax-M3 config)."""
    if part.index_heads is None or part.index_head_dim is None:
        return 0
    return hidden * part.index_head_dim * (part.index_heads + 1) + 2 * part.index_head_dim


def _compressed(part: CompressedAttention, hidden: int) -> int:
    """DeepSeek-V4: low-rank queries, one shared key-value head, grouped low-rank output."""
    query = part.heads * part.head_dim
    queries = part.q_lora_rank * (hidden + query + 1)
    output = query * part.output_rank + part.output_groups * part.output_rank * hidden
    keys = hidden * part.head_dim + part.head_dim
    return queries + keys + output + part.heads + _compressor(part, hidden)


def _compressor(part: CompressedAttention, hidden: int) -> int:
    """Key and gate projections, a position table and a norm; twice as wide where windows overlap.

    Source: DeepSeek-V4 reference (ratio 4 overlaps neighbouring windows, ratio 128 does not).
    """
    if not part.compress_ratio:
        return 0
    overlap = 1 + (part.index_topk is not None)

    def one(width: int) -> int:
        return overlap * width * (2 * hidden + part.compress_ratio) + width

    if part.index_heads is None or part.index_head_dim is None:
        return one(part.head_dim)
    index = part.q_lora_rank * part.index_heads * part.index_head_dim + hidden * part.index_heads
    return one(part.head_dim) + one(part.index_head_dim) + index


def mixer_parameters(mixer: LinearAttention | MambaMixer | ShortConv | None, hidden: int) -> int:
    """Weights of a layer part that keeps a state instead of a cache."""
    if mixer is None:
        return 0
    if isinstance(mixer, ShortConv):
        return hidden * (4 * hidden + mixer.conv_kernel)
    if isinstance(mixer, MambaMixer):
        return _mamba_1(mixer, hidden) if mixer.version == 1 else _mamba_2(mixer, hidden)
    return LINEAR[mixer.variant](mixer, hidden)


def _mamba_1(part: MambaMixer, hidden: int) -> int:
    """Mamba, arXiv:2312.00752, section 3.4; Jamba adds three norms on dt, B and C."""
    scan = part.inner * (part.dt_rank + 2 * part.state) + part.dt_rank * part.inner + part.inner
    convolution = part.inner * (part.conv_kernel + part.conv_bias)
    norms = (part.dt_rank + 2 * part.state) * part.inner_norms
    return 3 * hidden * part.inner + scan + convolution + part.inner * (part.state + 1) + norms


def _mamba_2(part: MambaMixer, hidden: int) -> int:
    """Mamba-2, arXiv:2405.21060, section 7: one projection for z, x, B, C and dt."""
    convolved = part.inner + 2 * part.groups * part.state
    projection = hidden * (part.inner + convolved + part.heads)
    convolution = convolved * (part.conv_kernel + part.conv_bias)
    return (
        projection + convolution + 3 * part.heads
        + part.inner * part.inner_norms + part.inner * hidden
    )  # fmt: skip


def _gated_delta(part: LinearAttention, hidden: int) -> int:
    """Gated DeltaNet as in Qwen3-Next: q, k, v, z; beta and decay a head; a convolution."""
    key, value = part.key_heads * part.key_dim, part.value_heads * part.value_dim
    projections = hidden * (2 * key + 2 * value + 2 * part.value_heads)
    convolution = (2 * key + value) * part.conv_kernel
    return projections + convolution + 2 * part.value_heads + part.value_dim + value * hidden


def _kda(part: LinearAttention, hidden: int) -> int:
    """Kimi delta attention, arXiv:2510.26692: low-rank decay and output gate, beta a head."""
    width = part.value_heads * part.value_dim
    low_rank = (hidden + width) * part.value_dim
    gate = hidden * width if part.full_rank_gate else low_rank
    gates = low_rank + gate + hidden * part.value_heads
    small = 3 * width * part.conv_kernel + part.value_heads + width + part.value_dim
    return 4 * hidden * width + gates + small


def _lightning(part: LinearAttention, hidden: int) -> int:
    """Lightning attention, arXiv:2501.08313: q, k, v, output gate, output, a norm."""
    width = part.value_heads * part.value_dim
    return 5 * hidden * width + width


LINEAR = {"gated_delta": _gated_delta, "kda": _kda, "lightning": _lightning}
"""Linear-attention variant: rule that counts its weights."""


def _mla(part: MlaAttention, hidden: int) -> int:
    query = part.heads * part.qk_head_dim
    rank = part.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query + 1)
    latent = hidden * (part.kv_lora_rank + part.qk_rope_head_dim) + part.kv_lora_rank
    heads = part.kv_lora_rank * part.heads * (part.qk_nope_head_dim + part.v_head_dim)
    out = part.heads * part.v_head_dim * hidden
    gate = out * part.output_gate
    return queries + latent + heads + out + gate + _indexer(part, hidden)


def _indexer(part: MlaAttention, hidden: int) -> int:
    """DeepSeek-V3.2's lightning indexer: queries from the latent, one key, head weights, a norm."""
    if part.index_heads is None or part.index_head_dim is None:
        return 0
    source = part.q_lora_rank or hidden
    queries = source * part.index_heads * part.index_head_dim
    return queries + hidden * (part.index_head_dim + part.index_heads) + 2 * part.index_head_dim


def expert_parameters(moe: MoeFfn, hidden: int) -> int:
    """Weights of one routed expert."""
    width_in = moe.latent or hidden
    biases = ((moe.matrices - 1) * moe.width + width_in) * moe.expert_bias
    return moe.matrices * width_in * moe.width + biases


def shared_parameters(moe: MoeFfn, hidden: int) -> int:
    """Weights of all shared experts of a layer and their gate."""
    return moe.matrices * hidden * moe.shared_width + hidden * moe.shared_gate


def dense_parameters(ffn: DenseFfn, hidden: int) -> int:
    """Weights of one dense feed-forward block."""
    biases = ((ffn.matrices - 1) * ffn.width + hidden) * ffn.bias
    return ffn.matrices * hidden * ffn.width + biases


def layer_parameters(kind: LayerKind, hidden: int) -> dict[str, int]:
    """Parameters of one layer by the bucket names of `ParameterCount`."""
    counts = dict.fromkeys(ParameterCount.model_fields, 0)
    copies = 1 + kind.cross_attention
    counts["attention"] = copies * attention_parameters(kind.attention, hidden)
    counts["attention"] += mixer_parameters(kind.mixer, hidden) + kind.extra_parameters
    counts["norms"] = kind.norms * hidden
    if isinstance(kind.ffn, DenseFfn):
        counts["dense"] = dense_parameters(kind.ffn, hidden)
    if isinstance(kind.ffn, MoeFfn):
        counts |= _moe_layer(kind.ffn, hidden)
    return counts


def _moe_layer(moe: MoeFfn, hidden: int) -> dict[str, int]:
    one = expert_parameters(moe, hidden)
    return {
        "routed": moe.experts * one,
        "routed_active": moe.top_k * one,
        "shared": shared_parameters(moe, hidden),
        "router": (moe.experts + moe.zero_experts) * (hidden + moe.router_bias)
        + moe.extra_parameters,
        "projection": 2 * hidden * (moe.latent or 0),
    }


def count_parameters(model: MoeModel) -> ParameterCount:
    """Count every bucket of a model."""
    totals = dict.fromkeys(ParameterCount.model_fields, 0)
    for name, layers in model.kind_counts().items():
        for bucket, count in layer_parameters(model.kinds[name], model.hidden).items():
            totals[bucket] += layers * count
    rows = model.vocab * (1 if model.tied_embeddings else 2) + model.position_rows
    totals["embedding"] = rows * model.hidden + model.extra_parameters
    totals["norms"] = (totals["norms"] + model.hidden) * (1 + model.norm_bias)
    totals["mtp"] = model.mtp_layers * mtp_parameters(model)
    totals["vision"] = model.vision_parameters
    return ParameterCount(**totals)


def mtp_parameters(model: MoeModel) -> int:
    """Weights of one multi-token-prediction module (embedding and head are the model's own)."""
    if model.mtp_kind is None:
        return 0
    layer = layer_parameters(model.kinds[model.mtp_kind], model.hidden)
    layer.pop("routed_active")
    return sum(layer.values()) + 2 * model.hidden * model.hidden + 3 * model.hidden


def weight_bytes(model: MoeModel) -> dict[str, float]:
    """Bytes of stored weights by bucket, block scales counted; routers and norms stay in bf16."""
    count = count_parameters(model)
    return {
        "routed": count.routed * bytes_per_parameter(model, "routed"),
        "shared": count.shared * bytes_per_parameter(model, "shared"),
        "dense": count.dense * bytes_per_parameter(model, "dense"),
        "attention": count.attention * bytes_per_parameter(model, "attention"),
        "router": (count.router + count.projection) * dtype("bf16").weight_bytes,
        "embedding": _embedding_bytes(model),
        "norms": count.norms * dtype("bf16").weight_bytes,
    }


def bytes_per_parameter(model: MoeModel, bucket: str) -> float:
    """Mean stored bytes of a bucket's parameters, block scales counted."""
    if bucket in model.weights.mean_bytes:
        return model.weights.mean_bytes[bucket]
    return dtype(getattr(model.weights, bucket)).weight_bytes


def _embedding_bytes(model: MoeModel) -> float:
    table = model.vocab * model.hidden
    rest = model.position_rows * model.hidden + model.extra_parameters
    stored = dtype(model.weights.embedding).weight_bytes
    head = dtype(model.weights.head or model.weights.embedding).weight_bytes
    return (table + rest) * stored + (0 if model.tied_embeddings else table * head)


def mtp_bytes(model: MoeModel) -> float:
    """Bytes of the multi-token-prediction modules, stored like the layers they copy."""
    formats = dict.fromkeys(ParameterCount.model_fields, "bf16") | {
        name: getattr(model.weights, name) for name in ("routed", "shared", "dense", "attention")
    }
    if model.mtp_kind is None:
        return 0.0
    layer = layer_parameters(model.kinds[model.mtp_kind], model.hidden)
    layer.pop("routed_active")
    one = sum(count * dtype(formats[bucket]).weight_bytes for bucket, count in layer.items())
    joint = 2 * model.hidden * model.hidden + 3 * model.hidden
    return model.mtp_layers * (one + joint * dtype("bf16").weight_bytes)


def kv_bytes_per_token(model: MoeModel, kv_dtype: str) -> float:
    """Cache bytes of one token over all layers, windows not yet applied (full context).

    GQA caches keys and values of every kv head; MLA one latent and one rotary key (DeepSeek-V2,
    section 2.1.2), whatever the head count.
    """
    return sum(
        layers * layer_kv_elements(model.kinds[name])
        for name, layers in model.kind_counts().items()
    ) * dtype(kv_dtype).activation_bytes  # fmt: skip


def layer_kv_elements(kind: LayerKind) -> float:
    """Numbers one token adds to one layer's cache, before a window cuts it."""
    attention = kind.attention
    if attention is None or kind.encoder:
        return 0
    if isinstance(attention, MlaAttention):
        index = (attention.index_head_dim or 0) if attention.index_heads else 0
        return attention.kv_lora_rank + attention.qk_rope_head_dim + index
    if isinstance(attention, CompressedAttention):
        return _compressed_elements(attention)
    index = attention.index_head_dim or 0
    pair = attention.head_dim + attention.value_dim
    return attention.owns_kv * (attention.kv_heads * pair + index)


def _compressed_elements(attention: CompressedAttention) -> float:
    """One entry for each `compress_ratio` tokens; the window's entries are counted by sequence."""
    if not attention.compress_ratio:
        return 0
    index = (attention.index_head_dim or 0) if attention.index_heads else 0
    return (attention.head_dim + index) / attention.compress_ratio


def sequence_kv_elements(kind: LayerKind, context_tokens: float) -> float:
    """Numbers one sequence of `context_tokens` keeps in one layer's cache, its window applied."""
    attention = kind.attention
    tokens = context_tokens
    if isinstance(attention, CompressedAttention):
        window = min(context_tokens, attention.window_tokens) * attention.head_dim
        return window + context_tokens * layer_kv_elements(kind)
    if isinstance(attention, GqaAttention) and attention.window_tokens is not None:
        tokens = min(context_tokens, attention.window_tokens)
    return tokens * layer_kv_elements(kind)


def state_elements(kind: LayerKind, hidden: int) -> tuple[int, int]:
    """Numbers of one sequence's recurrent state and of its convolution tail in one layer."""
    mixer = kind.mixer
    if mixer is None:
        return 0, 0
    if isinstance(mixer, ShortConv):
        return 0, hidden * (mixer.conv_kernel - 1)
    if isinstance(mixer, MambaMixer):
        convolved = mixer.inner + (2 * mixer.groups * mixer.state if mixer.version == 2 else 0)  # noqa: PLR2004
        return mixer.inner * mixer.state, convolved * (mixer.conv_kernel - 1)
    key, value = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
    tail = (2 * key + value) * max(mixer.conv_kernel - 1, 0)
    return mixer.value_heads * mixer.key_dim * mixer.value_dim, tail
