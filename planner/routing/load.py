"""Expert load as data: a distribution or counted tokens, and the shares of each layer it means."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from planner.moe_model import MoeFfn

Array = NDArray[np.float64]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class UniformRouting(Document):
    """Every expert equally likely."""

    kind: Literal["uniform"] = "uniform"


class ZipfRouting(Document):
    """The expert of rank i is chosen in proportion to i to the power of -alpha."""

    kind: Literal["zipf"]
    alpha: Annotated[float, Field(ge=0, le=10)]  # unit: exponent


class DirichletRouting(Document):
    """Shares drawn once a layer from a symmetric Dirichlet distribution; small alpha, more skew."""

    kind: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0, le=1e6)]  # unit: concentration
    seed: Annotated[int, Field(ge=0)] = 0


class HotRouting(Document):
    """One expert a layer takes `hottest_share` of token-expert pairs, the rest share equally."""

    kind: Literal["hot"]
    hottest_share: Annotated[float, Field(gt=0, lt=1)]


class MeasuredRouting(Document):
    """Counted tokens by layer and expert; rows of zeros are dense layers and are passed over."""

    kind: Literal["measured"]
    counts: Annotated[tuple[tuple[Weight, ...], ...], Field(min_length=1)]
    source: str = ""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        widths = {len(row) for row in self.counts}
        if len(widths) != 1:
            raise ValueError(f"layers name {sorted(widths)} experts; they must name equally many")
        if not any(sum(row) > 0 for row in self.counts):
            raise ValueError("no layer has any token")
        return self


Routing = Annotated[
    UniformRouting | ZipfRouting | DirichletRouting | HotRouting | MeasuredRouting,
    Field(discriminator="kind"),
]


def expert_shares(routing: Routing, moe: MoeFfn, layers: int) -> Array:
    """Share of a layer's token-expert pairs that each expert takes, shape [layers, experts].

    Raises:
        MoesaicError: `invalid` when counts do not match the model's layers or experts.
    """
    experts = moe.experts
    if isinstance(routing, MeasuredRouting):
        return _measured(routing, experts, layers)
    if isinstance(routing, ZipfRouting):
        weights = np.arange(1, experts + 1, dtype=float) ** -routing.alpha
        order = np.random.default_rng(0)
        return np.stack([order.permutation(weights / weights.sum()) for _ in range(layers)])
    if isinstance(routing, DirichletRouting):
        draws = np.random.default_rng(routing.seed)
        return draws.dirichlet(np.full(experts, routing.alpha), size=layers)
    shares = np.full((layers, experts), 1 / experts)
    if isinstance(routing, HotRouting):
        shares[:] = (1 - routing.hottest_share) / max(experts - 1, 1)
        shares[np.arange(layers), np.arange(layers) % experts] = routing.hottest_share
    return shares


def _measured(routing: MeasuredRouting, experts: int, layers: int) -> Array:
    counts = np.array(routing.counts, dtype=float)
    used = counts[counts.sum(axis=1) > 0]
    if counts.shape[1] != experts:
        raise MoesaicError(
            "invalid",
            f"the load counts {counts.shape[1]} experts, the model has {experts}",
            "/routing/counts",
        )
    if len(used) not in (1, layers):
        raise MoesaicError(
            "invalid",
            f"the load has {len(used)} layers with tokens, the model has {layers} MoE layers",
            "/routing/counts",
        )
    shares = used / used.sum(axis=1, keepdims=True)
    return np.repeat(shares, layers, axis=0) if len(used) == 1 else shares
