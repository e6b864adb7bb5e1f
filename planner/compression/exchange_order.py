"""What if a model's experts ran in DCCA order: narrowed tokens travel (arXiv:2502.16927)."""

from __future__ import annotations

from hwprofiles.errors import MoesaicError
from planner.moe_model import LayerKind, MoeFfn, MoeModel


def as_dcca(model: MoeModel, ratio: float) -> MoeModel:
    """What if this model were DCCA: tokens narrowed to `ratio` of hidden before they travel.

    Experts keep their parameters: inner width grows by 1 / ratio as token width falls. Shared
    experts stay as they are. Quality is not judged; the model would have to be trained so.

    Raises:
        MoesaicError: `invalid` for a ratio outside (0, 1), a width it does not cut evenly, a model
            without routed experts or with narrowed tokens already.
    """
    if not 0 < ratio < 1:
        raise MoesaicError("invalid", f"ratio {ratio} lies not between 0 and 1", "/ratio")
    if model.moe is None:
        raise MoesaicError("invalid", f"{model.name} has no routed experts", "/model")
    kinds = {name: _narrowed(kind, model.hidden, ratio) for name, kind in model.kinds.items()}
    note = f"experts in DCCA order at ratio {ratio:g}: a what-if, not a trained model"
    return model.model_copy(
        update={"name": f"{model.name} as DCCA {ratio:g}", "kinds": kinds,
                "assumptions": (*model.assumptions, note)}
    )  # fmt: skip


def _narrowed(kind: LayerKind, hidden: int, ratio: float) -> LayerKind:
    ffn = kind.ffn
    if not isinstance(ffn, MoeFfn):
        return kind
    if ffn.latent is not None:
        raise MoesaicError(
            "invalid", f"experts read {ffn.latent} of {hidden} already: DCCA order", "/model"
        )
    latent, width = ratio * hidden, ffn.width / ratio
    if not latent.is_integer() or not width.is_integer():
        raise MoesaicError(
            "invalid",
            f"ratio {ratio:g} cuts hidden {hidden} to {latent:g} and widens experts to {width:g}; "
            "both must be whole",
            "/ratio",
        )
    narrow = ffn.model_copy(update={"latent": int(latent), "width": int(width)})
    return kind.model_copy(update={"ffn": narrow})
