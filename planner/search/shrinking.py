"""What to prune and what to quantise so that a model fits the devices it is given.

Every routed expert is dropped (all of its share of the tokens is lost) or kept at a width (a part
of the share is lost). The least loss within a byte budget is a multiple-choice knapsack whose
experts all have one size, so its relaxation is a sort of the steps of one convex hull; the answer
takes those steps until the budget ends and the relaxation is its bound (Sinha and Zoltners,
Operations Research 27, 1979).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.units import Bytes, Share
from planner.compression.costs import CompressionCosts, costs_of, stored_bytes
from planner.compression.experts import BITS_PER_BYTE, ExpertTable
from planner.compression.formats import GROUP, SCALE_BITS, stored_bits
from planner.compression.quality import Quality, quality_at, quality_rows
from planner.compression.transforms import masked
from planner.search.reasons import Explained, Status, status_of

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
LOADING = 4.0
"""A uniform quantiser that spans four standard deviations to each side (Jayant and Noll, Digital
Coding of Waveforms, 1984, section 4.4)."""
EASED_RATIO = 0.01
EVIDENCE = {"prune": "premoe", "bits": "pmq_gptq"}


class ShrinkQuestion(Document):
    """Devices to fit on, and what may be done to the experts."""

    devices: Annotated[int, Field(ge=1, le=65_536)]
    device_bytes: Bytes
    memory_share: Share = 0.9
    """Share of a device's memory for weights; the rest is for cache and activations."""
    replicated: bool = False
    """Every device holds attention and the rest whole (data parallel), not a part of it."""
    stored_as: str | None = None
    """Format that the devices compute in and untouched weights are held in; none: as stored."""
    widths: tuple[Annotated[int, Field(ge=1, le=8)], ...] = (8, 4, 3, 2)
    """Bits that an expert may be quantised to."""
    loss_ratio: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Share of an expert's output that is lost at a width; others follow quantiser theory."""
    prune: bool = True
    uniform: bool = False
    """The same number of experts and the same bits in every layer, as many engines need."""


class ShrunkLayer(Document):
    """What becomes of one layer: how many experts are kept at which bits, how many dropped."""

    layer: int
    experts_by_bits: dict[str, int]
    lost_share: float


class ShrinkAnswer(Explained):
    """The least loss that fits, its proof, its costs and what is known of its quality."""

    status: Status

    bits: tuple[tuple[str, ...], ...]
    """Layers x experts: `as_stored`, a width, or `dropped`."""
    layers: tuple[ShrunkLayer, ...]
    lost_share: float
    """Mean over layers of the tokens' share that is lost."""
    bound_share: float
    """No choice that fits can lose less."""
    eased_bound_share: float
    """The same with 1 % more memory: what more of the limit that binds would give."""
    gap_ratio: float
    needed_bytes: float
    """Weights of one device."""
    before: CompressionCosts
    costs: CompressionCosts
    quality: tuple[Quality, ...]
    notes: tuple[str, ...]


def loss_of(bits: int, question: ShrinkQuestion) -> float:
    """Noise over signal of a width: step² / 12 of a uniform quantiser, at most all.

    >>> round(loss_of(4, ShrinkQuestion(devices=1, device_bytes=1)), 4)
    0.0208
    """
    step = 2 * LOADING / float(2**bits)
    return question.loss_ratio.get(bits, min(step**2 / 12, 1.0))


def shrink(table: ExpertTable, question: ShrinkQuestion) -> ShrinkAnswer:
    """Choose what to drop and what to quantise.

    Args:
        table: the model's experts; `popularity` weighs them (shares of tokens, or a score).
        question: devices and what may be done.

    Raises:
        MoesaicError: `infeasible`, saying how many devices would do.
    """
    if question.stored_as is not None:
        held = stored_bits(question.stored_as)
        table = replace(table, bits=np.full(table.shape, held), other_bits=held)
    names, sizes, losses = _options(table, question)
    budget = _budget(table, question, float(sizes[-1]))
    least = table.block.top_k if question.prune else table.shape[1]
    rule = _uniform if question.uniform else _free
    chosen, bound = rule(table.popularity, sizes, losses, budget, least)
    room = question.devices * question.device_bytes * question.memory_share
    _, eased = rule(table.popularity, sizes, losses, budget + EASED_RATIO * room, least)
    return _answer(table, question, (names, losses, chosen, bound), eased)


