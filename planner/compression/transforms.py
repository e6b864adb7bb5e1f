"""Each way of making experts smaller or fewer, from one expert table to the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hwprofiles.errors import MoesaicError
from planner.compression.experts import ExpertTable, checked
from planner.compression.formats import GROUP, SCALE_BITS
from planner.moe_model import DenseFfn, LayerKind, LayerRun, MoeFfn, MoeModel

FINE_TUNING = "needs fine-tuning after the transform; its cost is not counted"


def with_bits(
    table: ExpertTable,
    bits: npt.ArrayLike,
    *,
    overhead_bits: float | None = None,
    other_bits: float | None = None,
) -> ExpertTable:
    """Store each expert in its own number of bits (MC-MoE, arXiv:2410.06270, section 3.2).

    Args:
        table: experts so far.
        bits: weight bits by layer and expert, or one number for all.
        overhead_bits: bits a weight for scales and zeros; none: a 16-bit scale and a zero point of
            the weight's own bits for each 128 weights (HQQ).
        other_bits: bits of attention and routers, overhead included; none: as they are.

    Raises:
        MoesaicError: `invalid` for bits outside 1 to 16 or of another shape.
    """
    wanted = checked(bits, table.shape, "bits")
    if (wanted < 1).any() or (wanted > SCALE_BITS).any():
        raise MoesaicError("invalid", "bits are known from 1 to 16", "/bits")
    scales = (SCALE_BITS + wanted) / GROUP if overhead_bits is None else overhead_bits
    stored = np.where(wanted >= SCALE_BITS, wanted, wanted + scales)
    return replace(table, bits=stored, other_bits=other_bits)


def masked(table: ExpertTable, keep: npt.ArrayLike, *, refill: bool = False) -> ExpertTable:
    """Switch whole experts off (PreMoe, arXiv:2505.17639; MoTE, arXiv:2502.11096).

    With `refill` the router picks the next best expert and every token still runs k; without, the
    slot stays empty and the others' weights are renormalised.

    Raises:
        MoesaicError: `infeasible` when a layer keeps fewer experts than a token needs.
    """
    alive = checked(keep, table.shape, "keep").astype(bool) & (table.width > 0)
    least = int(alive.sum(axis=1).min())
    if least < (table.block.top_k if refill else 1):
        raise MoesaicError(
            "infeasible", f"a layer would keep {least} experts; a token runs {table.block.top_k}",
            "/keep",
        )  # fmt: skip
    kept = np.where(alive, table.popularity, 0.0)
    share = kept.sum(axis=1, keepdims=True)
    if (share <= 0).any():
        raise MoesaicError("infeasible", "a layer would keep only experts without tokens", "/keep")
    per_token = table.experts_per_token * (1.0 if refill else float(share.mean()))
    slots = table.block.zero_experts + alive.sum(axis=1)
    return replace(
        table, width=np.where(alive, table.width, 0), popularity=kept / share,
        experts_per_token=per_token,
        router_rows=slots.astype(np.int64) if refill else table.router_rows,
    )  # fmt: skip


def keep_highest(scores: npt.ArrayLike, count: int) -> npt.NDArray[np.bool_]:
    """Mask that keeps the `count` highest scores of each layer; ties go to the lower index."""
    values = np.asarray(scores, dtype=float)
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)  # noqa: FBT003 - numpy's own order
    return mask


def narrowed(table: ExpertTable, keep: npt.ArrayLike, *, tile: int = 1) -> ExpertTable:
    """Cut inner width, one atomic expert a unit (HEAPr, arXiv:2509.22299, section 3).

    Args:
        table: experts so far.
        keep: inner units kept by layer and expert.
        tile: kernels read widths in such multiples; widths are padded up to them.

    Raises:
        MoesaicError: `invalid` for widths that grow or are negative.
    """
    wanted = checked(keep, table.shape, "keep")
    if (wanted < 0).any() or (wanted > table.width).any():
        raise MoesaicError("invalid", "kept units lie between 0 and the expert's width", "/keep")
    padded = np.minimum(-(-wanted.astype(np.int64) // tile) * tile, table.width)
    result = replace(table, width=padded)
    if len(np.unique(padded)) > 1:
        result = result.noted("widths differ: grouped kernels need ragged or padded shapes")
    return result


def merged(table: ExpertTable, owner: npt.ArrayLike, *, router_pruned: bool = False) -> ExpertTable:
    """Let several router outputs share one expert's weights (M-SMoE, arXiv:2310.01334).

    The merged expert receives the joint load of its group. Unless the router is pruned its rows
    stay, every dispatch stays, and nothing is computed less: bytes fall, time does not.

    Args:
        table: experts so far.
        owner: expert that stands in each expert's place, by layer and expert.
        router_pruned: drop the rows of merged experts from the router.

    Raises:
        MoesaicError: `invalid` when an owner is itself merged away or out of range.
    """
    places = checked(owner, table.shape, "owner").astype(np.int64)
    if (places < 0).any() or (places >= table.shape[1]).any():
        raise MoesaicError("invalid", "owners are expert indices of the same layer", "/owner")
    if (np.take_along_axis(places, places, axis=1) != places).any():
        raise MoesaicError("invalid", "an owner is itself merged into another expert", "/owner")
    own = places == np.arange(table.shape[1])[None, :]
    rows = own.sum(axis=1) if router_pruned else table.router_rows
    result = replace(table, owner=places, router_rows=np.asarray(rows, dtype=np.int64))
    return result.noted(FINE_TUNING)


def grouped_owners(shape: tuple[int, int], groups: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Owners when each layer is merged into so many equal groups of neighbours.

    Args:
        shape: MoE layers and experts.
        groups: groups of each layer, one number or shape [layers].
    """
    counts = np.broadcast_to(np.asarray(groups, dtype=np.int64), (shape[0],))
    members = np.arange(shape[1])
    group = members[None, :] * counts[:, None] // shape[1]
    first = -(-group * shape[1] // counts[:, None])
    return np.asarray(first, dtype=np.int64)


def low_rank_sparse(
    table: ExpertTable, rank: int, kept_ratio: float, where: npt.ArrayLike | None = None
) -> ExpertTable:
    """Replace matrices by a rank-`rank` pair and a sparse rest (MC-SMoE: rank 32, 10 % kept).

    Args:
        table: experts so far.
        rank: inner width of the pair.
        kept_ratio: share of entries of the sparse part.
        where: which experts, by layer and expert; none: all.
    """
    if rank < 1 or not 0 <= kept_ratio <= 1:
        raise MoesaicError("invalid", "rank is 1 or more, the kept share 0 to 1", "/rank")
    everywhere = np.ones(table.shape, dtype=bool)
    chosen = everywhere if where is None else checked(where, table.shape, "where").astype(bool)
    result = replace(
        table, rank=np.where(chosen, rank, table.rank),
        kept_ratio=np.where(chosen, kept_ratio, table.kept_ratio),
    )  # fmt: skip
    return result.noted(FINE_TUNING)


def main_and_compressed(table: ExpertTable, main: int) -> ExpertTable:
    """Run `main` experts; the others of the top-k act as vectors (arXiv:2503.00634, section 2.3).

    One hidden-wide vector an expert is added. All experts stay resident: any may be main.

    Raises:
        MoesaicError: `invalid` unless 1 <= main <= k.
    """
    if not 1 <= main <= table.block.top_k:
        raise MoesaicError("invalid", f"main experts lie in 1 to {table.block.top_k}", "/main")
    layers, experts = table.shape
    auxiliary = table.block.top_k - main
    flops = 2.0 * layers * table.input_width * (auxiliary + 1)
    return replace(
        table, experts_per_token=float(main),
        added_parameters=table.added_parameters + layers * experts * table.input_width,
        added_flops_per_token=table.added_flops_per_token + flops,
    ).noted(FINE_TUNING)  # fmt: skip


def with_adapters(table: ExpertTable, rank: int, *, copies: int = 1) -> ExpertTable:
    """Low-rank adapters on every matrix of every stored routed expert (LoRA, arXiv:2106.09685).

    Args:
        table: experts so far.
        rank: rank of each pair.
        copies: adapters held at once, one of them used by a token.
    """
    if rank < 1 or copies < 1:
        raise MoesaicError("invalid", "rank and copies are 1 or more", "/rank")
    pair = table.block.matrices * rank * (table.width + table.input_width)
    stored = int((pair * table.stored()).sum())
    used = 2.0 * table.experts_per_token * float((pair * table.popularity).sum())
    return replace(
        table, added_parameters=table.added_parameters + copies * stored,
        added_flops_per_token=table.added_flops_per_token + used,
    )  # fmt: skip


def merged_to_dense(model: MoeModel) -> MoeModel:
    """Average all experts of each layer into one block (EWA, arXiv:2308.06093, eq. 4).

    Shared experts stay beside it as width; the router is gone.
    """
    kinds = {name: _dense_kind(kind) for name, kind in model.kinds.items()}
    return model.model_copy(update={"name": f"{model.name} merged to dense", "kinds": kinds})


def _dense_kind(kind: LayerKind) -> LayerKind:
    ffn = kind.ffn
    if not isinstance(ffn, MoeFfn):
        return kind
    if ffn.latent is not None:
        raise MoesaicError("outside_evidence", "experts of another token width do not average")
    width = ffn.width + ffn.shared_width
    dense = DenseFfn(width=width, matrices=ffn.matrices, bias=ffn.expert_bias)
    return kind.model_copy(update={"ffn": dense})


def upcycled(model: MoeModel, experts: int, top_k: int, *, every: int = 1) -> MoeModel:
    """Copy the dense block of each `every`-th layer into experts (arXiv:2212.05055).

    Raises:
        MoesaicError: `invalid` for a model without dense blocks.
    """
    order = [run.kind for run in model.layers for _ in range(run.count)]
    if not any(isinstance(model.kinds[name].ffn, DenseFfn) for name in order):
        raise MoesaicError("invalid", f"{model.name} has no dense block to copy", "/model")
    kinds = dict(model.kinds)
    names = []
    for index, name in enumerate(order):
        kind = model.kinds[name]
        if isinstance(kind.ffn, DenseFfn) and (index + 1) % every == 0:
            kinds[f"{name}-upcycled"] = _upcycled_kind(kind, kind.ffn, experts, top_k)
            names.append(f"{name}-upcycled")
        else:
            names.append(name)
    runs = tuple(LayerRun(kind=name, count=1) for name in names)
    changes = {"name": f"{model.name} upcycled", "kinds": kinds, "layers": runs}
    return MoeModel.parse({**model.model_dump(), **changes}, what="model")


def _upcycled_kind(kind: LayerKind, ffn: DenseFfn, experts: int, top_k: int) -> LayerKind:
    routed = MoeFfn(
        experts=experts, top_k=top_k, width=ffn.width, matrices=ffn.matrices, expert_bias=ffn.bias
    )
    return kind.model_copy(update={"ffn": routed})
