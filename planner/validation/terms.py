"""Which terms the engine layer may have, and how far each may move from physics before evidence.

A term's prior is a normal one around 0 with the deviation given here. Terms of engines, machines
and versions correct those of everything, so a model or machine that was not fitted on gets the
common ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from planner.timing.parts import ALL

Candidate = tuple[str, str, str, float]
"""Part, feature, label, prior deviation."""
Kinds = dict[str, list[str]]
TPOT_PARTS = {
    # part: prior deviation everywhere, by engine, by generation of machines, by both
    "experts": (0.3, 0.15, 0.15, 0.0), "attention": (0.3, 0.15, 0.15, 0.0),
    "exchange": (0.5, 0.3, 0.15, 0.0), "dense": (0.3, 0.15, 0.15, 0.0),
    "other": (0.3, 0.15, 0.15, 0.0), "host": (0.5, 0.3, 0.15, 0.0),
    "launch": (0.5, 0.3, 0.15, 0.0), "prefill": (0.3, 0.15, 0.15, 0.3),
}  # fmt: skip
TPOT_SLOPES = (
    ("experts", "load", 0.2), ("attention", "load", 0.2), ("exchange", "load", 0.2),
    ("exchange", "tp", 0.3), ("exchange", "ep", 0.3), ("exchange", "spread", 0.6),
    ("prefill", "spread", 1.0), ("experts", "ep", 0.2), ("experts", "moe_tp", 0.2),
    ("attention", "tp", 0.2), ("attention", "spread", 0.3), ("dense", "tp", 0.2),
)  # fmt: skip
WIDE_PARTS, TPOT_WIDTH = ("experts", "dense"), 0.2
"""Parts that read weights, and how far the width of weights may move them and their slopes over
load."""
LOADED_PARTS, TPOT_LOADED = ("experts", "attention", "exchange"), 0.15
"""Parts whose slopes over load engines may move."""
TPOT_WHOLE = {"generation": 0.1, "engine": 0.1, "engine_generation": 0.05, "machine": 0.03,
              "engine_machine": 0.03, "version": 0.2}  # fmt: skip
TTFT_PARTS = {
    "entry": (0.3, 0.7, 0.0, 0.0), "launch": (0.2, 0.2, 0.0, 0.0), "prompt": (0.7, 0.5, 0.2, 0.3),
    "step": (0.7, 0.5, 0.2, 0.3), "wave": (0.7, 0.5, 0.2, 0.3), "handover": (0.7, 0.5, 0.0, 0.0),
    "cold": (1.0, 0.5, 0.0, 0.0), "poll": (0.5, 0.3, 0.1, 0.0), "queue": (0.7, 0.5, 0.2, 0.0),
}  # fmt: skip
TTFT_SLOPES = (
    # part, feature, prior deviation everywhere, by engine
    ("prompt", "isl", 0.5, 0.0), ("wave", "isl", 0.3, 0.2), ("prompt", "spread", 0.5, 0.3),
    ("wave", "spread", 0.5, 0.3), ("entry", "spread", 1.0, 0.5), ("wave", "pooled", 0.5, 0.0),
    (ALL, "median", 0.3, 0.2), (ALL, "median_callers", 0.15, 0.1),
)  # fmt: skip
TTFT_VERSIONS = (("entry", 0.5), ("wave", 0.3), ("prompt", 0.2), ("cold", 1.0))
TTFT_WHOLE = {"machine": 0.05, "engine_machine": 0.05, "version": 0.2}
UNMEASURED = ("amd-",)
"""Generations without measured kernels: their rates are assumed, so evidence may move them far."""
FAR = 0.5


def tpot_candidates(labels: Iterable[frozenset[str]]) -> list[Candidate]:
    """Every term that TPOT may have, given the labels that occur."""
    kinds = kinds_of(labels)
    rows = _parts(TPOT_PARTS, kinds)
    rows += [(part, feature, "any", deviation) for part, feature, deviation in TPOT_SLOPES]
    rows += [
        (part, by, name, TPOT_WIDTH)
        for part in WIDE_PARTS for by in ("1", "load") for name in kinds["width"]
    ]  # fmt: skip
    rows += [(part, "load", e, TPOT_LOADED) for part in LOADED_PARTS for e in kinds["engine"]]
    return [_far(row) for row in rows + _whole(TPOT_WHOLE, kinds)]


def ttft_candidates(labels: Iterable[frozenset[str]]) -> list[Candidate]:
    """Every term that TTFT may have, given the labels that occur."""
    kinds = kinds_of(labels)
    rows = _parts(TTFT_PARTS, kinds)
    for part, feature, everywhere, engine in TTFT_SLOPES:
        rows.append((part, feature, "any", everywhere))
        rows += [(part, feature, name, engine) for name in kinds["engine"] if engine]
    for part, deviation in TTFT_VERSIONS:
        rows += [(part, "1", name, deviation) for name in kinds["version"]]
    return rows + _whole(TTFT_WHOLE, kinds)


def _parts(priors: Mapping[str, tuple[float, ...]], kinds: Kinds) -> list[Candidate]:
    rows: list[Candidate] = []
    for part, (everywhere, *others) in priors.items():
        rows.append((part, "1", "any", everywhere))
        for kind, deviation in zip(
            ("engine", "generation", "engine_generation"), others, strict=True
        ):
            rows += [(part, "1", name, deviation) for name in kinds[kind] if deviation]
    return rows


def _whole(priors: dict[str, float], kinds: Kinds) -> list[Candidate]:
    return [(ALL, "1", name, sd) for kind, sd in priors.items() for name in kinds[kind]]


def _far(row: Candidate) -> Candidate:
    part, feature, where, deviation = row
    wide = part in (ALL, "launch") and where.startswith(UNMEASURED)
    return part, feature, where, FAR if wide else deviation


def kinds_of(found: Iterable[frozenset[str]]) -> Kinds:
    """Labels by what they name."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for labels in found:
        for label in labels - {"any"}:
            kinds[_kind(label, labels)].add(label)
    return defaultdict(list, {kind: sorted(names) for kind, names in kinds.items()})


def _kind(label: str, beside: frozenset[str]) -> str:
    for mark, kind in (
        (" bits", "width"),
        (":", "version"),
        ("|", "engine_machine"),
        ("@", "engine_generation"),
    ):
        if mark in label:
            return kind
    marked = {other.partition("@")[2] for other in beside if "@" in other}
    if label in marked:
        return "generation"
    engines = {other.partition("@")[0] for other in beside if "@" in other}
    return "engine" if label in engines else "machine"
