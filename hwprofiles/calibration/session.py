"""One calibration from start to profile: measure, set apart, fit, write; all in one folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from hwprofiles.calibration.cases import cases, collective_cases, disk_cases
from hwprofiles.calibration.environment import Environment, available_bytes
from hwprofiles.calibration.fitting import FamilyFit, Fitted, fit_curves
from hwprofiles.calibration.harness import Harness, Limits, Outcome
from hwprofiles.calibration.local import local_cluster, local_name
from hwprofiles.calibration.measured_tables import write_measured
from hwprofiles.calibration.measurement import Journal, measurement_table
from hwprofiles.calibration.quarantine import split
from hwprofiles.calibration.runners.base import Runner
from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump, make_folder, write_text
from hwprofiles.kernels import COLLECTIVES
from hwprofiles.library import cluster_for

PASSES = 3
"""How often rows that other load disturbed are tried again."""
ROOM_SHARE = 0.25
"""Share of the free memory that one row may take."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how patiently."""

    forms: tuple[str, ...]
    families: frozenset[str] | None = None
    quick: bool = False
    limits: Limits = field(default_factory=Limits)
    keep_disturbed: bool = False
    ranks: int = 0
    """Processes to measure collectives between; none: no collectives."""
    collective_library: str = "gloo"
    """Backend of torch.distributed: gloo, nccl or hccl."""


class Quarantined(Document):
    """One measurement that was not fitted."""

    id: str
    kernel: str
    reason: str


class CalibrationReport(Document):
    """What a calibration did, and how well its profile prices shapes it has not seen."""

    schema_version: int = 1
    device: str
    backend: str
    backend_version: str
    environment: Environment
    measured_count: int
    resumed_count: int
    refused: tuple[dict[str, str], ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    families: tuple[FamilyFit, ...] = ()
    profiles: dict[str, str] = Field(default_factory=dict)
    """Numeric format: file of the curves fitted for it; `tables`: the profile of tables."""
    unfitted: str = ""
    """Why nothing could be fitted, where that is so."""


def run_calibration(
    runner: Runner, folder: Path, plan: Plan, cluster: Cluster | None = None,
    progress: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> CalibrationReport:  # fmt: skip
    """Measure this machine into `folder` and fit a profile; a run that was killed goes on.

    Files: `environment.json`, `measurements.jsonl` (append only), `quarantine.jsonl`,
    `device.yaml` (or the catalogue's device), `profile-FORMAT.yaml`, `report.json`.

    Args:
        runner: what runs kernel rows.
        folder: made where it is missing.
        plan: what to measure.
        cluster: the machine in the catalogue; none describes this CPU from its own measurements.
        progress: called with each finished row.
    """
    make_folder(folder)
    environment = runner.environment()
    write_text(folder / "environment.json", dump(environment.model_dump(mode="json"), "json"))
    device = cluster.device.name if cluster else local_name(environment)
    journal = Journal(folder / "measurements.jsonl")
    outcome = _measure(Harness(runner, journal, device, plan.limits), plan, progress)
    if plan.ranks > 1 and (not plan.families or plan.families & {*COLLECTIVES}):
        outcome = outcome.beside(_measure_group(journal, device, plan, progress))
    records = [row for row in journal.read() if row["device"] == device]
    report = CalibrationReport(
        device=device,
        backend=runner.name,
        backend_version=runner.version,
        environment=environment,
        measured_count=outcome.measured_count,
        resumed_count=outcome.resumed_count,
        refused=tuple(outcome.refused),
    )
    try:
        machine = _joined(cluster, plan.ranks) or local_cluster(environment, records)
    except MoesaicError as error:
        return _written(report.model_copy(update={"unfitted": error.message}), folder)
    return _written(
        fitted_report(report, measurement_table(records), machine, folder, plan), folder
    )


def _joined(cluster: Cluster | None, ranks: int) -> Cluster | None:
    """A catalogue device with the links that so many of it have in one node."""
    if cluster is None or ranks <= cluster.device_count:
        return cluster
    return cluster_for(cluster.device.name, ranks, 1)


def _measure(
    harness: Harness, plan: Plan, progress: Callable[[Mapping[str, Any]], None]
) -> Outcome:
    room = available_bytes() * ROOM_SHARE
    families = harness.runner.families & (plan.families or harness.runner.families)
    rows = cases(families, plan.forms, harness.runner.tiers, room_bytes=room, quick=plan.quick)
    if "copy" in families and not plan.quick:
        rows += disk_cases(room)
    return _in_passes(harness, rows, progress)


def _in_passes(
    harness: Harness, rows: list[dict[str, Any]], progress: Callable[[Mapping[str, Any]], None]
) -> Outcome:
    first = outcome = harness.measure_all(rows, progress)
    measured = outcome.measured_count
    for _ in range(PASSES - 1):
        if not outcome.disturbed_count:
            break
        outcome = harness.measure_all(rows, progress)
    return Outcome(measured, first.resumed_count, outcome.disturbed_count, first.refused)


def _measure_group(
    journal: Journal, device: str, plan: Plan, progress: Callable[[Mapping[str, Any]], None]
) -> Outcome:
    """Collectives between processes on this machine."""
    from hwprofiles.calibration.network.group import RankGroup

    library = plan.collective_library
    rows = collective_cases(plan.ranks, library, quick=plan.quick)
    if plan.families:
        rows = [row for row in rows if row["kernel"] in plan.families]
    with RankGroup(plan.ranks, backend=library) as group:
        harness = Harness(group, journal, device, plan.limits, group.watch())
        return _in_passes(harness, rows, progress)


def fitted_report(
    report: CalibrationReport, table: pl.DataFrame, machine: Cluster, folder: Path, plan: Plan
) -> CalibrationReport:
    """Set apart what cannot be true, fit each format, and write device and profiles.

    Copies from farther tiers describe those; they are no kernels of the working memory.
    """
    if plan.keep_disturbed:
        table = table.with_columns(disturbed=False)
    good, bad = split(table, machine)
    device = machine.device.model_dump(mode="json", exclude_none=True)
    write_text(folder / "device.yaml", dump(device, "yaml"))
    write_text(
        folder / "quarantine.jsonl", "".join(dump(_bare(r), "jsonl") for r in bad.to_dicts())
    )
    working = machine.device.memory[0].name
    streams = good.filter(pl.col("tier").is_null() | (pl.col("tier") == working))
    fits: list[FamilyFit] = []
    profiles, why = {}, ""
    for form in plan.forms:
        try:
            fitted = fit_curves(streams, machine, form)
        except MoesaicError as error:
            why = error.message
            continue
        profiles[form] = f"profile-{form}.yaml"
        _write_curves(fitted, folder / profiles[form])
        fits += [fit for fit in fitted.families if fit.dtype or form == plan.forms[0]]
    card = write_measured(folder, streams, machine, report.backend)
    if card is not None:
        profiles["tables"] = card.name
    return report.model_copy(
        update={
            "quarantined": tuple(
                Quarantined(id=r["id"], kernel=r["kernel"], reason=r["reason"])
                for r in bad.to_dicts()
            ),
            "families": tuple(fits),
            "profiles": profiles,
            "unfitted": "" if profiles else why,
        }
    )


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says; JSON has no word for a time that is no number, the reason tells of it."""
    return {
        key: value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _write_curves(fitted: Fitted, path: Path) -> None:
    write_text(path, dump(fitted.curves.model_dump(mode="json", exclude_none=True), "yaml"))


def _written(report: CalibrationReport, folder: Path) -> CalibrationReport:
    write_text(folder / "report.json", dump(report.model_dump(mode="json"), "json"))
    return report