def _options(table: ExpertTable, question: ShrinkQuestion) -> tuple[list[str], Array, Array]:
    """Names, bytes and losses of what can become of an expert, largest first, dropped last."""
    size = float(table.parameters()[0, 0]) / BITS_PER_BYTE
    held = float(table.bits[0, 0])
    widths = [b for b in sorted(set(question.widths), reverse=True) if _stored(b) < held]
    names = ["as_stored", *(str(b) for b in widths), "dropped"]
    sizes = size * np.array([held, *(_stored(b) for b in widths), 0.0])
    return names, sizes, np.array([0.0, *(loss_of(b, question) for b in widths), 1.0])


def _stored(bits: int) -> float:
    """Scales and zero points counted, groups of 128 weights."""
    return bits + (SCALE_BITS + bits) / GROUP


def _budget(table: ExpertTable, question: ShrinkQuestion, nothing: float) -> float:
    """Bytes that all routed experts may take together."""
    experts = float((table.parameters() * table.bits).sum()) / BITS_PER_BYTE
    others = (stored_bytes(table) - experts) * (question.devices if question.replicated else 1)
    room = question.devices * question.device_bytes * question.memory_share
    if room - others <= nothing:
        raise MoesaicError(
            "infeasible",
            f"what is not a routed expert takes {others / 2**30:.1f} GiB of the "
            f"{room / 2**30:.1f} GiB that weights may fill", "/device_bytes",
        )  # fmt: skip
    return room - others


def _too_small(needed: float, budget: float) -> MoesaicError:
    return MoesaicError(
        "infeasible",
        f"the fewest experts at the fewest bits take {needed / 2**30:.1f} GiB, "
        f"{budget / 2**30:.1f} GiB are left for them; {needed / budget:.2f} times the memory would "
        "do", "/devices",
    )  # fmt: skip


def _uniform(
    shares: Array, sizes: Array, losses: Array, budget: float, least: int
) -> tuple[Whole, float]:
    """Try every count and width."""
    layers, experts = shares.shape
    kept = np.cumsum(-np.sort(-shares, axis=1), axis=1).sum(axis=0)
    counts = np.arange(least, experts + 1)
    lost = layers - kept[counts - 1][:, None] * (1 - losses[None, :-1])
    taken = layers * counts[:, None] * sizes[None, :-1]
    lost[taken > budget * (1 + 1e-12)] = np.inf
    best = int(lost.argmin())
    if not np.isfinite(lost.flat[best]):
        raise _too_small(float(taken.min()), budget)
    count, option = least + best // (len(sizes) - 1), best % (len(sizes) - 1)
    order = np.argsort(-shares, axis=1, kind="stable")
    chosen = np.full(shares.shape, len(sizes) - 1)
    np.put_along_axis(chosen, order[:, :count], option, axis=1)
    return chosen, float(lost.flat[best])


def _free(
    shares: Array, sizes: Array, losses: Array, budget: float, least: int
) -> tuple[Whole, float]:
    """Steps along each expert's hull, best loss saved a byte first.

    Of equal sizes the highest shares are kept, so the first `least` of a layer never drop.
    """
    rank = np.argsort(np.argsort(-shares, axis=1, kind="stable"), axis=1, kind="stable")
    flat, must = shares.ravel(), (rank < least).ravel()
    last = len(sizes) - 1
    chosen = np.where(must, last - 1, last)
    spent = float(sizes[chosen].sum())
    if spent > budget * (1 + 1e-12):
        raise _too_small(spent, budget)
    steps = [
        (np.full(int(group.sum()), a), np.full(int(group.sum()), b), np.flatnonzero(group))
        for group, start in ((must, last - 1), (~must, last))
        for a, b in _hull(sizes, losses, start)
    ]
    if not steps:
        return chosen.reshape(shares.shape), float((flat * losses[chosen]).sum())
    old, new, expert = (np.concatenate(part) for part in zip(*steps, strict=True))
    extra = sizes[new] - sizes[old]
    saved = flat[expert] * (losses[old] - losses[new])
    order = np.argsort(-saved / extra, kind="stable")
    total = spent + np.cumsum(extra[order])
    full = int(np.searchsorted(total, budget * (1 + 1e-12), side="right"))
    lost = float((flat * losses[chosen]).sum())
    bound = lost - float(saved[order[:full]].sum())
    if full < len(order):
        before = float(total[full - 1]) if full else spent
        bound -= float(saved[order[full]]) * (budget - before) / float(extra[order[full]])
    _take(chosen, (old[order], new[order], expert[order]), sizes, budget)
    return chosen.reshape(shares.shape), max(bound, 0.0)


