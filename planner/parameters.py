"""How many parameters a model has, by bucket: the self-check of every imported config."""

from __future__ import annotations

from hwprofiles.document import Document
from hwprofiles.kernels import dtype
from planner.moe_model import DenseFfn, GqaAttention, LayerKind, MlaAttention, MoeFfn, MoeModel


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


def attention_parameters(attention: GqaAttention | MlaAttention | None, hidden: int) -> int:
    """Weights of one attention part, biases and inner norms included."""
    if attention is None:
        return 0
    if isinstance(attention, MlaAttention):
        return _mla(attention, hidden)
    return _gqa(attention, hidden)


def _gqa(part: GqaAttention, hidden: int) -> int:
    query = part.heads * part.head_dim
    key, value = part.kv_heads * part.head_dim, part.kv_heads * part.value_dim
    out = part.heads * part.value_dim
    weights = hidden * (query * (1 + part.output_gate) + key + value + out)
    biases = (query + key + value) * part.qkv_bias + hidden * part.output_bias
    return weights + biases + 2 * part.head_dim * part.qk_norm


def _mla(part: MlaAttention, hidden: int) -> int:
    query = part.heads * part.qk_head_dim
    rank = part.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query + 1)
    latent = hidden * (part.kv_lora_rank + part.qk_rope_head_dim) + part.kv_lora_rank
    heads = part.kv_lora_rank * part.heads * (part.qk_nope_head_dim + part.v_head_dim)
    out = part.heads * part.v_head_dim * hidden
    return queries + latent + heads + out + _indexer(part, hidden)


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
    counts["attention"] = attention_parameters(kind.attention, hidden)
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
        "router": hidden * moe.experts + moe.experts * moe.router_bias,
        "projection": 2 * hidden * (moe.latent or 0),
    }


def count_parameters(model: MoeModel) -> ParameterCount:
    """Count every bucket of a model."""
    totals = dict.fromkeys(ParameterCount.model_fields, 0)
    for name, layers in model.kind_counts().items():
        for bucket, count in layer_parameters(model.kinds[name], model.hidden).items():
            totals[bucket] += layers * count
    totals["embedding"] = model.vocab * model.hidden * (1 if model.tied_embeddings else 2)
    totals["norms"] += model.hidden
    totals["mtp"] = model.mtp_layers * mtp_parameters(model)
    return ParameterCount(**totals)


def mtp_parameters(model: MoeModel) -> int:
    """Weights of one multi-token-prediction module (embedding and head are the model's own)."""
    if model.mtp_kind is None:
        return 0
    layer = layer_parameters(model.kinds[model.mtp_kind], model.hidden)
    layer.pop("routed_active")
    return sum(layer.values()) + 2 * model.hidden * model.hidden + 3 * model.hidden


def weight_bytes(model: MoeModel) -> dict[str, float]:
    """Bytes of stored weights by bucket, block scales counted."""
    count, formats = count_parameters(model), model.weights
    return {
        "routed": count.routed * dtype(formats.routed).weight_bytes,
        "shared": count.shared * dtype(formats.shared).weight_bytes,
        "dense": count.dense * dtype(formats.dense).weight_bytes,
        "attention": count.attention * dtype(formats.attention).weight_bytes,
        "router": (count.router + count.projection) * dtype("bf16").weight_bytes,
        "embedding": count.embedding * dtype(formats.embedding).weight_bytes,
        "norms": count.norms * dtype("bf16").weight_bytes,
    }


def kv_bytes_per_token(model: MoeModel, kv_dtype: str) -> float:
    """Cache bytes of one token over all layers, windows not yet applied (full context).

    GQA caches keys and values of every kv head; MLA one latent and one rotary key (DeepSeek-V2,
    section 2.1.2), whatever the head count.
    """
    return sum(
        layers * layer_kv_elements(model.kinds[name])
        for name, layers in model.kind_counts().items()
    ) * dtype(kv_dtype).activation_bytes  # fmt: skip


def layer_kv_elements(kind: LayerKind) -> int:
    """Numbers one token adds to one layer's cache."""
    attention = kind.attention
    if attention is None:
        return 0
    if isinstance(attention, MlaAttention):
        index = attention.index_head_dim or 0
        return attention.kv_lora_rank + attention.qk_rope_head_dim + index
    return attention.kv_heads * (attention.head_dim + attention.value_dim)
