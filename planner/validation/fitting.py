"""Fit the engine layer on published figures: few terms, robust, pulled towards physics.

Figures of one run count once, whatever names and tables carry it; all figures of one series stay
on one side of every split; a series counts with the square root of its figures. What one model or
machine is worth is told by leaving it out whole, under all its names.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_device
from planner.estimate import Group
from planner.model_library import resolve_model
from planner.point import Point
from planner.pricing import Question, price
from planner.timing.engine_layer import (
    ANY,
    NEW_MACHINE,
    NEW_MODEL,
    EngineFit,
    Fitted,
    Layer,
    Layers,
    Spread,
    Term,
    find_labels,
    fitted_passes,
    generation,
    polls_on,
    ride_tokens,
    shape_of,
)
from planner.timing.parts import Parts, tpot_parts, ttft_parts
from planner.timing.serving import KEY, load_of, paired
from planner.validation.evidence import Evidence, Figure, is_training
from planner.validation.robust import NOISE, Rows, solve
from planner.validation.terms import Candidate, tpot_candidates, ttft_candidates

Array = NDArray[np.float64]
TRAINING_SHARE = 0.8
RULE = (
    "80 % of series; a series is one model (checkpoints of equal sizes are one), machine, engine, "
    "version, precision and layout, and the first 8 hex digits of SHA-256 of these decide "
    "(planner/validation/evidence.py)"
)
EXPERIMENTAL = ("ixtp",)
"""Collections whose publishers call them experimental: compared, not fitted on."""
QUANTITIES = ("tpot_s", "ttft_s")
LOW, HIGH, ENOUGH = 0.1, 0.9, 25
"""Quantiles of an interval; fewest figures from which something is told on its own."""
LEAST = 0.004
"""Terms that move a part by less than half a percent are dropped."""


@dataclass(frozen=True)
class Block(Rows):
    """Rows with the figures they come from."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Case:
    """One configuration asked once, whatever number of figures it answers."""

    point: Point
    figures: tuple[Figure, ...]


@cache
def model_shape(name: str) -> str:
    """The sizes behind a model's name; two names of one architecture are one model here."""
    return shape_of(resolve_model(name))


def series_of(figure: Figure) -> str:
    """What stays together in the split: everything but lengths, load and the model's name."""
    kept = {k: v for k, v in figure.point.items() if k not in ("id", "isl", "osl", "concurrency")}
    return json.dumps({**kept, "model": model_shape(kept["model"])}, sort_keys=True)


def distinct(figures: Sequence[Figure]) -> list[Figure]:
    """Drop figures that repeat a run under another name: equal to four digits in equal settings."""
    found: dict[tuple[object, ...], Figure] = {}
    for figure in figures:
        point = figure.point
        same = (model_shape(point["model"]), point["device"], point["backend"], point["precision"],
                point["isl"], point["osl"], point.get("concurrency"), figure.target,
                float(f"{figure.value:.4g}"))  # fmt: skip
        found.setdefault(same, figure)
    return list(found.values())


def usable(figure: Figure) -> bool:
    """Whether a figure may be fitted on: a closed loop of more than one token, TPOT or TTFT."""
    return (
        figure.setting == "closed_loop"
        and figure.target in QUANTITIES
        and figure.point["osl"] > 1
        and figure.tags["source"] not in EXPERIMENTAL
    )


def was_fitted_on(figure: Figure) -> bool:
    """Whether a figure belongs to the part that terms are fitted on."""
    return usable(figure) and is_training(series_of(figure), share=TRAINING_SHARE)


def _with_enough(figures: Sequence[Figure]) -> list[Figure]:
    """Leave out engines with so few figures that terms of their own would repeat them."""
    counts = Counter(figure.tags["engine"] for figure in figures)
    return [figure for figure in figures if counts[figure.tags["engine"]] >= ENOUGH]


