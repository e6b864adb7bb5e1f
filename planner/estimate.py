"""Given configurations priced: the lines of `estimate --batch`, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import polars as pl

from hwprofiles.cluster import Cluster
from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.library import cluster_for, resolve_cluster
from planner.engines import load_engine
from planner.line_batch import Batch
from planner.model_library import resolve_model
from planner.moe_model import MoeModel
from planner.point import Estimated, Point, PoolPoint
from planner.point_rows import check_point, devices_of, formats_of_point
from planner.pricing import Priced, Question, is_plain
from planner.training import TrainingPoint, estimate_training, is_training

Resolve = Callable[[Any], MoeModel]
Made = TypeVar("Made")
Row = dict[str, Any]
Asked = tuple[int, Point, Question]
"""A line's number, what it says, and the question that it shares with others."""


def estimate_one(data: object, model_of: Resolve = resolve_model) -> Estimated:
    """Estimate one configuration.

    Args:
        data: plain data of a `Point`.
        model_of: finds the model of a line; `load_model` also reads the user's files.

    Raises:
        MoesaicError: what `estimate_many` would put into the line's `error`.
    """
    if is_training(data):
        return estimate_training(parse_as(TrainingPoint, data, what="point"), model_of)
    point = parse_as(Point, data, what="point")
    answer = Batch.of([point], [Questions(model_of).of(point)]).answers()[0]
    if isinstance(answer, MoesaicError):
        raise answer
    return Estimated.model_validate(answer)


def estimate_many(lines: Sequence[object], model_of: Resolve = resolve_model) -> list[Estimated]:
    """Estimate many configurations, in order; a line that cannot be answered carries its error.

    Args:
        lines: plain data of a `Point` each, or the error that reading the line raised.
        model_of: as in `estimate_one`.
    """
    return [Estimated.model_validate(row) for row in estimate_rows(lines, model_of)]


def estimate_rows(lines: Sequence[object], model_of: Resolve = resolve_model) -> list[Row]:
    """As `estimate_many`, each answer as plain data: the fields of `Estimated` that apply."""
    answers: dict[int, Row] = {}
    questions = Questions(model_of)
    batches: dict[object, list[Asked]] = defaultdict(list)
    for i, line in enumerate(lines):
        try:
            if isinstance(line, MoesaicError):
                raise line
            if is_training(line):
                told = estimate_one(line, model_of)
                answers[i] = told.model_dump(mode="json", exclude_none=True)
                continue
            point = parse_as(Point, line, what="point")
            question = questions.of(point)
            batches[_together(point, question)].append((i, point, question))
        except MoesaicError as error:
            answers[i] = failed(line, error)
    for members in batches.values():
        answers.update(_answered(members))
    return [answers[i] for i in range(len(lines))]


def _together(point: Point, question: Question) -> tuple[str, int]:
    """What lines priced in one go have in common."""
    return point.mode, 0 if is_plain(question) else id(question)


def _answered(members: list[Asked]) -> Iterator[tuple[int, Row]]:
    """Answer lines at once; where that fails, question by question, then line by line."""
    try:
        questions = [question for _, _, question in members]
        found = Batch.of([point for _, point, _ in members], questions).answers()
    except MoesaicError as error:
        if len(members) > 1:
            for part in _parts(members):
                yield from _answered(part)
            return
        found = [error]
    for (i, point, _), answer in zip(members, found, strict=True):
        yield i, failed({"id": point.id}, answer) if isinstance(answer, MoesaicError) else answer


