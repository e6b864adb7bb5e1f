"""Fit the engine layer on published figures: few terms, robust, pulled towards physics.

Gauss-Newton on log(measured) - log(estimated) with Huber weights (Huber, Robust Statistics, 1981)
and a normal prior around 0 for each term: one that no figure supports stays at 0, physics alone.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hwprofiles.errors import MoesaicError
from planner.estimate import Group
from planner.model_library import resolve_model
from planner.point import Point
from planner.pricing import price
from planner.timing.engine_layer import (
    ALL,
    EngineFit,
    Fitted,
    Layer,
    Parts,
    Spread,
    Term,
    find_labels,
    fitted_passes,
    tpot_parts,
    ttft_parts,
)
from planner.timing.serving import KEY, load_of, paired
from planner.validation.evidence import Evidence, Figure, is_training

Array = NDArray[np.float64]
TRAINING_SHARE = 0.8
RULE = (
    "80 % of series; a series is one model, machine, engine, version, precision and layout, and "
    "the first 8 hex digits of SHA-256 of these names decide (planner/validation/evidence.py)"
)
EXPERIMENTAL = ("ixtp",)
"""Collections whose publishers call them experimental: compared, not fitted on."""
NOISE, HUBER, ROUNDS = 0.3, 1.3, 15
"""Prior weight of one row, Huber's corner in robust deviations, Gauss-Newton steps."""
TPOT_PRIORS = {
    # part: prior deviation everywhere, by engine, by generation of machines, by precision
    "experts": (0.2, 0.1, 0.15, 0.1), "attention": (0.3, 0.2, 0.15, 0.05),
    "exchange": (0.4, 0.3, 0.15, 0.0), "other": (0.2, 0.0, 0.1, 0.0),
    "dense": (0.2, 0.05, 0.1, 0.05), "host": (0.5, 0.5, 0.0, 0.0),
    "launch": (0.5, 0.5, 0.2, 0.1), "prefill": (0.4, 0.3, 0.15, 0.1),
}  # fmt: skip
TPOT_SLOPES = (
    ("experts", "load", 0.3), ("attention", "load", 0.3), ("experts", "load2", 0.2),
    ("experts", "tp", 0.1), ("attention", "tp", 0.1), ("exchange", "tp", 0.1),
    ("dense", "tp", 0.1), ("experts", "ep", 0.1), ("exchange", "ep", 0.1),
    ("experts", "moe_tp", 0.1), ("exchange", "spread", 0.5),
)  # fmt: skip
TTFT_PRIORS = {
    "entry": (0.7, 0.3), "launch": (0.7, 0.4), "prompt": (0.3, 0.3), "step": (0.5, 0.3),
    "wave": (0.5, 0.4), "queue": (0.7, 0.4), "residual": (0.7, 0.4), "callers": (1.0, 0.4),
    "warm": (1.0, 0.7),
}  # fmt: skip
TTFT_SLOPES = (
    ("callers", 0.15, 0.1), ("isl", 0.15, 0.1), ("osl", 0.15, 0.1), ("busy", 0.15, 0.1),
    ("spread", 0.3, 0.2), ("tp", 0.15, 0.0), ("pooled", 0.5, 0.3), ("pooled_callers", 0.3, 0.2),
    ("median", 0.5, 0.2), ("median_callers", 0.2, 0.1),
)  # fmt: skip
MACHINE, MACHINE_PRECISION, VERSION, VERSION_WARM = 0.1, 0.1, 0.3, 1.0


@dataclass(frozen=True)
class Block:
    """Figures that share their labels, with the parts their quantity is made of."""

    parts: Parts
    labels: frozenset[str]
    measured: Array
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Case:
    """One configuration asked once, whatever number of figures it answers."""

    point: Point
    figures: tuple[Figure, ...]


def series_of(figure: Figure) -> str:
    """What stays together in the split: everything but lengths and load."""
    kept = {k: v for k, v in figure.point.items() if k not in ("id", "isl", "osl", "concurrency")}
    return json.dumps(kept, sort_keys=True)


