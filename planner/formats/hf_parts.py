"""The parts of one layer, built from a config's fields: attention, state mixers, experts."""

from __future__ import annotations

from planner.formats.hf_families import Family
from planner.formats.hf_fields import Fields
from planner.moe_model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GqaAttention,
    LinearAttention,
    MambaMixer,
    Mixer,
    MlaAttention,
    MoeFfn,
    ShortConv,
)


class Parts:
    """Builds a family's layer parts; every default that is no size is written down.

    Args:
        fields: the config's fields by role.
        family: what its code fixes.
        notes: assumptions, appended to.
    """

    def __init__(self, fields: Fields, family: Family, notes: list[str]) -> None:
        self.fields = fields
        self.family = family
        self.notes = notes
        self.hidden = fields.size("hidden")

    def note(self, text: str) -> None:
        """Remember an assumption once."""
        if text not in self.notes:
            self.notes.append(text)

    def mixer(self, word: str) -> tuple[Attention | None, Mixer | None]:
        """The attention or the state mixer that a word of the layer list stands for."""
        if word == "none":
            return None, None
        if word == "linear":
            return None, self.linear()
        if word == "mamba":
            return None, self.mamba()
        if word == "conv":
            return None, ShortConv(conv_kernel=self._named("conv_L_cache", "conv_kernel"))
        return self.attention(word), None

    def attention(self, word: str) -> Attention:
        """Attention of one layer; `word` is full, sliding, reuse, sparse or compress-RATIO."""
        if word.startswith("compress"):
            return self._compressed(int(word.partition("-")[2]))
        if self.fields.maybe("kv_lora_rank") is not None:
            return self._mla(reuse=word == "reuse")
        return self._gqa(word)

    def _mla(self, *, reuse: bool) -> MlaAttention:
        fields = self.fields
        topk = fields.maybe("index_topk")
        return MlaAttention(
            heads=fields.size("heads"),
            q_lora_rank=fields.maybe("q_lora_rank"),
            kv_lora_rank=fields.size("kv_lora_rank"),
            qk_nope_head_dim=fields.size("qk_nope_head_dim"),
            qk_rope_head_dim=fields.size("qk_rope_head_dim"),
            v_head_dim=fields.size("v_head_dim"),
            output_gate=fields.flag("mla_use_output_gate", default=False),
            index_topk=topk,
            index_heads=None if topk is None or reuse else fields.size("index_n_heads"),
            index_head_dim=None if topk is None or reuse else fields.size("index_head_dim"),
        )

    def _compressed(self, ratio: int) -> CompressedAttention:
        fields = self.fields
        # only the fine ratio is indexed; the coarse one is read whole (DeepSeek-V4 reference)
        indexed = 0 < ratio <= 8  # noqa: PLR2004
        return CompressedAttention(
            heads=fields.size("heads"),
            head_dim=fields.size("head_dim"),
            q_lora_rank=fields.size("q_lora_rank"),
            qk_rope_head_dim=fields.size("qk_rope_head_dim"),
            output_groups=fields.size("o_groups"),
            output_rank=fields.size("o_lora_rank"),
            window_tokens=fields.size("window"),
            compress_ratio=ratio,
            index_topk=fields.size("index_topk") if indexed else None,
            index_heads=fields.size("index_n_heads") if indexed else None,
            index_head_dim=fields.size("index_head_dim") if indexed else None,
        )

    def _gqa(self, word: str) -> GqaAttention:
        fields, family = self.fields, self.family
        heads, kv_heads, head_dim, value_dim = self._head_sizes(word)
        self._check_heads(heads, kv_heads)
        qk_norm, full = self._qk_norm()
        bias = fields.flag("qkv_bias", default=family.qkv_bias)
        sparse = fields.child("sparse_attention_config") if word == "sparse" else None
        shared = word == "full" and fields.flag("attention_k_eq_v", default=False)
        return GqaAttention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=None if value_dim == head_dim else value_dim,
            window_tokens=fields.size("window") if word.startswith("sliding") else None,
            qkv_bias=bias,
            output_bias=bias if family.output_bias is None else bias and family.output_bias,
            qk_norm=qk_norm,
            qk_norm_full=full,
            output_gate=fields.flag("output_gate", default=family.output_gate),
            query_rank=fields.maybe("query_rank") if "query_rank" in fields.roles else None,
            head_gate=fields.flag("use_head_wise_attn_gate", default=family.head_gate),
            sinks=self._sinks(word),
            shared_kv=shared,
            owns_kv=not word.endswith("borrow"),
            index_topk=None if sparse is None else _block_topk(sparse),
            index_heads=None if sparse is None else sparse.maybe("sparse_num_index_heads"),
            index_head_dim=None if sparse is None else sparse.maybe("sparse_index_dim"),
        )

    def _sinks(self, word: str) -> bool:
        role = (
            "add_swa_attention_sink_bias" if word == "sliding" else "add_full_attention_sink_bias"
        )
        return self.fields.flag(role, default=self.family.sinks)

    def _head_sizes(self, word: str) -> tuple[int, int, int, int]:
        """Heads, key-value heads, key width, value width, of windowed or full layers."""
        fields = self.fields
        heads = fields.size("heads")
        kv_heads = fields.optional("kv_heads") or self._all_heads(heads)
        head_dim = self._head_dim(heads)
        value_dim = fields.optional("v_head_dim") or head_dim
        if word.startswith("sliding"):
            other = fields.child("attention_other_setting")
            heads = fields.optional("swa_num_attention_heads") or heads
            kv_heads = fields.optional("swa_num_key_value_heads") or kv_heads
            head_dim = fields.optional("swa_head_dim") or head_dim
            value_dim = fields.optional("swa_v_head_dim") or value_dim
            if other is not None:
                heads = other.optional("heads") or heads
                kv_heads = other.optional("kv_heads") or kv_heads
        elif word.startswith("full"):
            kv_heads = fields.optional("num_global_key_value_heads") or kv_heads
            wide = fields.optional("global_head_dim")
            head_dim, value_dim = (wide, wide) if wide else (head_dim, value_dim)
        return heads, kv_heads, head_dim, value_dim

    def _all_heads(self, heads: int) -> int:
        if not self.family.positions and not self.family.encoder_decoder:
            self.note("no key-value head count: every head has its own (multi-head attention)")
        return heads

    def _head_dim(self, heads: int) -> int:
        fields = self.fields
        found = fields.maybe("head_dim")
        if found is not None:
            return found
        nope = fields.maybe("qk_nope_dim") or fields.maybe("qk_nope_head_dim")
        rope = fields.maybe("qk_rope_dim") or fields.maybe("qk_rope_head_dim")
        if nope and rope:
            return nope + rope
        if self.family.head_dim == "required":
            return fields.size("head_dim")
        if self.hidden % heads:
            raise fields.error(
                fields.roles["heads"][0], f"heads {heads} must divide hidden {self.hidden}"
            )
        return self.hidden // heads

    def _check_heads(self, heads: int, kv_heads: int) -> None:
        if heads % kv_heads:
            found = self.fields.find("kv_heads")
            name = found[0] if found else "num_key_value_heads"
            raise self.fields.error(name, f"key-value heads {kv_heads} must divide heads {heads}")

    def _qk_norm(self) -> tuple[bool, bool]:
        kind = self.family.qk_norm
        flagged = self.fields.flag("use_qk_norm", default=kind != "by_flag")
        wide = self.fields.data.get("qk_norm_type") == "per_layer" or kind == "full"
        if self.fields.data.get("qk_norm_type") == "per_head":
            wide = False
        present = kind != "none" and flagged
        return present, present and wide

    def _named(self, *names: str) -> int:
        """The first of some fields that is there."""
        for name in names:
            found = self.fields.maybe(name)
            if found is not None:
                return found
        return self.fields.size(names[0])

    def linear(self) -> LinearAttention:
        """Linear attention of the family's variant."""
        variant = self.family.linear or "gated_delta"
        if variant == "gated_delta":
            return self._gated_delta()
        config = self.fields.child("linear_attn_config") or self.fields
        heads = config.maybe("linear_num_heads") or config.maybe("num_heads")
        width = config.maybe("linear_head_dim") or config.size("head_dim")
        names = ("short_conv_kernel_size", "linear_conv_kernel_dim")
        kernel = next((config.optional(name) for name in names if config.maybe(name)), 0)
        count = heads or self.fields.size("heads")
        return LinearAttention(
            variant=variant, key_heads=count, value_heads=count, key_dim=width, value_dim=width,
            conv_kernel=kernel, full_rank_gate=config.flag("use_full_rank_gate", default=False),
        )  # fmt: skip

    def _gated_delta(self) -> LinearAttention:
        fields = self.fields
        return LinearAttention(
            variant="gated_delta",
            key_heads=fields.size("linear_num_key_heads"),
            value_heads=fields.size("linear_num_value_heads"),
            key_dim=fields.size("linear_key_head_dim"),
            value_dim=fields.size("linear_value_head_dim"),
            conv_kernel=fields.size("linear_conv_kernel_dim"),
        )

    def mamba(self) -> MambaMixer:
        """A Mamba layer of the family's version."""
        fields = self.fields
        if self.family.mamba_version == 1:
            inner = self.hidden * fields.size("mamba_expand")
            rank = fields.data.get("mamba_dt_rank")
            automatic = rank in (None, "auto")
            return MambaMixer(
                version=1,
                inner=inner,
                state=fields.size("mamba_d_state"),
                conv_kernel=fields.size("mamba_d_conv"),
                dt_rank=-(-self.hidden // 16) if automatic else fields.size("mamba_dt_rank"),
                conv_bias=fields.flag("mamba_conv_bias", default=True),
            )
        heads = self._named("mamba_num_heads", "mamba_n_heads")
        groups = self._named("n_groups", "mamba_n_groups")
        return MambaMixer(
            version=2,
            inner=heads * self._mamba_head_dim(heads),
            heads=heads,
            groups=groups,
            state=self._named("ssm_state_size", "mamba_d_state"),
            conv_kernel=self._named("conv_kernel", "mamba_d_conv"),
            conv_bias=fields.flag("use_conv_bias", default=True),
        )

    def _mamba_head_dim(self, heads: int) -> int:
        if self.fields.data.get("mamba_d_head") == "auto":
            return self.hidden * self.fields.size("mamba_expand") // heads
        return self._named("mamba_head_dim", "mamba_d_head")

    def dense(self, width: int | None = None) -> DenseFfn:
        """The dense block of layers without experts; `width` where layers differ."""
        if width is None:
            width = self._dense_width()
        matrices = self.family.matrices
        projection = self.fields.data.get("feed_forward_proj")
        if isinstance(projection, str) and projection.startswith("gated"):
            matrices = 3
        bias = self.fields.flag("mlp_bias", default=self.family.ffn_bias)
        return DenseFfn(width=width, matrices=matrices, bias=bias)

    def _dense_width(self) -> int:
        found = self.fields.find("ffn_width")
        if found is None and self.family.positions and "n_inner" in self.fields.data:
            return 4 * self.hidden  # GPT-2: n_inner null means four times the hidden width
        return self.fields.size("ffn_width")

    def experts(self) -> MoeFfn:
        """The routed block with its shared experts and router."""
        fields, family = self.fields, self.family
        count = fields.size("experts")
        width = self._slice(count) if family.split_experts else fields.size("expert_width")
        shared, shared_width = self._shared(width)
        top_k = family.top_k or fields.size("top_k")
        if top_k > count:
            raise fields.error(self._name("top_k"), f"top_k {top_k} of {count} experts")
        groups, top_groups, router = self._groups(count, top_k)
        zero = fields.optional("zero_expert_num")
        return MoeFfn(
            experts=count, top_k=top_k, width=width, matrices=family.matrices,
            latent=fields.maybe("latent"), shared_experts=shared, shared_width=shared_width,
            shared_gate=family.shared_gate and shared > 0, router=router, groups=groups,
            top_groups=top_groups,
            router_bias=fields.flag("router_bias", default=family.router_bias),
            expert_bias=family.expert_bias or fields.flag("mlp_bias", default=False),
            zero_experts=zero, extra_parameters=self._router_extra(count),
        )  # fmt: skip

    def _slice(self, experts: int) -> int:
        """Width of one equal slice of the dense block (LLaMA-MoE)."""
        whole = self.fields.size("ffn_width")
        if whole % experts:
            raise self.fields.error("num_experts", f"experts {experts} must divide width {whole}")
        return whole // experts

    def _router_extra(self, experts: int) -> int:
        scales = (self.hidden + experts) if self.family.expert_scales else 0
        return scales + self.hidden * self.fields.flag("latent_moe_use_norm", default=False)

    def _name(self, role: str) -> str:
        found = self.fields.find(role)
        return found[0] if found else role

    def _shared(self, width: int) -> tuple[int, int]:
        """Count and joint width of the shared experts."""
        fields, family = self.fields, self.family
        if family.shared_like_expert:
            return 1, width
        if family.dense_beside_experts:
            return 1, fields.size("ffn_width")
        if family.residual_mlp:
            return 1, self.hidden
        joint = fields.optional("shared_width")
        count = fields.optional("shared_experts")
        if joint:
            return (joint // width if family.shared_by_width else count or 1), joint
        return count, count * width

    def _groups(self, experts: int, top_k: int) -> tuple[int, int, str]:
        """Expert groups and how the router uses them."""
        fields = self.fields
        groups = fields.optional("groups") or self.family.groups
        top_groups = fields.optional("top_groups") or 1
        if groups <= 1:
            return 1, 1, "top_k"
        if experts % groups:
            raise fields.error(
                self._name("groups"), f"groups {groups} must divide experts {experts}"
            )
        if self.family.groups > 1:
            self.note(f"{groups} expert groups with {top_k // groups} expert each (MoGE)")
            return groups, groups, "grouped"
        if top_groups > groups:
            raise fields.error("topk_group", f"top groups {top_groups} of {groups} groups")
        return groups, top_groups, "group_limited"


def _block_topk(sparse: Fields) -> int:
    """Tokens that block-sparse attention keeps: blocks times block size (MiniMax-M3)."""
    return sparse.size("sparse_topk_blocks") * sparse.size("sparse_block_size")