def fit_engine_layer(evidence: Evidence) -> EngineFit:
    """Fit on the training part, score on the rest and on whole models and machines left out.

    Raises:
        MoesaicError: `invalid` where figures are too few.
    """
    chosen = _with_enough(distinct([f for f in evidence.figures if usable(f)]))
    training = [was_fitted_on(figure) for figure in chosen]
    held_in = [f for f, inside in zip(chosen, training, strict=True) if inside]
    held_out = [f for f, inside in zip(chosen, training, strict=True) if not inside]
    if not held_in or not held_out:
        raise MoesaicError(
            "invalid",
            f"{len(chosen)} closed-loop figures of TPOT and TTFT, of engines with {ENOUGH} or "
            "more, are too few to fit on and to score on",
        )
    terms = fit_terms(held_in)
    away = {
        NEW_MODEL: leave_out(chosen, lambda f: model_shape(f.point["model"])),
        NEW_MACHINE: leave_out(chosen, lambda f: f.tags["machine"]),
    }
    left_out = {
        f"{quantity} leaving one {what.removeprefix('new ')} out": found[quantity].median_ratio
        for what, found in away.items()
        for quantity in QUANTITIES
    }
    machines = sorted({f.tags["machine"] for f in held_in})
    return EngineFit(
        date=datetime.datetime.now(tz=datetime.UTC).date(),
        source="published closed-loop serving figures: InferenceMAX runs, AIConfigurator's "
        "published samples, TensorRT-LLM and SGLang tables",
        rule=RULE,
        tpot=_fitted(terms, "tpot_s", (held_in, held_out), away),
        ttft=_fitted(terms, "ttft_s", (held_in, held_out), away),
        left_out_ratio={name: round(value, 4) for name, value in left_out.items()},
        shapes=tuple(sorted({model_shape(f.point["model"]) for f in held_in})),
        machines=tuple(machines),
        generations=tuple(sorted({generation(load_device(name)) for name in machines})),
    )


Terms = dict[str, tuple[Term, ...]]


def fit_terms(figures: Sequence[Figure]) -> Terms:
    """Terms of both quantities; TTFT is fitted on passes that TPOT's terms have weighed."""
    found = blocks(figures, "tpot_s", ())
    tpot = terms_of(found, tpot_candidates([block.labels for block in found]))
    found = blocks(figures, "ttft_s", tpot)
    ttft = terms_of(found, ttft_candidates([block.labels for block in found]))
    return {"tpot_s": tpot, "ttft_s": ttft}


def terms_of(
    found: list[Block], candidates: list[Candidate], noise: float = NOISE
) -> tuple[Term, ...]:
    """Fitted terms that move something."""
    values = solve(found, candidates, noise)
    return tuple(
        Term(on=on, by=by, where=where, log_ratio=round(float(value), 4))
        for (on, by, where, _), value in zip(candidates, values, strict=True)
        if abs(value) >= LEAST
    )


