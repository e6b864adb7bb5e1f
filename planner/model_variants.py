"""One model in other block orders and group counts, as lists of a question ask."""

from __future__ import annotations

from collections.abc import Sequence

from hwprofiles.errors import MoesaicError
from planner.compression.exchange_order import as_dcca
from planner.moe_model import LayerKind, MoeFfn, MoeModel


def variants_of(
    model: MoeModel, orders: Sequence[str | float] | None, groups: Sequence[int] | None
) -> list[tuple[MoeModel, str]]:
    """Every combination of orders and groups, and in words what differs from the model.

    Raises:
        MoesaicError: `invalid` for an order or group count that the model cannot have.
    """
    found = []
    for order in orders or (None,):
        for count in groups or (None,):
            ordered, first = (model, "") if order is None else _ordered(model, order)
            changed, second = (ordered, "") if count is None else _grouped(ordered, count)
            found.append((changed, ", ".join(text for text in (first, second) if text)))
    return found


def _ordered(model: MoeModel, order: str | float) -> tuple[MoeModel, str]:
    """The model in CDAC order or in DCCA order at a ratio (BigMac, arXiv:2502.16927)."""
    if not isinstance(order, str):
        return as_dcca(model, order), f"DCCA order at ratio {order:g}"
    moe = model.moe
    if moe is not None and moe.latent is not None:
        raise MoesaicError(
            "invalid", f"{model.name} narrows tokens to {moe.latent}: it is DCCA, not cdac",
            "/choices/block_order",
        )  # fmt: skip
    return model, ""


def _grouped(model: MoeModel, groups: int) -> tuple[MoeModel, str]:
    """The model with top_k / groups experts in each group (MoGE, arXiv:2505.21411)."""
    moe = model.moe
    if moe is None:
        raise MoesaicError("invalid", f"{model.name} has no routed experts", "/choices/groups")
    if moe.experts % groups or moe.top_k % groups:
        raise MoesaicError(
            "invalid",
            f"groups {groups} must divide {moe.experts} experts and top_k {moe.top_k}",
            "/choices/groups",
        )
    now = moe.groups if moe.router == "grouped" else 1
    if groups == now and moe.router != "group_limited":
        return model, ""
    router = {"router": "top_k", "groups": 1, "top_groups": 1}
    if groups > 1:
        router = {"router": "grouped", "groups": groups, "top_groups": groups}
    kinds = {
        name: _with_router(kind, router) if isinstance(kind.ffn, MoeFfn) else kind
        for name, kind in model.kinds.items()
    }
    said = f"{groups} groups of {moe.experts // groups} experts" if groups > 1 else "no groups"
    return model.model_copy(update={"kinds": kinds}), said


def _with_router(kind: LayerKind, router: dict[str, object]) -> LayerKind:
    if not isinstance(kind.ffn, MoeFfn):
        return kind
    return kind.model_copy(update={"ffn": kind.ffn.model_copy(update=router)})
