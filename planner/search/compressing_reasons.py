"""Why compression loses what it loses: limits that bind, those in conflict, and what lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.compression import importance
from planner.moe_model import MoeModel
from planner.search.bits import second_bits
from planner.search.compressing import (
    AtomicBody,
    BitsBody,
    Compressed,
    FitBody,
    MergeBody,
    PruneBody,
    compress,
    frame,
)
from planner.search.merging import MOST_PAIRS
from planner.search.pruning import PruneAnswer
from planner.search.reasons import Limit, bindings, contradiction

Array = NDArray[np.float64]
Wish = Limit[Any]
OBJECTIVE = {"bits": "objective", "prune": "objective", "atomic": "lost_saliency_share",
             "merge": "lost_likeness_share", "fit": "lost_share"}  # fmt: skip
"""The field of the answer that says how good it is."""
WHAT = {"bits": "weighed error", "prune": "kept score, layers' shares summed",
        "atomic": "lost saliency", "merge": "lost likeness", "fit": "lost share"}  # fmt: skip
ENDLESS_BYTES = 1e30
EASE = 1e-12
"""Share of a budget that rounding may take."""


def compress_explained(body: Any, model: MoeModel | None = None) -> Compressed:  # noqa: ANN401
    """As `compress`, with the limits that bind and why the runner-up lost.

    Raises:
        MoesaicError: as `compress`; of limits in conflict the fewest are named, and the cheapest
            relaxation.
    """
    plain = _scored(body)

    def again(asked: Any) -> float | None:  # noqa: ANN401 - a body
        try:
            answer = compress(asked, model if isinstance(asked, FitBody) else None).answer
        except MoesaicError as error:
            if error.kind != "infeasible":
                raise
            return None
        return float(getattr(answer, OBJECTIVE[asked.method]))

    try:
        found = compress(body, model)
    except MoesaicError as error:
        if error.kind != "infeasible":
            raise
        raise contradiction(
            error, plain, limits(plain), lambda asked: again(asked) is not None
        ) from None
    now = float(getattr(found.answer, OBJECTIVE[body.method]))
    update = {
        "binding": bindings(plain, limits(plain), again, now, maximise=body.method == "prune"),
        "runner_up": RUNNER_UP[body.method](plain, found, again),
    }
    return found.model_copy(update={"answer": found.answer.model_copy(update=update)})


def _scored(body: Any) -> Any:  # noqa: ANN401 - a body
    """A trace scored once, so that changing a limit does not change what experts are worth."""
    if not isinstance(body, PruneBody) or body.logits is None or body.scores is not None:
        return body
    scores = importance.score(body.score, body.logits, body.top_k)
    return body.model_copy(update={"scores": scores, "logits": None})


def limits(body: Any) -> list[Wish]:  # noqa: ANN401 - a body
    """The limits of a question by name."""
    found: list[Wish] = LIMITS[body.method](body)
    if body.uniform:
        found.append(_wish("uniform", uniform=False))
    return found


def _wish(name: str, **free: object) -> Wish:
    return Limit(name, None, lambda body, _: body.model_copy(update=free))


def _limit(name: str, value: float, free: float, **more: Any) -> Wish:  # noqa: ANN401 - of Limit
    """A limit that is one field; `whole` keeps its kind."""
    whole = isinstance(free, int)

    def change(body: Any, to: float | None) -> Any:  # noqa: ANN401 - a body
        moved = free if to is None else to
        return body.model_copy(update={name: round(moved) if whole else moved})

    return Limit(name, float(value), change, **more)


def _of_bits(body: BitsBody) -> list[Wish]:
    widest = max(max(row.quant_loss) for row in body.factors)
    layers = {row.layer for row in body.factors}
    most = float(widest * len(body.factors))
    found = [_limit("budget_bits", body.budget_bits, most, step=1.0)]
    if body.keep_high:
        found.append(_wish("keep_high", keep_high=False))
    if body.scope == "layer" and len(layers) > 1 and not body.uniform:
        found.append(_wish("scope", scope="model"))
    return found


def _of_prune(body: PruneBody) -> list[Wish]:
    layers, experts = np.shape(body.scores)
    found = []
    if body.keep_experts is not None:
        found.append(_limit("keep_experts", body.keep_experts, layers * experts, step=1.0))
    if body.budget_bytes is not None:
        sizes = body.sizes(layers)
        found.append(_limit("budget_bytes", body.budget_bytes, float(sizes.sum()) * experts,
                            step=float(sizes.min())))  # fmt: skip
    if body.coverage:
        found.append(_limit("coverage", body.coverage, 0.0, greater=False, end=0.0))
    name = "top_k" if body.top_k >= body.least_per_layer else "least_per_layer"
    least = max(body.top_k, body.least_per_layer)

    def change(asked: PruneBody, to: float | None) -> PruneBody:
        value = 1 if to is None else round(to)
        return asked.model_copy(update={"top_k": value, "least_per_layer": value})

    if least > 1:
        found.append(Limit(name, float(least), change, greater=False, step=1.0, end=1.0))
    return found


def _of_atomic(body: AtomicBody) -> list[Wish]:
    found = [_limit("cut_ratio", body.cut_ratio, 0.0, greater=False, end=0.0)]
    return found + ([_wish("tile", tile=1)] if body.tile > 1 else [])


def _of_merge(body: MergeBody) -> list[Wish]:
    _, layers, experts = np.shape(body.logits)
    found = [_limit("groups", body.groups, layers * experts, step=1.0, end=layers * experts)]
    if body.keep_first:
        found.append(_wish("keep_first", keep_first=False))
    if body.by == "use" and layers * experts**2 <= MOST_PAIRS:
        found.append(_wish("by", by="loss"))
    return found


def _of_fit(body: FitBody) -> list[Wish]:
    found = [
        _limit("device_bytes", body.device_bytes, ENDLESS_BYTES),
        _limit("memory_share", body.memory_share, 1.0, end=1.0),
        _limit("devices", body.devices, 65_536, step=1.0),
    ]
    if body.replicated:
        found.append(_wish("replicated", replicated=False))
    return found + ([] if body.prune else [_wish("prune", prune=True)])


LIMITS: dict[str, Callable[[Any], list[Wish]]] = {
    "bits": _of_bits, "prune": _of_prune, "atomic": _of_atomic, "merge": _of_merge, "fit": _of_fit,
}  # fmt: skip
Again = Callable[[Any], float | None]


def _after_bits(body: BitsBody, found: Compressed, _: Again) -> str | None:
    return second_bits(frame(body.factors), body, found.answer)  # type: ignore[arg-type] # of bits


def _after_prune(body: PruneBody, found: Compressed, _: Again) -> str | None:
    """The best exchange of one kept expert for another."""
    answer: PruneAnswer = found.answer  # type: ignore[assignment] # of prune
    scores = np.asarray(body.scores, dtype=float)
    shares = scores / scores.sum(axis=1, keepdims=True)
    kept = np.zeros(shares.shape, dtype=bool)
    for layer, experts in enumerate(answer.keep):
        kept[layer, list(experts)] = True
    if kept.all():
        return None
    exchange = partial(_exchange, shares, kept, body)
    lost, out, comes = min(
        (exchange(i, j) for i in range(len(kept)) for j in range(len(kept))), key=lambda x: x[0]
    )
    if not np.isfinite(lost):
        return None
    layer, expert = comes
    return (
        f"expert {expert} of layer {layer} in place of expert {out[1]} of layer {out[0]}: "
        f"{lost:.3g} of a layer's score less"
    )


Place = tuple[int, int]


def _exchange(
    shares: Array, kept: NDArray[np.bool_], body: PruneBody, one: int, other: int
) -> tuple[float, Place, Place]:
    """The weakest kept expert of a layer goes, the strongest left out of another comes."""
    least = max(body.top_k, body.least_per_layer)
    nothing = (np.inf, (one, 0), (other, 0))
    inside, outside = np.flatnonzero(kept[one]), np.flatnonzero(~kept[other])
    sizes = body.sizes(len(kept))
    room = body.budget() - float(kept.sum(axis=1) @ sizes) + float(sizes[one] - sizes[other])
    tight = room < -EASE * body.budget()
    across = one != other and (body.uniform or len(inside) <= least or tight)
    if across or not len(inside) or not len(outside):
        return nothing
    out = int(inside[shares[one, inside].argmin()])
    comes = int(outside[shares[other, outside].argmax()])
    left = float(shares[one, inside].sum() - shares[one, out])
    left += float(shares[other, comes]) if one == other else 0.0
    if left < body.coverage - 1e-12:
        return nothing
    return float(shares[one, out] - shares[other, comes]), (one, out), (other, comes)


def _after_atomic(body: AtomicBody, found: Compressed, again: Again) -> str | None:
    """The same width everywhere where widths are free; else the widths that are."""
    other = again(body.model_copy(update={"uniform": not body.uniform}))
    return None if body.uniform else _against(found, other, "the same width in every expert")


def _after_merge(body: MergeBody, found: Compressed, again: Again) -> str | None:
    if body.by == "use":
        return None
    rule = again(body.model_copy(update={"by": "use"}))
    return _against(found, rule, "the most used stay (M-SMoE)")


def _after_fit(body: FitBody, found: Compressed, again: Again) -> str | None:
    if body.uniform:
        return None
    alike = again(body.model_copy(update={"uniform": True}))
    return _against(found, alike, "the same number of experts and bits in every layer")


def _against(found: Compressed, other: float | None, name: str) -> str | None:
    now = float(getattr(found.answer, OBJECTIVE[found.method]))
    if other is None:
        return f"{name}: does not fit"
    return f"{name}: {WHAT[found.method]} {other:.6g} against {now:.6g}"


RUNNER_UP: dict[str, Callable[[Any, Compressed, Again], str | None]] = {
    "bits": _after_bits, "prune": _after_prune, "atomic": _after_atomic, "merge": _after_merge,
    "fit": _after_fit,
}  # fmt: skip
