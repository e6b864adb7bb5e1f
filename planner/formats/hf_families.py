"""The table of families: what a model_type's code fixes without saying so in its config."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from hwprofiles.document import Document, parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document

TABLE = Path(__file__).with_suffix(".yaml")


class Family(Document):
    """Structure that holds for every checkpoint of some model types; never a size."""

    name: str = "unknown"
    types: tuple[str, ...] = ()
    roles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names that stand before the general ones for these roles, or in their place."""
    refuse: str | None = None
    """Why the family cannot be described."""
    matrices: Literal[2, 3] = 3
    norms: int = 2
    norm_bias: bool = False
    qkv_bias: bool = False
    """Bias of query, key and value where the config has no field for it."""
    output_bias: bool | None = None
    """Bias of attention's output; none: like the others."""
    ffn_bias: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    head_bias: bool = False
    qk_norm: Literal["none", "head", "full", "by_flag"] = "none"
    head_dim: Literal["derived", "required"] = "derived"
    """`derived`: absent means hidden / heads; `required`: the code would take a class default."""
    output_gate: bool = False
    head_gate: bool = False
    sinks: bool = False
    tied: bool = False
    """Whether the output matrix is the embedding where the config does not say."""
    positions: bool = False
    linear: Literal["gated_delta", "kda", "lightning"] | None = None
    mamba_version: Literal[1, 2] = 2
    groups: int = 1
    """Expert groups of a grouped router (MoGE) whose count the code fixes."""
    top_k: int | None = None
    """Experts a token takes where the code fixes it (Switch: one)."""
    shared_gate: bool = False
    shared_like_expert: bool = False
    """One shared expert of an expert's width beside every routed block (Llama-4)."""
    shared_by_width: bool = False
    """Shared experts are counted as shared width over expert width (Pangu Pro)."""
    shared_always: bool = False
    """A shared width alone means one shared expert."""
    dense_beside_experts: bool = False
    """Every layer has its dense block too, and experts run beside it (Gemma-4)."""
    residual_mlp: bool = False
    """A dense block of hidden width beside the experts (Arctic)."""
    expert_scales: bool = False
    """A scale a hidden unit and one an expert in the router (Gemma-4)."""
    split_experts: bool = False
    """Experts are equal slices of one dense block (LLaMA-MoE)."""
    shortcut_moe: bool = False
    """Two attention and two dense blocks a layer, experts beside the first (LongCat-Flash)."""
    single_part_layers: bool = False
    """A layer is either a mixer or a feed-forward block (Nemotron-H)."""
    block_configs: bool = False
    hash_router: bool = False
    hyper_connections: bool = False
    modules: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names of the modules of a bucket, below the layer, where they are not the usual ones."""
    encoder_decoder: bool = False
    single_norms: bool = False
    window_always: bool = False
    """`sliding_window` holds for every layer."""
    window_never: bool = False
    window_alternates: int = 0
    """Every so many layers one sees all tokens, where the config does not list layer types."""
    derive_head_dim: bool = False
    mtp_needs: str | None = None
    """MTP modules exist only where this field is true."""


GENERIC = Family(name="unknown", qk_norm="by_flag")
"""How a config of no known family is read when the reader is told to assume."""


@cache
def load_families() -> tuple[dict[str, tuple[str, ...]], dict[str, Family]]:
    """Read the table: general roles, and family by lower-case model_type."""
    data = read_document(TABLE)
    roles = {role: tuple(names) for role, names in data["roles"].items()}
    families: dict[str, Family] = {}
    for name, entry in data["families"].items():
        family = parse_as(
            Family,
            {**entry, "name": name, "roles": {**roles, **entry.get("roles", {})}},
            what=f"family {name}",
        )
        for model_type in family.types:
            families[model_type.lower()] = family
    return roles, families


def roles_of(family: Family) -> dict[str, tuple[str, ...]]:
    """Names of every role in one family: its own in place of the general ones."""
    return family.roles or load_families()[0]


def find_family(model_types: tuple[str, ...], *, assume: bool) -> tuple[Family, str]:
    """Find the family of the first known model type.

    Raises:
        MoesaicError: `outside_evidence` for a family that cannot be described or is not known.
    """
    known = load_families()[1]
    for model_type in model_types:
        family = known.get(model_type.lower())
        if family is not None:
            if family.refuse:
                raise _refusal(f"{model_type} cannot be read: {family.refuse}")
            return family, model_type
    wanted = model_types[0] if model_types else ""
    if assume:
        roles = load_families()[0]
        widths = (*roles["expert_width"], "intermediate_size")
        return GENERIC.model_copy(update={"roles": {**roles, "expert_width": widths}}), (
            wanted or "unknown"
        )
    if not wanted:
        raise _refusal("the config has no model_type; --assume reads it by its field names")
    near = difflib.get_close_matches(wanted.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise _refusal(
        f"no model_type {wanted[:80]!r}; {hint}{len(known)} are known ({TABLE.name}); --assume "
        "reads it by its field names and lists what it took"
    )


def _refusal(message: str) -> MoesaicError:
    return MoesaicError("outside_evidence", message, "/model_type")