def _parts(members: list[Asked]) -> list[list[Asked]]:
    """Halves of the questions, or single lines of one question."""
    groups: dict[int, list[Asked]] = defaultdict(list)
    for member in members:
        groups[id(member[2])].append(member)
    if len(groups) == 1:
        return [[member] for member in members]
    each = list(groups.values())
    halves = each[: len(each) // 2], each[len(each) // 2 :]
    return [[member for group in half for member in group] for half in halves]


def failed(line: object, error: MoesaicError) -> Row:
    """The answer of a line that cannot be answered."""
    key = line.get("id", "") if isinstance(line, dict) else ""
    named = key if isinstance(key, str | int) else ""
    told = {"kind": error.kind, "message": str(error)}
    return {"id": named, "assumptions": [], "error": told}


SHARED = ("model", "device", "cluster", "backend", "backend_version", "precision", "kv_dtype",
          "mode", "routing", "policy", "offload", "prefix_bytes_per_s", "experts")  # fmt: skip
"""Fields that lines priced together have in common."""
DOCUMENTS = frozenset({"routing", "policy", "offload", "experts"})
PLAIN = tuple(name for name in SHARED if name not in DOCUMENTS)


class Questions:
    """What lines share, found once: model, machine, engine and formats, and rules of layouts."""

    def __init__(self, model_of: Resolve) -> None:
        self.model_of = model_of
        self._made: dict[object, Any] = {}

    def of(self, point: Point) -> Question:
        """The question that a line asks; the cluster is the smallest that holds its devices.

        Raises:
            MoesaicError: for an unknown name, or a layout that breaks a rule.
        """
        layout = tuple(_layout_key(part) for part in (point, point.prefill, point.decode))
        key = _shared_key(point)
        return self._once((key, layout), lambda: self._checked(point, key))

    def _checked(self, point: Point, key: object) -> Question:
        devices = devices_of(point)
        cluster = self._once((key, devices), lambda: _cluster_of(point, devices))
        question = self._once((key, "at", id(cluster)), lambda: self._question(point, cluster))
        check_point(point, question)
        return question

    def _once(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` gives, or the error that it raised, the first time that it was asked."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except MoesaicError as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, MoesaicError):
            raise made
        found: Made = made
        return found

    def _question(self, point: Point, cluster: Cluster) -> Question:
        model = self.model_of(point.model)
        engine = load_engine(point.backend, point.backend_version)
        needs = engine.narrow_cache.needs
        return Question(
            model, cluster, engine, point.routing,
            formats_of_point(point, model, cluster.device, needs), point.policy,
            point.offload, point.prefix_bytes_per_s,
        )  # fmt: skip


def _cluster_of(point: Point, devices: int) -> Cluster:
    if point.cluster is not None:
        return resolve_cluster(point.cluster)
    return _smallest(str(point.device), devices)


@cache
def _smallest(device: str, devices: int) -> Cluster:
    return cluster_for(device, devices)


def _shared_key(point: Point) -> object:
    """Equal for lines that ask one question: cheap for plain ones, exact for all."""
    plain = tuple(getattr(point, name) for name in PLAIN)
    nested = isinstance(point.model, dict) or isinstance(point.cluster, dict)
    if nested or point.model_fields_set & DOCUMENTS:
        return point.model_dump_json(include=set(SHARED))
    return plain


def _layout_key(part: Point | PoolPoint | None) -> object:
    if part is None:
        return None
    degrees = part.tp, part.pp, part.dp, part.moe_tp, part.moe_ep
    return (*degrees, part.workers) if isinstance(part, PoolPoint) else degrees


@dataclass(frozen=True)
class Group:
    """Lines of one question on the cluster that holds the largest, as fits ask for their passes."""

    batch: Batch

    @classmethod
    def of(cls, points: Sequence[Point], model_of: Resolve) -> Group:
        """Resolve what the lines share, and check the layout of each."""
        question = Questions(model_of).of(max(points, key=devices_of))
        for point in points:
            check_point(point, question)
        return cls(Batch.of(points, [question] * len(points)))

    @property
    def question(self) -> Question:
        """What the lines share."""
        return self.batch.lines.questions[0]

    def passes(self, held: Mapping[int, float]) -> pl.DataFrame:
        """The prefill and decode pass of each line with its requests in flight."""
        return self.batch.lines.passes(np.array([held[i] for i in range(len(held))]))

    def running(self, priced: Priced, held: Mapping[int, float]) -> dict[int, float]:
        """Requests of each line that run at once, as `Batch.running` says."""
        asked = np.array([held[i] for i in range(len(held))])
        prefill, decode = (
            priced.passes.filter(phase=phase).sort("line") for phase in ("prefill", "decode")
        )
        fed_by = prefill if self.batch.pooled else None
        return dict(enumerate(self.batch.running(decode, asked, fed_by).tolist()))

    def beside(self, passes: pl.DataFrame) -> pl.DataFrame:
        """Decode passes beside the prefill pass that feeds them."""
        return self.batch.beside(passes)
