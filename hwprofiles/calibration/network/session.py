"""Measure a network of namespaces and both orders on it, fit a profile, say how far off it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hwprofiles.calibration.environment import Environment
from hwprofiles.calibration.fitting import FamilyFit, fit_curves
from hwprofiles.calibration.harness import Harness, Limits, Outcome
from hwprofiles.calibration.local import local_cluster, local_name
from hwprofiles.calibration.measurement import Journal, measurement_table
from hwprofiles.calibration.network.answers import LineFit, OrderCheck, checked_orders, line_fits
from hwprofiles.calibration.network.evidence import Records, of_run, rounds_of
from hwprofiles.calibration.network.group import OrderRunner, RankGroup
from hwprofiles.calibration.network.intervals import Coverage, coverages, with_held_out
from hwprofiles.calibration.network.lab import Topology, forbidden
from hwprofiles.calibration.network.orders import ORDERS, message_bytes
from hwprofiles.calibration.network.pricing import lab_cluster, with_latencies
from hwprofiles.calibration.network.switch import LinkSpec
from hwprofiles.calibration.quarantine import split
from hwprofiles.cluster import Cluster
from hwprofiles.document import Document
from hwprofiles.efficiency import Curves
from hwprofiles.errors import MoesaicError
from hwprofiles.files import dump, make_folder, write_text

DEFAULT = Topology(2, 2, LinkSpec("near", 62.5e6, 50e-6), LinkSpec("far", 25e6, 100e-6))
"""1 Gbit/s inside a node, 200 Mbit/s across: what two cores can carry with time to spare."""
QUIET = Limits(warm_up_s=0.05, row_s=1.5, steal_ratio=0.05, foreign_ratio=1.0)
"""Ranks and switch run before ordinary processes, so the load of others is recorded and kept."""
ROUNDS = 3
"""How often everything is measured, minutes apart: a connection may stay slow for seconds."""
FIT_BYTES = tuple(2.0**power for power in range(12, 22))
FIT_SHAPES = ((256, 1024), (1024, 256), (512, 512), (192, 768), (768, 192), (320, 640))
FIT_ROWS = (24, 96, 384, 1024)
FIT_STREAMS = tuple(2.0**power for power in range(14, 27, 2))
HIDDEN = (512, 768, 1024)
NARROW = (0.25, 0.5)
TOKENS = (6, 40, 112, 250)
TOP_K = 2
Progress = Callable[[Mapping[str, Any]], None]


class NetworkReport(Document):
    """What was measured on a network of namespaces, and how well it was predicted."""

    schema_version: int = 1
    cluster: str
    environment: Environment
    measured_count: int
    resumed_count: int
    refused: tuple[dict[str, str], ...] = ()
    quarantined_count: int = 0
    lines: tuple[LineFit, ...] = ()
    families: tuple[FamilyFit, ...] = ()
    orders: tuple[OrderCheck, ...] = ()
    intervals: tuple[Coverage, ...] = ()


@dataclass(frozen=True)
class NetworkPlan:
    """What to measure: the topology, the sizes and how patiently."""

    topology: Topology = DEFAULT
    limits: Limits = QUIET
    quick: bool = False

    def groups(self) -> list[dict[str, int]]:
        """Groups inside a node, one rank of each node, and all."""
        of = self.topology
        found = [(of.ranks_per_node, 1), (of.nodes, of.nodes), (of.ranks, of.nodes)]
        return [{"devices": d, "nodes": n} for d, n in dict.fromkeys(found) if d > 1]

    def fitted_cases(self) -> list[dict[str, Any]]:
        """Kernel rows that the profile is fitted to."""
        every = 3 if self.quick else 1
        sizes = FIT_BYTES[::every]
        return [
            *(_exchange(group, size) for group in self.groups() for size in sizes),
            *({"kernel": "gemm", "m": m, "n": n, "k": k, "dtype": "fp32"}
              for (n, k), m in list(product(FIT_SHAPES, FIT_ROWS))[::every]),
            *({"kernel": "elementwise", "bytes": size} for size in FIT_STREAMS),
        ]  # fmt: skip

    def layers(self) -> list[dict[str, Any]]:
        """Layers to run in both orders; none of their exchanges has a size of the fit."""
        shapes = list(product(HIDDEN, NARROW, TOKENS))[:: 5 if self.quick else 1]
        return [
            {"kernel": "moe_layer", "tokens": tokens, "hidden": hidden,
             "inter": round(hidden * narrow), "top_k": TOP_K, "dtype": "fp32", **group}
            for (hidden, narrow, tokens), group in product(shapes, self.groups())
        ]  # fmt: skip

    def held_out_cases(self) -> list[dict[str, Any]]:
        """Each exchange of the layers on its own; never fitted."""
        sizes = dict.fromkeys(
            (layer["devices"], layer["nodes"], message_bytes(layer, order))
            for layer in self.layers()
            for order in ORDERS
        )
        return [_exchange({"devices": d, "nodes": n}, size) for d, n, size in sizes]


def _exchange(group: Mapping[str, int], size: float) -> dict[str, Any]:
    return {"kernel": "all_to_all", "library": "gloo", "message_bytes": size, "dtype": "fp32",
            **group}  # fmt: skip


def unusable() -> str | None:
    """Why no network can be made here; none where it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed (pip install 'moesaic[torch]')"
    return forbidden()


