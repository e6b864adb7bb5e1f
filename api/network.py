"""`moesaic calibrate --network`: what was asked for, and the report as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.output import Output
from hwprofiles.errors import MoesaicError
from hwprofiles.units import parse_quantity

if TYPE_CHECKING:
    from hwprofiles.calibration.network.lab import Topology
    from hwprofiles.calibration.network.session import NetworkReport
    from hwprofiles.calibration.network.switch import LinkSpec

MOST_RANKS = 64
"""More processes say nothing about links on any machine this runs on."""


def measure_network(
    choices: Mapping[str, Any], folder: Path, output: Output,
    progress: Callable[[Mapping[str, Any]], None],
) -> None:  # fmt: skip
    """Measure the network that the options describe, and show what was predicted of it.

    Raises:
        MoesaicError: `invalid`, with the reason, for a bad topology or where none can be made.
    """
    from hwprofiles.calibration.harness import Limits
    from hwprofiles.calibration.network.session import QUIET, NetworkPlan, run_network

    topology = _topology(choices)
    limits: Limits = replace(QUIET, row_s=choices["row_seconds"])
    output.note(f"{topology.ranks} processes on {topology.nodes} nodes, into {folder}")
    plan = NetworkPlan(topology, limits, choices["quick"])
    report = run_network(folder, plan, progress)
    output.show(report.model_dump(mode="json"), lambda: network_text(report))


def _topology(choices: Mapping[str, Any]) -> Topology:
    from hwprofiles.calibration.network.session import DEFAULT

    nodes, ranks = choices["nodes"] or DEFAULT.nodes, choices["devices"] or DEFAULT.ranks
    if ranks % nodes or not 1 < ranks <= MOST_RANKS:
        raise MoesaicError(
            "invalid",
            f"{ranks} ranks on {nodes} nodes: asked are 2 to {MOST_RANKS} ranks, as many on each",
            "/devices",
        )
    near, far = (
        _rated(link, choices[name], name)
        for name, link in (("near", DEFAULT.near), ("far", DEFAULT.far))
    )
    return replace(DEFAULT, nodes=nodes, ranks_per_node=ranks // nodes, near=near, far=far)


def _rated(link: LinkSpec, text: str | None, name: str) -> LinkSpec:
    if text is None:
        return link
    try:
        rate = parse_quantity(text, "bytes per second")
    except ValueError as error:
        raise MoesaicError("invalid", str(error), f"/{name}") from error
    if rate <= 0:
        raise MoesaicError("invalid", "a link carries something", f"/{name}")
    return replace(link, bytes_per_s=rate)


def network_text(report: NetworkReport) -> str:
    """Lines of each group, and how well the quotient of both orders was predicted."""
    from hwprofiles.calibration.network.page import large, off_ratios, ranked_right
    from reports.text import text_table

    head = (
        f"{report.cluster}: {report.measured_count} rows measured, {report.resumed_count} found "
        f"from before, {report.quarantined_count} set apart, {len(report.refused)} not possible"
    )
    lines = [
        [str(line.devices), str(line.nodes), f"{line.alpha_s * 1e3:.2f} ms",
         f"{line.beta_bytes_per_s / 1e6:.1f} MB/s", f"{line.r_squared_ratio:.4f}",
         f"{line.error_median_ratio:.1%}"]
        for line in report.lines
    ]  # fmt: skip
    columns = ("ranks", "nodes", "alpha", "beta", "R²", "error held out")
    parts = [head, text_table(columns, lines)]
    chosen = large(report.orders)
    if chosen:
        rows = [
            [what, str(len(chosen)), str(ranked_right(chosen, part)),
             f"{max(off_ratios(chosen, part)):.1%}"]
            for what, part in (("exchange", "exchange_"), ("whole layer", ""))
        ]  # fmt: skip
        words = ("DCCA over CDAC, 32 KiB and more", "layers", "faster order right", "worst error")
        parts.append(text_table(words, rows))
    return "\n\n".join(parts)
