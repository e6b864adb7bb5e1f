"""Fit the engine layer of Ascend's serving stack on the dense models of one paper.

Few rows, so few numbers: parts of a pass that any model has, each pulled towards physics. Rows of
models with experts, of this paper and of others, are not fitted on; they give the interval.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwprofiles.files import dump
from planner.estimate import Group
from planner.model_library import resolve_model
from planner.point import Point
from planner.pricing import price
from planner.timing.engine_layer import (
    FILE,
    EngineFit,
    Fitted,
    Spread,
    Term,
    find_labels,
)
from planner.timing.parts import step_parts
from planner.validation.evidence import Figure
from planner.validation.fitting import HIGH, LOW, Block, terms_of
from planner.validation.papers import paper_figures
from planner.validation.terms import Candidate

ENGINE = "mindie"
GENERATION = "huawei-int8"
"""Machines that the numbers carry over to."""
PRIORS = {"launch": 0.7, "host": 0.5, "exchange": 0.4, "attention": 0.3, "dense": 0.2, "all": 0.2}
NOISE = 0.3
"""Prior weight of one row."""
LEAST_SPREAD = 0.1
"""Narrowest half of an interval: so few rows prove no better."""
Array = NDArray[np.float64]


def fit_ascend() -> EngineFit:
    """Fit on the rows marked so, score on published rows of models with experts."""
    figures = [f for f in paper_figures().values() if f.tags["engine"] == ENGINE]
    dense = [f for f in figures if f.notes]
    decode = [_block(f) for f in dense if f.target.startswith("decode")]
    terms = terms_of(decode, _candidates(), NOISE)
    terms += (_prefill(terms, [_block(f) for f in dense if f.target.startswith("prefill")]),)
    errors = np.array([_log_error(terms, f) for f in figures if not f.notes])
    low, high = np.quantile(errors, [LOW, HIGH])
    spread = Spread(low_log_ratio=round(min(float(low), -LEAST_SPREAD), 4),
                    high_log_ratio=round(max(float(high), LEAST_SPREAD), 4),
                    rows=len(errors))  # fmt: skip
    tpot = Fitted(
        terms=terms, known={"any": spread}, rows_count=len(dense), held_out_count=len(errors),
        held_out_median_ratio=round(float(np.median(np.abs(np.exp(-errors) - 1))), 4),
    )  # fmt: skip
    none = Fitted(terms=(), known={"any": spread}, rows_count=0, held_out_count=0,
                  held_out_median_ratio=0.0)  # fmt: skip
    return EngineFit(
        date=datetime.datetime.now(tz=datetime.UTC).date(), source=decode[0].figures[0].source,
        rule="the dense models of the paper (32B, 72B); models with experts are held out",
        generations=(GENERATION,), tpot=tpot, ttft=none,
    )  # fmt: skip


def write_fit(fit: EngineFit, folder: Path = FILE.parent) -> None:
    """Write the shipped file."""
    head = "# Fitted by planner/validation/ascend_fit.py; never edited by hand.\n"
    text = dump(fit.model_dump(mode="json", exclude_defaults=True), "yaml")
    (folder / f"{ENGINE}.yaml").write_text(head + text)


def _candidates() -> list[Candidate]:
    return [(part, "1", ENGINE, deviation) for part, deviation in PRIORS.items()]


def _block(figure: Figure) -> Block:
    """One figure as seconds of a pass, with the parts that physics gives it."""
    point = Point.model_validate(figure.point)
    group = Group.of([point], resolve_model)
    priced = price(group.passes({0: 1.0}), group.question, fitted=False).passes
    decode = figure.target.startswith("decode")
    row = priced.filter(phase="decode" if decode else "prefill")
    question = group.question
    labels = find_labels(question.engine, question.cluster.device, question.formats.weights.routed)
    tokens = row["step_tokens"][0] if decode else point.isl
    seconds = row["batch"][0] * row["dp"][0] * tokens / figure.value / row["devices"][0]
    parts = step_parts(row)
    if not decode:
        parts.seconds.clear()
        parts.seconds["prefill"] = row["raw_s"].to_numpy()
    return Block(parts, labels, np.array([seconds]), np.ones(1), (figure,))


def _prefill(terms: tuple[Term, ...], found: list[Block]) -> Term:
    """What prefill passes take beyond what decode passes say of the whole, on this machine alone.

    Four tenths of them are sums over the pairs of a mesh; other machines have no such links.
    """
    logs = [float(np.log(b.measured / b.parts.total(terms, b.labels))[0]) for b in found]
    machine = next(label for label in found[0].labels if label.count("|") == 1)
    return Term(on="prefill", where=machine, log_ratio=round(float(np.mean(logs)), 4))


def _log_error(terms: tuple[Term, ...], figure: Figure) -> float:
    block = _block(figure)
    return float(np.log(block.measured / block.parts.total(terms, block.labels))[0])