def _take(chosen: Whole, steps: tuple[Whole, Whole, Whole], sizes: Array, budget: float) -> None:
    """Walk the steps in order; one that no longer fits ends its expert's walk."""
    spent = float(sizes[chosen].sum())
    smallest = float(np.diff(np.sort(sizes)).min())
    for old, new, expert in zip(*steps, strict=True):
        extra = float(sizes[new] - sizes[old])
        if chosen[expert] == old and spent + extra <= budget * (1 + 1e-12):
            chosen[expert] = new
            spent += extra
        elif budget - spent < smallest:
            return


def _hull(sizes: Array, losses: Array, start: int) -> list[tuple[int, int]]:
    """Steps from an option to larger ones along the lower convex hull of size and loss."""
    steps, here = [], start
    while here > 0:
        gain = (losses[here] - losses[:here]) / (sizes[:here] - sizes[here])
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        steps.append((here, best))
        here = best
    return steps


Chosen = tuple[list[str], Array, Whole, float]


def _answer(
    table: ExpertTable, question: ShrinkQuestion, found: Chosen, eased: float
) -> ShrinkAnswer:
    names, losses, chosen, bound = found
    after = _applied(table, names, chosen)
    layers = table.shape[0]
    lost = (table.popularity * losses[chosen]).sum(axis=1)
    other = stored_bytes(after) - float(
        (after.parameters() * after.stored() * after.bits).sum() / BITS_PER_BYTE
    )
    routed = stored_bytes(after) - other
    needed = routed / question.devices + other / (1 if question.replicated else question.devices)
    quality, silent = _evidence(after, names, chosen)
    gap = max(float(lost.sum()) - bound, 0.0) / max(float(lost.sum()), 1e-12)
    return ShrinkAnswer(
        status=status_of(gap),
        bits=tuple(tuple(names[k] for k in row) for row in chosen.tolist()),
        layers=tuple(
            ShrunkLayer(
                layer=i, lost_share=float(lost[i]),
                experts_by_bits={n: c for k, n in enumerate(names) if (c := int((row == k).sum()))},
            )
            for i, row in enumerate(chosen)
        ),
        lost_share=float(lost.mean()), bound_share=bound / layers,
        eased_bound_share=eased / layers,
        gap_ratio=gap,
        needed_bytes=needed, before=costs_of(table), costs=costs_of(after),
        quality=quality, notes=(*_assumed(question, table.popularity, names, chosen), *silent),
    )  # fmt: skip


def _applied(table: ExpertTable, names: list[str], chosen: Whole) -> ExpertTable:
    """The table after the choice."""
    bits = table.bits.copy()
    for k, name in enumerate(names):
        if name.isdigit():
            bits[chosen == k] = _stored(int(name))
    after = replace(table, bits=bits)
    dropped = chosen == len(names) - 1
    return masked(after, ~dropped, refill=True) if dropped.any() else after


def _assumed(question: ShrinkQuestion, shares: Array, names: list[str], chosen: Whole) -> list[str]:
    notes = ["experts are spread evenly over the devices"]
    if float(np.ptp(shares)) == 0:
        notes.append("no importance is given: every expert of a layer weighs alike")
    used = [n for k, n in enumerate(names) if n.isdigit() and (chosen == k).any()]
    theory = [n for n in used if int(n) not in question.loss_ratio]
    if theory:
        notes.append(
            f"loss at {', '.join(theory)} bits is a uniform quantiser's noise, not measured; give "
            "loss_ratio where you have it"
        )
    return notes


def _evidence(
    after: ExpertTable, names: list[str], chosen: Whole
) -> tuple[tuple[Quality, ...], list[str]]:
    """Published figures at the choice, and where there are none."""
    kept = chosen < len(names) - 1
    touched = kept & (chosen > 0)
    settings = {}
    if not kept.all():
        settings["prune"] = float(kept.sum(axis=1).mean())
    if touched.any():
        settings["bits"] = costs_of(after).average_bits
    found, silent = [], []
    for what, at in settings.items():
        rows = [row for row in quality_rows() if row.method == EVIDENCE[what]
                and row.model.lower() == after.model.name.lower()]  # fmt: skip
        for metric in sorted({row.metric for row in rows}):
            try:
                found.append(quality_at(EVIDENCE[what], rows[0].model, metric, at))
            except MoesaicError as error:
                silent.append(error.message)
        if not rows:
            silent.append(f"no published quality of {EVIDENCE[what]} on {after.model.name}")
    if len(settings) > 1:
        silent.append("no published figure covers dropping and quantising experts together")
    return tuple(found), silent
