"""The routed experts of a model as a table, layers by experts: what every transform changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn, MoeModel
from planner.parameters import bytes_per_parameter

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
BITS_PER_BYTE = 8


@dataclass(frozen=True)
class ExpertTable:
    """Routed experts of every MoE layer, each row one layer, each column one expert.

    Arrays have shape [MoE layers, experts].

    Args:
        model: the model before any transform.
        block: its routed block; every MoE layer has the same.
        width: inner width kept; 0 means the expert is gone.
        bits: stored bits a weight, scales and zeros included.
        owner: expert whose weights stand in this one's place; itself unless merged.
        rank: rank of the low-rank part that replaces a matrix; 0 means whole matrices.
        kept_ratio: share of entries of the sparse part beside the low rank.
        popularity: share of a layer's routed tokens, each row sums to one.
        experts_per_token: mean experts a token runs in a layer.
        router_rows: router outputs of each layer, shape [MoE layers].
        other_bits: bits a weight of attention, shared, dense and router; none: as stored.
        added_parameters: vectors and adapters, all resident.
        added_flops_per_token: what they cost.
        notes: what was assumed or must be done, such as fine-tuning.
    """

    model: MoeModel
    block: MoeFfn
    width: Whole
    bits: Floats
    owner: Whole
    rank: Whole
    kept_ratio: Floats
    popularity: Floats
    experts_per_token: float
    router_rows: Whole
    other_bits: float | None = None
    added_parameters: int = 0
    added_flops_per_token: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int]:
        """MoE layers and experts."""
        layers, experts = self.width.shape
        return layers, experts

    @property
    def input_width(self) -> int:
        """Width of the tokens that experts read and write."""
        return self.block.latent or self.model.hidden

    def parameters(self) -> Floats:
        """Weights each expert computes with, whoever owns them; shape [layers, experts].

        A whole expert has `matrices` matrices; a compressed one a low-rank pair and a sparse part
        for each (M-SMoE, arXiv:2310.01334, section 3.3: W = U V + S).
        """
        size = self.width * self.input_width
        pair = self.rank * (self.width + self.input_width)
        one = np.where(self.rank > 0, pair + self.kept_ratio * size, size)
        return self.block.matrices * one.astype(float)

    def stored(self) -> npt.NDArray[np.bool_]:
        """Which experts have weights of their own."""
        own = self.owner == np.arange(self.shape[1])[None, :]
        return np.asarray(own & (self.width > 0), dtype=bool)

    def noted(self, *texts: str) -> ExpertTable:
        """The same table with more notes."""
        return replace(self, notes=self.notes + tuple(t for t in texts if t not in self.notes))


def expert_table(model: MoeModel, popularity: npt.ArrayLike | None = None) -> ExpertTable:
    """Lay out a model's routed experts before any transform.

    Args:
        model: a model whose MoE layers all hold the same block.
        popularity: routed tokens by layer and expert, counts or shares; none: all alike.

    Raises:
        MoesaicError: `invalid` for a dense model, blocks that differ, or loads of another shape.
    """
    blocks = {kind.ffn for kind in model.kinds.values() if isinstance(kind.ffn, MoeFfn)}
    if len(blocks) != 1:
        known = "no routed experts" if not blocks else f"{len(blocks)} different routed blocks"
        raise MoesaicError("invalid", f"{model.name} has {known}; one is needed", "/model")
    block = blocks.pop()
    shape = (len(model.moe_layers), block.experts)
    stored_bits = bytes_per_parameter(model, "routed") * BITS_PER_BYTE
    return ExpertTable(
        model=model, block=block,
        width=np.full(shape, block.width, dtype=np.int64),
        bits=np.full(shape, stored_bits),
        owner=np.tile(np.arange(shape[1]), (shape[0], 1)),
        rank=np.zeros(shape, dtype=np.int64),
        kept_ratio=np.zeros(shape),
        popularity=_shares(popularity, shape),
        experts_per_token=float(block.top_k),
        router_rows=np.full(shape[0], block.experts + block.zero_experts, dtype=np.int64),
    )  # fmt: skip


def _shares(popularity: npt.ArrayLike | None, shape: tuple[int, int]) -> Floats:
    if popularity is None:
        return np.full(shape, 1.0 / shape[1])
    load = checked(popularity, shape, "popularity")
    if (load < 0).any() or (load.sum(axis=1) <= 0).any():
        raise MoesaicError("invalid", "each layer needs a positive load", "/popularity")
    shares: Floats = load / load.sum(axis=1, keepdims=True)
    return shares


def checked(values: npt.ArrayLike, shape: tuple[int, int], name: str) -> Floats:
    """Take one number, or a table of the right shape, as finite floats.

    Raises:
        MoesaicError: `invalid`, naming both shapes.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim == 0:
        array = np.full(shape, float(array))
    if array.shape != shape:
        raise MoesaicError(
            "invalid", f"{name} has shape {array.shape}; the model has {shape}", f"/{name}"
        )
    if not np.isfinite(array).all():
        raise MoesaicError("invalid", f"{name} holds numbers that are not finite", f"/{name}")
    return array