def blocks(figures: Sequence[Figure], target: str, tpot: Sequence[Term]) -> list[Block]:
    """Price every configuration once and lay out the parts of one quantity."""
    cases: dict[str, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for figure in figures:
        if figure.target == target:
            point = {k: v for k, v in figure.point.items() if k != "id"}
            shared = ("model", "device", "backend", "precision", "mode")
            key = json.dumps([point[k] for k in shared] + [point.get("backend_version")])
            cases[key][json.dumps(point, sort_keys=True) + figure.statistic].append(figure)
            counts[series_of(figure)] += 1
    found = []
    for members in cases.values():
        asked = [Case(Point.model_validate(f[0].point), tuple(f)) for f in members.values()]
        found += _block(asked, target, tpot, counts)
    return found


def _block(
    cases: list[Case], target: str, tpot: Sequence[Term], counts: dict[str, int]
) -> list[Block]:
    try:
        found = _priced(cases, target, tpot, counts)
    except MoesaicError:
        if len(cases) == 1:
            return []
        middle = len(cases) // 2
        return [*_block(cases[:middle], target, tpot, counts),
                *_block(cases[middle:], target, tpot, counts)]  # fmt: skip
    return [found] if len(found.figures) else []


_PRICED: dict[tuple[str, ...], tuple[Group, pl.DataFrame]] = {}
"""Passes priced before the fitted layer; leaving models out asks for them again and again."""


def _passes(cases: list[Case]) -> tuple[Group, pl.DataFrame]:
    key = tuple(case.point.model_dump_json() for case in cases)
    if key not in _PRICED:
        group = Group.of([case.point for case in cases], resolve_model)
        held = {i: float(c.point.concurrency or 1) for i, c in enumerate(cases)}
        priced = price(group.passes(held), group.question, fitted=False)
        seats = group.running(priced, held)
        full = pl.Series("line", [i for i in held if seats[i] < held[i]], dtype=pl.Int64)
        # Callers who wait for memory are another queue than the one that is fitted.
        _PRICED[key] = group, priced.passes.filter(~pl.col("line").is_in(full.implode()))
    return _PRICED[key]


def _priced(cases: list[Case], target: str, tpot: Sequence[Term], counts: dict[str, int]) -> Block:
    group, passes = _passes(cases)
    question = group.question
    labels = find_labels(question.engine, question.cluster.device, question.formats.weights.routed)
    layer = _layer(tpot, labels, question)
    if target == "ttft_s":
        passes = fitted_passes(passes.drop("raw_s"), layer)
    if cases[0].point.mode == "disagg":
        both = group.beside(passes)
    else:
        prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
        both = paired(prefill, decode, (*KEY, "line")).sort("line")
    kept = [cases[line] for line in both["line"]]
    median = np.array([case.figures[0].statistic == "median" for case in kept], dtype=float)
    parts: Parts = (
        tpot_parts(both) if target == "tpot_s"
        else ttft_parts(load_of(both, Layers.of(layer)), median)
    )  # fmt: skip
    measured = np.array([np.median([f.value for f in case.figures]) for case in kept])
    figures = tuple(case.figures[0] for case in kept)
    weight = np.array([counts[series_of(figure)] ** -0.5 for figure in figures])
    return Block(parts, labels, measured, weight, figures)


def _layer(tpot: Sequence[Term], labels: frozenset[str], question: Question) -> Layer:
    none = Fitted(terms=tuple(tpot), rows_count=0, held_out_count=0, held_out_median_ratio=0.0)
    fit = EngineFit(date=datetime.date.min, source="", rule="", tpot=none, ttft=none)
    flat = Spread(low_log_ratio=0.0, high_log_ratio=0.0, rows=0)
    engine, device = question.engine, question.cluster.device
    return Layer(fit, labels, flat, flat, ride_tokens(engine), polls_on(engine, device))


@dataclass(frozen=True)
class Errors:
    """log(measured / estimated) of figures with what they are grouped by."""

    logs: Array
    figures: tuple[Figure, ...]

    @property
    def median_ratio(self) -> float:
        """Median of |estimated / measured - 1|."""
        return float(np.median(np.abs(np.exp(-self.logs) - 1)))

    @property
    def keys(self) -> Array:
        """Engine and machine of each."""
        return np.array([f"{f.tags['engine']}|{f.tags['machine']}" for f in self.figures])


def errors(figures: Sequence[Figure], terms: Terms, target: str) -> Errors:
    """Errors of terms on figures."""
    logs = [np.zeros(0)]
    kept: list[Figure] = []
    for block in blocks(figures, target, terms["tpot_s"]):
        logs.append(np.log(block.measured) - np.log(block.parts.total(terms[target], block.labels)))
        kept += block.figures
    return Errors(np.concatenate(logs), tuple(kept))


def _fitted(
    terms: Terms, target: str, parts: tuple[list[Figure], list[Figure]],
    away: dict[str, dict[str, Errors]],
) -> Fitted:  # fmt: skip
    held_out = errors(parts[1], terms, target)
    known = {ANY: _spread(held_out.logs)}
    known |= {what: _spread(found[target].logs) for what, found in away.items()}
    for key in sorted(set(held_out.keys)):
        if (held_out.keys == key).sum() >= ENOUGH:
            known[key] = _spread(held_out.logs[held_out.keys == key])
    return Fitted(
        terms=terms[target], known=known,
        rows_count=sum(f.target == target for f in parts[0]),
        held_out_count=len(held_out.logs),
        held_out_median_ratio=round(held_out.median_ratio, 4),
    )  # fmt: skip


def _spread(logs: Array) -> Spread:
    low, high = np.quantile(logs, [LOW, HIGH])
    return Spread(
        low_log_ratio=round(min(float(low), -0.01), 4),
        high_log_ratio=round(max(float(high), 0.01), 4),
        rows=len(logs),
    )


def leave_out(figures: Sequence[Figure], group: Callable[[Figure], str]) -> dict[str, Errors]:
    """Errors on each model (or machine) of terms fitted without it, by quantity."""
    parts: dict[str, list[Errors]] = {quantity: [] for quantity in QUANTITIES}
    for name in sorted({group(f) for f in figures}):
        terms = fit_terms([f for f in figures if group(f) != name])
        alone = [f for f in figures if group(f) == name]
        for quantity, found in parts.items():
            found.append(errors(alone, terms, quantity))
    return {quantity: _joined(found) for quantity, found in parts.items()}


def _joined(parts: list[Errors]) -> Errors:
    return Errors(np.concatenate([p.logs for p in parts]),
                  tuple(f for p in parts for f in p.figures))  # fmt: skip