def fit_engine_layer(evidence: Evidence) -> EngineFit:
    """Fit on the training part, score on the rest."""
    chosen = [f for f in evidence.figures if usable(f)]
    training = np.array([is_training(series_of(f), share=TRAINING_SHARE) for f in chosen])
    held_in = [f for f, inside in zip(chosen, training, strict=True) if inside]
    held_out = [f for f, inside in zip(chosen, training, strict=True) if not inside]
    terms = fit_terms(held_in)
    spread = {q: errors(held_out, terms, q) for q in ("tpot_s", "ttft_s")}
    left_out = {
        f"{target} leaving one {tag} out": round(found.median_ratio, 4)
        for tag in ("model", "machine")
        for target, found in leave_out(chosen, tag).items()
    }
    return EngineFit(
        date=datetime.datetime.now(tz=datetime.UTC).date(),
        source="published closed-loop serving figures: InferenceMAX runs, AIConfigurator's "
        "published samples, TensorRT-LLM and SGLang tables",
        rule=RULE,
        tpot=_fitted(terms["tpot_s"], held_in, spread["tpot_s"], "tpot_s"),
        ttft=_fitted(terms["ttft_s"], held_in, spread["ttft_s"], "ttft_s"),
        left_out_ratio=left_out,
    )


def usable(figure: Figure) -> bool:
    """Whether a figure may be fitted on: a closed loop of more than one token, TPOT or TTFT."""
    return (
        figure.setting == "closed_loop"
        and figure.target in ("tpot_s", "ttft_s")
        and figure.point["osl"] > 1
        and figure.tags["source"] not in EXPERIMENTAL
    )


def fit_terms(figures: Sequence[Figure]) -> dict[str, tuple[Term, ...]]:
    """Terms of both quantities; TTFT is fitted on passes that TPOT's terms have weighed."""
    tpot = solve(blocks(figures, "tpot_s", ()), tpot_candidates)
    ttft = solve(blocks(figures, "ttft_s", tpot), ttft_candidates)
    return {"tpot_s": tpot, "ttft_s": ttft}


def blocks(figures: Sequence[Figure], target: str, tpot: Sequence[Term]) -> list[Block]:
    """Price every configuration once and lay out the parts of one quantity."""
    cases: dict[str, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))
    for figure in figures:
        if figure.target == target:
            point = {k: v for k, v in figure.point.items() if k != "id"}
            shared = ("model", "device", "backend", "precision", "mode")
            key = json.dumps([point[k] for k in shared] + [point.get("backend_version")])
            cases[key][json.dumps(point, sort_keys=True) + figure.statistic].append(figure)
    found = []
    for members in cases.values():
        asked = [Case(Point.model_validate(f[0].point), tuple(f)) for f in members.values()]
        found += _block(asked, target, tpot)
    return found


def _block(cases: list[Case], target: str, tpot: Sequence[Term]) -> list[Block]:
    try:
        return [_priced(cases, target, tpot)]
    except MoesaicError:
        if len(cases) == 1:
            return []
        middle = len(cases) // 2
        return [*_block(cases[:middle], target, tpot), *_block(cases[middle:], target, tpot)]


_PRICED: dict[tuple[str, ...], pl.DataFrame] = {}
"""Passes priced before the fitted layer; leaving models out asks for them again and again."""


def _priced(cases: list[Case], target: str, tpot: Sequence[Term]) -> Block:
    group = Group.of([case.point for case in cases], resolve_model)
    key = tuple(case.point.model_dump_json() for case in cases)
    if key not in _PRICED:
        held = {i: float(c.point.concurrency or 1) for i, c in enumerate(cases)}
        _PRICED[key] = price(group.passes(held), group.question, fitted=False).passes
    passes = _PRICED[key]
    question = group.question
    labels = find_labels(question.engine, question.cluster.device, question.formats.weights.routed)
    if target == "ttft_s":
        passes = fitted_passes(passes.drop("raw_s"), _layer(tpot, labels))
    if cases[0].point.mode == "disagg":
        both = group.beside(passes)
    else:
        prefill, decode = (passes.filter(phase=phase) for phase in ("prefill", "decode"))
        both = paired(prefill, decode, (*KEY, "line")).sort("line")
    parts = tpot_parts(both) if target == "tpot_s" else ttft_parts(load_of(both))
    median = np.array([case.figures[0].statistic == "median" for case in cases], dtype=float)
    features = {**parts.features, "median": median}
    features["median_callers"] = median * parts.features.get("callers", median)
    measured = np.array([np.median([f.value for f in case.figures]) for case in cases])
    return Block(
        Parts(parts.seconds, features), labels, measured, tuple(c.figures[0] for c in cases)
    )


