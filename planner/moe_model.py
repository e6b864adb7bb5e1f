"""A transformer with experts as data: what each layer holds, and in which order it is stacked.

Sizes are integers; a layer is an attention part and a feed-forward part, either of which may be
absent (Mamba and Nemotron-H stacks). `planner/parameters.py` counts what these documents describe.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.document import Document

Size = Annotated[int, Field(ge=1, le=10_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class GqaAttention(Document):
    """Multi-head or grouped-query attention (multi-head: `kv_heads == heads`)."""

    kind: Literal["gqa"] = "gqa"
    heads: Size
    kv_heads: Size
    head_dim: Size
    v_head_dim: Size | None = None
    """Width of a value head where it differs from `head_dim`."""
    window_tokens: Size | None = None
    """Tokens a query sees; none: all."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    qk_norm_full: bool = False
    """The norms of queries and keys span all heads, not one head (OLMoE, MiniMax-M2)."""
    output_gate: bool = False
    """One more matrix hidden x heads·head_dim that gates the output (Qwen3-Next)."""
    query_rank: Size | None = None
    """Queries come through a low rank of this width, with a norm on it (Step-3's MFA)."""
    head_gate: bool = False
    """One gate a head, a matrix hidden x heads (Step-3.5)."""
    sinks: bool = False
    """One learned sink a head (gpt-oss)."""
    shared_kv: bool = False
    """Values are the keys, no value matrix (Gemma-4's full-attention layers)."""
    owns_kv: bool = True
    """False: the layer reads an earlier layer's cache and has neither key nor value matrix."""
    index_topk: Size | None = None
    """Sparse attention: tokens kept for each query (MiniMax-M3: blocks x block size)."""
    index_heads: Size | None = None
    index_head_dim: Size | None = None

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        return self

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.v_head_dim or self.head_dim


class MlaAttention(Document):
    """Multi-head latent attention (DeepSeek-V2, eq. 9-19): one shared latent is cached."""

    kind: Literal["mla"] = "mla"
    heads: Size
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    output_gate: bool = False
    """One more matrix hidden x heads·v_head_dim that gates the output (Kimi-K3)."""
    index_topk: Size | None = None
    """Sparse attention: tokens kept for each query (DeepSeek-V3.2's indexer). Without `index_heads`
    the layer reuses an earlier layer's choice (GLM-5.2)."""
    index_heads: Size | None = None
    index_head_dim: Size | None = None

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class CompressedAttention(Document):
    """One shared key-value head over a window and over compressed history (DeepSeek-V4).

    Every query sees the last `window_tokens` and one entry for each `compress_ratio` older tokens;
    with `index_topk` an indexer keeps that many entries. Output goes through `output_groups` low
    ranks of `output_rank`.
    """

    kind: Literal["compressed"] = "compressed"
    heads: Size
    head_dim: Size
    q_lora_rank: Size
    qk_rope_head_dim: Size
    output_groups: Size
    output_rank: Size
    window_tokens: Size
    compress_ratio: Count = 0
    """Tokens that one compressed entry stands for; 0: the window only."""
    index_topk: Size | None = None
    index_heads: Size | None = None
    index_head_dim: Size | None = None


Attention = Annotated[
    GqaAttention | MlaAttention | CompressedAttention, Field(discriminator="kind")
]


class LinearAttention(Document):
    """A fixed state instead of a cache: gated delta rule, Kimi delta attention, lightning.

    State of one sequence: value_heads x key_dim x value_dim numbers, and the convolution's tail.
    """

    kind: Literal["linear"] = "linear"
    variant: Literal["gated_delta", "kda", "lightning"]
    key_heads: Size
    value_heads: Size
    key_dim: Size
    value_dim: Size
    conv_kernel: Count = 0
    full_rank_gate: bool = False
    """The output gate is a whole matrix, not two low-rank ones (Kimi-K3)."""


class MambaMixer(Document):
    """A selective state space: version 1 (Jamba) or 2 (Nemotron-H, Granite-H)."""

    kind: Literal["mamba"] = "mamba"
    version: Literal[1, 2]
    inner: Size
    """Width of the scan: heads x head_dim."""
    heads: Size = 1
    groups: Size = 1
    state: Size
    conv_kernel: Size
    dt_rank: Count = 0
    """Version 1: rank of the step-size projection."""
    conv_bias: bool = True
    inner_norms: bool = True


class ShortConv(Document):
    """A gated short convolution instead of attention (LFM2)."""

    kind: Literal["short_conv"] = "short_conv"
    conv_kernel: Size


Mixer = Annotated[LinearAttention | MambaMixer | ShortConv, Field(discriminator="kind")]


class DenseFfn(Document):
    """One feed-forward block that every token passes."""

    kind: Literal["dense"] = "dense"
    width: Size
    matrices: Literal[2, 3] = 3
    """3 with a gate (SwiGLU), 2 without."""
    bias: bool = False