def run_network(
    folder: Path, plan: NetworkPlan, progress: Progress = lambda _: None
) -> NetworkReport:
    """Measure into `folder`, where a run that was killed goes on; fit, predict, compare.

    Files: `environment.json`; `measurements.jsonl`, `held-out.jsonl` and `layers.jsonl` (append
    only) in a folder for each round; `cluster.yaml`, `profile.yaml`, `report.json`.

    Raises:
        MoesaicError: `invalid`, with the reason, where namespaces or torch are missing.
    """
    reason = unusable()
    if reason:
        raise MoesaicError("invalid", f"no network can be measured here: {reason}", "/network")
    make_folder(folder)
    with RankGroup(0, plan.topology) as group:
        text = dump(group.environment().model_dump(mode="json"), "json")
        write_text(folder / "environment.json", text)
        counts = _measured(group, folder, plan, progress)
    found = compared(of_run(folder), plan.topology)
    for name, document in (("cluster.yaml", found.cluster), ("profile.yaml", found.curves)):
        write_text(folder / name, dump(document.model_dump(mode="json", exclude_none=True), "yaml"))
    done = found.report.model_copy(update=counts)
    write_text(folder / "report.json", dump(done.model_dump(mode="json"), "json"))
    return done


def _measured(
    group: RankGroup, folder: Path, plan: NetworkPlan, progress: Progress
) -> dict[str, Any]:
    device, watch = local_name(group.environment()), group.watch()
    work: list[tuple[Any, str, list[dict[str, Any]]]] = [
        (group, "measurements.jsonl", plan.fitted_cases()),
        (group, "held-out.jsonl", plan.held_out_cases()),
        *((OrderRunner(group, order), "layers.jsonl", plan.layers()) for order in ORDERS),
    ]
    total = Outcome(0, 0, 0, [])
    for path in rounds_of(folder, 1 if plan.quick else ROUNDS):
        make_folder(path)
        for runner, name, rows in work:
            harness = Harness(runner, Journal(path / name), device, plan.limits, watch)
            total = total.beside(harness.measure_all(rows, progress))
    return {
        "measured_count": total.measured_count,
        "resumed_count": total.resumed_count,
        "refused": tuple(total.refused),
    }


@dataclass(frozen=True)
class Compared:
    """Links and curves fitted to a network's rows, and how they do on what was held out."""

    cluster: Cluster
    curves: Curves
    report: NetworkReport


def compared(records: Records, topology: Topology) -> Compared:
    """Fit links, then each family's curve, and set what was held out beside its prediction.

    Raises:
        MoesaicError: `outside_evidence` when too little was measured.
    """
    machine = lab_cluster(local_cluster(records.environment, records.fitted).device, topology)
    good, bad = split(measurement_table(records.fitted), machine)
    cluster = with_latencies(machine, good)
    fitted = fit_curves(good, cluster, "fp32")
    curves = with_held_out(fitted.curves, cluster, records.held_out)
    report = NetworkReport(
        cluster=cluster.name,
        environment=records.environment,
        measured_count=0,
        resumed_count=len(records.fitted) + len(records.held_out) + len(records.layers),
        quarantined_count=bad.height,
        lines=line_fits(good, measurement_table(records.held_out)),
        families=fitted.families,
        orders=checked_orders(records.layers, records.held_out, cluster, curves),
        intervals=coverages(records.held_out, records.layers, cluster, curves),
    )
    return Compared(cluster, curves, report)