def _layer(tpot: Sequence[Term], labels: frozenset[str]) -> Layer:
    none = Fitted(terms=tuple(tpot), rows_count=0, held_out_count=0, held_out_median_ratio=0.0)
    fit = EngineFit(date=datetime.date.min, source="", rule="", tpot=none, ttft=none)
    flat = Spread(low_log_ratio=0.0, high_log_ratio=0.0, rows=0)
    return Layer(fit, labels, flat, flat)


Candidate = tuple[str, str, str, float]
"""Part, feature, label, prior deviation."""


def tpot_candidates(found: Iterable[Block]) -> list[Candidate]:
    """Every term that TPOT may have, given the labels that occur."""
    kinds = _kinds(found)
    rows: list[Candidate] = []
    for part, (everywhere, engine, machine, precision) in TPOT_PRIORS.items():
        rows.append((part, "1", "any", everywhere))
        for names, deviation in (
            (kinds["engine"], engine), (kinds["generation"], machine),
            (kinds["precision"], precision),
        ):  # fmt: skip
            rows += [(part, "1", name, deviation) for name in names if deviation]
    rows += [(part, feature, "any", deviation) for part, feature, deviation in TPOT_SLOPES]
    rows += [("experts", "load", name, 0.1) for name in kinds["engine"]]
    return rows + _whole(kinds)


def ttft_candidates(found: Iterable[Block]) -> list[Candidate]:
    """Every term that TTFT may have, given the labels that occur."""
    kinds = _kinds(found)
    rows: list[Candidate] = []
    for part, (everywhere, engine) in TTFT_PRIORS.items():
        rows.append((part, "1", "any", everywhere))
        rows += [(part, "1", name, engine) for name in kinds["engine"]]
    for feature, everywhere, engine in TTFT_SLOPES:
        rows.append((ALL, feature, "any", everywhere))
        rows += [(ALL, feature, name, engine) for name in kinds["engine"] if engine]
    rows += [("warm", "1", name, VERSION_WARM) for name in kinds["version"]]
    return rows + _whole(kinds)


def _whole(kinds: dict[str, list[str]]) -> list[Candidate]:
    deviations = (("machine", MACHINE), ("machine_precision", MACHINE_PRECISION),
                  ("version", VERSION))  # fmt: skip
    return [(ALL, "1", name, deviation) for kind, deviation in deviations for name in kinds[kind]]


def _kinds(found: Iterable[Block]) -> dict[str, list[str]]:
    """Labels by what they name."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for block in found:
        for label in block.labels - {"any"}:
            if ":" in label:
                kinds["version"].add(label)
            elif "|" in label:
                kinds["machine" if label.count("|") == 1 else "machine_precision"].add(label)
            elif "-fp" in label or label.endswith("-int8"):
                kinds["generation"].add(label)
            elif label in ("fp4", "fp8", "bf16", "fp16", "int8"):
                kinds["precision"].add(label)
            else:
                kinds["engine"].add(label)
    names = ("engine", "generation", "precision", "machine", "machine_precision", "version")
    return {kind: sorted(kinds[kind]) for kind in names}


@dataclass(frozen=True)
class _Problem:
    """All blocks stacked: parts (rows x parts), design (rows x terms), where each term acts."""

    parts: Array
    design: Array
    acts: NDArray[np.int64]  # index of the part, -1: the whole
    precision: Array
    target: Array

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Logarithm of the estimate, and each part's share of it."""
        count = self.parts.shape[1]
        logs = np.stack(
            [self.design[:, self.acts == j] @ theta[self.acts == j] for j in range(count)], 1
        )
        weighed = self.parts * np.exp(np.clip(logs, -4, 4))
        total = weighed.sum(1)
        whole = self.design[:, self.acts < 0] @ theta[self.acts < 0]
        return np.log(total) + whole, weighed / total[:, None]