class MoeFfn(Document):
    """Routed experts with a router, and shared experts beside them.

    The exchange runs in CDAC order (communicate, descend, ascend, communicate: hidden-wide tokens
    travel) unless `latent` is set; then in DCCA order (descend, communicate, communicate, ascend: a
    shared projection narrows the token to `latent` before dispatch and widens it after combine;
    BigMac, arXiv:2502.16927, Table 3; Nemotron's latent experts are the same shape).
    """

    kind: Literal["moe"] = "moe"
    experts: Size
    top_k: Size
    width: Size
    """Inner width of one routed expert."""
    matrices: Literal[2, 3] = 3
    latent: Size | None = None
    """Width of the tokens that experts read and write; none: the hidden width."""
    shared_experts: Count = 0
    shared_width: Count = 0
    """Inner width of all shared experts together."""
    shared_gate: bool = False
    """A hidden x 1 gate on the shared output (Qwen2-MoE)."""
    router: Literal["top_k", "group_limited", "grouped"] = "top_k"
    """`group_limited`: best `top_groups` of `groups`, then top-k among them (DeepSeek-V3);
    `grouped`: top_k / groups experts in each group (MoGE, arXiv:2505.21411)."""
    groups: Size = 1
    top_groups: Size = 1
    router_bias: bool = False
    expert_bias: bool = False
    zero_experts: Count = 0
    """Routing targets without weights: a token sent there skips an expert (LongCat-Flash)."""
    extra_parameters: Annotated[int, Field(ge=0)] = 0
    """Further weights of the layer's router: input norms, scales, tables."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than experts {self.experts}")
        if self.experts % self.groups:
            raise ValueError(f"groups {self.groups} must divide experts {self.experts}")
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups {self.top_groups} is more than groups {self.groups}")
        if self.router == "grouped" and self.top_k % self.groups:
            raise ValueError(f"groups {self.groups} must divide top_k {self.top_k} in MoGE")
        if bool(self.shared_experts) != bool(self.shared_width):
            raise ValueError("shared_experts and shared_width must both be zero or neither")
        return self

    @property
    def order(self) -> Literal["cdac", "dcca"]:
        """The order of exchange and projection."""
        return "cdac" if self.latent is None else "dcca"


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class LayerKind(Document):
    """What one layer holds; absent parts are null."""

    attention: Attention | None
    ffn: Ffn | None
    mixer: Mixer | None = None
    """What stands in attention's place and keeps a state, not a cache."""
    cross_attention: bool = False
    """A second attention of the same shape over the encoder's output (T5)."""
    encoder: bool = False
    """Runs once over the prompt and caches nothing (T5's encoder)."""
    extra_parameters: Annotated[int, Field(ge=0)] = 0
    """Further weights beside the matrices: relative-position tables, hyper-connections."""
    norms: Count = 2
    """Hidden-wide normalisation vectors."""


class LayerRun(Document):
    """`count` layers of one kind, one after the other."""

    kind: str
    count: Size


class WeightFormats(Document):
    """Numeric format of stored weights by bucket; names are keys of `hwprofiles.kernels.DTYPES`."""

    routed: str = "bf16"
    shared: str = "bf16"
    dense: str = "bf16"
    attention: str = "bf16"
    embedding: str = "bf16"
    head: str | None = None
    """Of the output matrix, where it differs from the embedding."""
    mean_bytes: dict[str, float] = Field(default_factory=dict)
    """Bytes a parameter of a bucket whose layers do not all share one format, scales counted."""
    kv_cache: str | None = None
    """Format the checkpoint asks its cache to be kept in."""


class MoeModel(Document):
    """One model, as far as planning needs it."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200)]
    family: str
    """`model_type` of the config it was read from."""
    hidden: Size
    vocab: Size
    tied_embeddings: bool = False
    position_rows: Count = 0
    """Rows of a learned position table (GPT-2)."""
    vision_parameters: Annotated[int, Field(ge=0)] = 0
    """An image or audio tower and its projector, stored beside the language model."""
    norm_bias: bool = False
    """Normalisation has a bias beside its scale (LayerNorm)."""
    extra_parameters: Annotated[int, Field(ge=0)] = 0
    kinds: Annotated[dict[str, LayerKind], Field(min_length=1)]
    layers: Annotated[tuple[LayerRun, ...], Field(min_length=1)]
    mtp_layers: Count = 0
    """Multi-token-prediction modules, each a layer of `mtp_kind` and a 2·hidden x hidden matrix;
    they are stored beside the model and not counted in its size."""
    mtp_kind: str | None = None
    weights: WeightFormats = WeightFormats()
    max_context_tokens: Annotated[int, Field(ge=1)] | None = None
    sources: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _kinds_known(self) -> Self:
        named = {run.kind for run in self.layers} | ({self.mtp_kind} if self.mtp_kind else set())
        missing = named - set(self.kinds)
        if missing:
            raise ValueError(f"layers name kinds {sorted(missing)} that `kinds` does not hold")
        if self.mtp_layers and self.mtp_kind is None:
            raise ValueError("mtp_layers needs mtp_kind")
        return self

    @property
    def layer_count(self) -> int:
        """All layers, MTP modules excluded."""
        return sum(run.count for run in self.layers)

    def kind_counts(self) -> Counter[str]:
        """How many layers of each kind."""
        counts: Counter[str] = Counter()
        for run in self.layers:
            counts[run.kind] += run.count
        return counts

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with routed experts."""
        order = [run.kind for run in self.layers for _ in range(run.count)]
        return tuple(i for i, kind in enumerate(order) if isinstance(self.kinds[kind].ffn, MoeFfn))

    @property
    def moe(self) -> MoeFfn | None:
        """The expert block, where all MoE layers share one; none for a dense model."""
        found = [kind.ffn for kind in self.kinds.values() if isinstance(kind.ffn, MoeFfn)]
        return found[0] if found else None