def solve(
    found: list[Block], propose: object = tpot_candidates, *, least: float = 0.004
) -> tuple[Term, ...]:
    """Most probable terms; those below `least` are dropped (less than half a percent)."""
    candidates: list[Candidate] = propose(found)  # type: ignore[operator]
    problem = _stack(found, candidates)
    theta = np.zeros(len(candidates))
    for _ in range(ROUNDS):
        estimate, shares = problem.predict(theta)
        whole = np.concatenate([shares, np.ones((len(shares), 1))], 1)
        slope = problem.design * whole[:, problem.acts]
        residual = problem.target - estimate
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.03)
        weight = np.minimum(1, HUBER * scale / np.maximum(np.abs(residual), 1e-9)) / NOISE**2
        left = (slope * weight[:, None]).T @ slope + np.diag(problem.precision)
        step = np.linalg.solve(
            left, (slope * weight[:, None]).T @ residual - problem.precision * theta
        )
        theta = theta + step * min(1.0, 1 / float(np.abs(step).max()))
    return tuple(
        Term(on=on, by=by, where=where, log_ratio=round(float(value), 4))
        for (on, by, where, _), value in zip(candidates, theta, strict=True)
        if abs(value) >= least
    )


def _stack(found: list[Block], candidates: list[Candidate]) -> _Problem:
    names = list(found[0].parts.seconds)
    design = np.concatenate([
        np.stack(
            [block.parts.features[by] * float(where in block.labels)
             for _, by, where, _ in candidates], 1,
        )
        for block in found
    ])  # fmt: skip
    parts = np.concatenate([np.stack(list(b.parts.seconds.values()), 1) for b in found])
    acts = np.array([-1 if on == ALL else names.index(on) for on, *_ in candidates])
    precision = np.array([1 / deviation**2 for *_, deviation in candidates])
    measured = np.concatenate([block.measured for block in found])
    return _Problem(parts, design, acts, precision, np.log(measured))


@dataclass(frozen=True)
class Errors:
    """log(measured / estimated) of figures with what they are grouped by."""

    logs: Array
    figures: tuple[Figure, ...]
    keys: tuple[str, ...]
    """Engine and machine of each."""

    @property
    def median_ratio(self) -> float:
        """Median of |estimated / measured - 1|."""
        return float(np.median(np.abs(np.exp(-self.logs) - 1)))


def errors(figures: Sequence[Figure], terms: dict[str, tuple[Term, ...]], target: str) -> Errors:
    """Errors of terms on figures."""
    logs, keys = [np.zeros(0)], []
    kept: list[Figure] = []
    for block in blocks(figures, target, terms["tpot_s"]):
        logs.append(np.log(block.measured) - np.log(block.parts.total(terms[target], block.labels)))
        kept += block.figures
        keys += [f"{f.tags['engine']}|{f.tags['machine']}" for f in block.figures]
    return Errors(np.concatenate(logs), tuple(kept), tuple(keys))


LOW, HIGH, WIDEN, ENOUGH = 0.1, 0.9, 1.0, 25


def _fitted(
    terms: tuple[Term, ...], held_in: Sequence[Figure], held_out: Errors, target: str
) -> Fitted:
    keys = np.array(held_out.keys)
    known = {"any": _spread(held_out.logs)}
    for key in sorted(set(held_out.keys)):
        if (keys == key).sum() >= ENOUGH:
            known[key] = _spread(held_out.logs[keys == key])
    return Fitted(
        terms=terms, known=known,
        rows_count=sum(f.target == target for f in held_in),
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


def leave_out(figures: Sequence[Figure], tag: str) -> dict[str, Errors]:
    """Errors on each model (or machine) of terms fitted without it, by quantity."""
    parts: dict[str, list[Errors]] = {"tpot_s": [], "ttft_s": []}
    for name in sorted({f.tags[tag] for f in figures}):
        terms = fit_terms([f for f in figures if f.tags[tag] != name])
        alone = [f for f in figures if f.tags[tag] == name]
        for target, found in parts.items():
            found.append(errors(alone, terms, target))
    return {target: _joined(found) for target, found in parts.items()}


def _joined(parts: list[Errors]) -> Errors:
    return Errors(
        np.concatenate([p.logs for p in parts]),
        tuple(f for p in parts for f in p.figures),
        tuple(k for p in parts for k in p.keys),
    )
