"""The verb that shows what is known of devices and clusters, number by number with its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from api.output import Output, output_options
from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.document import Document, parse_as
from hwprofiles.errors import MoesaicError
from hwprofiles.files import apply_overrides, read_document
from hwprofiles.library import load_cluster, load_device, load_hardware, names
from hwprofiles.sourced import Sourced
from hwprofiles.units import format_quantity, parse_quantity
from reports.text import text_table

BANDWIDTH = "bytes per second"
DRAWN_DEVICES = 16_384
"""Devices of a graph at most; a larger one takes minutes to build."""
SUFFIXES = {
    "_bytes_per_s": BANDWIDTH,
    "_flop_per_s": "FLOP/s",
    "_bytes": "bytes",
    "_hz": "hertz",
    "_s": "seconds",
    "_w": "watts",
}
"""Unit suffix of a field: the dimension it is shown in; longest first."""


@click.group()
def command() -> None:
    """Show known devices and clusters; each number carries its source, date and certainty.

    \b
    moesaic hardware list
    moesaic hardware show h100-sxm
    moesaic hardware show cloudmatrix384 -o json
    moesaic hardware topology dgx-h100-x4
    """


@command.command("list")
@output_options
def list_command(*, form: str, out: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """Name every device and cluster.

    \b
    moesaic hardware list -o json
    """
    if overrides:
        raise MoesaicError("invalid", "a list has no fields to set; --set works with `show`")
    data = overview()
    Output(form, out, quiet).show(data, lambda: _overview_table(data))


@command.command("show")
@click.argument("name")
@output_options
def show_command(
    name: str, *, form: str, out: Path | None, overrides: tuple[str, ...], quiet: bool
) -> None:
    """Show one device or cluster: a name, an alias, or a YAML or JSON file of your own.

    \b
    moesaic hardware show "H100 SXM 80GB"
    moesaic hardware show gb200-nvl72 -o yaml
    """
    document = resolve_hardware(name, overrides)
    data = document.model_dump(mode="json", exclude_none=True)
    Output(form, out, quiet).show(data, lambda: facts_table(document))


@command.command("topology")
@click.argument("name")
@click.option("--devices", type=click.IntRange(min=1), help="First devices that exchange; all.")
@click.option("--pair-bytes", default="1 MB", show_default=True, help="From each to each other.")
@output_options
def topology_command(
    name: str, *, devices: int | None, pair_bytes: str, form: str, out: Path | None,
    overrides: tuple[str, ...], quiet: bool,
) -> None:  # fmt: skip
    """Show a cluster's network: what stands in it, the cuts of a group, its all-to-all.

    \b
    moesaic hardware topology hgx-h800-x4
    moesaic hardware topology cloudmatrix384 --devices 64 --pair-bytes 256KiB -o json
    """
    cluster = resolve_hardware(name, overrides)
    if isinstance(cluster, Device):
        raise MoesaicError("invalid", f"{name} is one device; a cluster has a topology", "/name")
    try:
        size = parse_quantity(pair_bytes, "bytes")
    except ValueError as error:
        raise MoesaicError("invalid", str(error), "/pair_bytes") from error
    data = network(cluster, devices or cluster.device_count, size)
    Output(form, out, quiet).show(data, lambda: _network_table(data))


def network(cluster: Cluster, devices: int, pair_bytes: float) -> dict[str, Any]:
    """The topology of a cluster and what an all-to-all of its first devices waits for.

    Raises:
        MoesaicError: `invalid` for more devices than there are.
    """
    from hwprofiles.cuts import all_to_all_s, bottleneck, cuts_of
    from hwprofiles.topology import kinds_of

    if cluster.device_count > DRAWN_DEVICES:
        raise MoesaicError(
            "invalid", f"a graph of {cluster.device_count} devices; at most {DRAWN_DEVICES} are "
            "drawn: ask for fewer nodes with --set nodes=N", "/nodes",
        )  # fmt: skip
    graph, group = cluster.graph(), range(devices)
    cuts = cuts_of(graph, group)
    held = list(kinds_of(graph).values())
    return {
        "name": cluster.name,
        "vertices": {kind: held.count(kind) for kind in sorted(set(held))},
        "links_count": graph.number_of_edges() // 2,
        "devices": devices,
        "cuts": [asdict(cut) for cut in cuts],
        "bottleneck": bottleneck(graph, group).around if cuts else None,
        "all_to_all_s": all_to_all_s(graph, group, pair_bytes),
    }


def _network_table(data: dict[str, Any]) -> str:
    held = ", ".join(f"{count} {kind}" for kind, count in data["vertices"].items())
    rows = [
        [cut["around"], str(cut["devices"]), format_quantity(cut["bytes_per_s"], BANDWIDTH)]
        for cut in data["cuts"]
    ]
    seconds = format_quantity(data["all_to_all_s"], "seconds")
    waits = f", waiting for {data['bottleneck']}" if data["bottleneck"] else ""
    return (
        f"{data['name']}: {held}; {data['links_count']} links\n\n"
        + text_table(["cut around", "devices", "leaves it"], rows)
        + f"\n\nall-to-all of {data['devices']} devices: {seconds}{waits}"
    )


def overview() -> dict[str, list[dict[str, Any]]]:
    """Every device and cluster in a few fields each, as plain data."""
    devices = [load_device(name) for name in names("devices")]
    clusters = [load_cluster(name) for name in names("clusters")]
    return {
        "devices": [
            {
                "name": device.name,
                "title": device.title,
                "kind": device.kind,
                "unit": device.unit,
                "capacity_bytes": device.capacity_bytes,
                "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
                "peak_flop_per_s": {k: v.value for k, v in device.peak_flop_per_s.items()},
                "aliases": list(device.aliases),
            }
            for device in devices
        ],
        "clusters": [
            {
                "name": cluster.name,
                "title": cluster.title,
                "device": cluster.device.name,
                "nodes": cluster.nodes,
                "devices_per_node": cluster.devices_per_node,
                "tiers": [tier.name for tier in cluster.tiers],
            }
            for cluster in clusters
        ],
    }


def resolve_hardware(name: str, overrides: tuple[str, ...] = ()) -> Device | Cluster:
    """Load hardware by name or from a file, with `--set` applied.

    Raises:
        MoesaicError: `unknown_name` with the nearest names, `invalid` for a bad file or field.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return _parsed(read_document(path), overrides)
    document = load_hardware(name)
    return _parsed(document.model_dump(mode="json"), overrides) if overrides else document


def _parsed(data: object, overrides: tuple[str, ...]) -> Device | Cluster:
    if not isinstance(data, dict):
        raise MoesaicError("invalid", "a device or cluster is an object with fields", "/")
    fields = apply_overrides(data, overrides) if overrides else data
    if "tiers" not in fields:
        return parse_as(Device, fields, what="device")
    if isinstance(fields.get("device"), str):
        fields = {**fields, "device": load_device(fields["device"])}
    return parse_as(Cluster, fields, what="cluster")


def _overview_table(data: dict[str, list[dict[str, Any]]]) -> str:
    devices = [
        [
            item["name"],
            item["kind"],
            item["unit"],
            format_quantity(item["capacity_bytes"], "bytes"),
            format_quantity(item["bandwidth_bytes_per_s"], BANDWIDTH),
            item["title"],
        ]
        for item in data["devices"]
    ]
    clusters = [
        [item["name"], f"{item['nodes']} x {item['devices_per_node']}", item["device"],
         ", ".join(item["tiers"]), item["title"]]
        for item in data["clusters"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            text_table(["device", "kind", "unit", "memory", "bandwidth", "what it is"], devices),
            text_table(["cluster", "devices", "device", "link tiers", "what it is"], clusters),
        ]
    )


def facts_table(document: Device | Cluster) -> str:
    """Every number of a device or cluster as a line, contradicting sources right below it."""
    heading = f"{document.title} ({document.name})"
    if isinstance(document, Cluster):
        heading += f": {document.nodes} nodes x {document.devices_per_node} {document.device.name}"
    rows = [row for label, value in _sourced(document) for row in _rows(label, value)]
    facts = text_table(["what", "value", "certainty", "date", "source"], rows)
    device = document.device if isinstance(document, Cluster) else document
    return f"{heading}\n\n{facts}\n\n{_evidence_table(device)}"


def _evidence_table(device: Device) -> str:
    """What times are made from, sources that disagree right below."""
    from hwprofiles.timing.evidence import evidence_of

    rows: list[list[str]] = []
    for item in evidence_of(device):
        error = item["median_error_ratio"]
        rows.append([
            item["what"], "-" if item["rows"] is None else f"{item['rows']:,}",
            "-" if error is None else f"{error:.1%}", item["date"], item["source"],
        ])  # fmt: skip
        if item["conflicts"]:
            rows.append(["  but", "", "", "", item["conflicts"]])
    return text_table(["times from", "rows", "held-out error", "date", "source"], rows)


def _sourced(document: Document, path: str = "") -> Iterator[tuple[str, Sourced[float]]]:
    """Walk a document and name each sourced value by its fields."""
    for field in type(document).model_fields:
        for label, value in _parts(field, getattr(document, field)):
            if isinstance(value, Sourced):
                yield f"{path}{label}", value
            elif isinstance(value, Document):
                yield from _sourced(value, f"{path}{label}.")


def _parts(field: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, tuple):
        yield from ((getattr(item, "name", field), item) for item in value)
    elif isinstance(value, dict):
        yield from ((f"{field}.{key}", item) for key, item in value.items())
    else:
        yield field, value


def _rows(label: str, value: Sourced[float]) -> Iterator[list[str]]:
    def origin(source: str, note: str) -> str:
        return f"{source} ({note})" if note else source

    yield [_plain(label), _shown(label, value.value), value.certainty, str(value.date),
           origin(value.source, value.note)]  # fmt: skip
    for other in value.conflicts:
        yield ["  but also", _shown(label, other.value), "conflict", str(other.date),
               origin(other.source, other.note)]  # fmt: skip


def _suffix(label: str) -> str | None:
    field = label.replace("peak_flop_per_s.", "peak_flop_per_s").split(".")[-1]
    if "peak_flop_per_s" in label:
        return "_flop_per_s"
    return next((suffix for suffix in SUFFIXES if field.endswith(suffix)), None)


def _plain(label: str) -> str:
    suffix = _suffix(label)
    text = label.replace(suffix, "", 1) if suffix else label.removesuffix("_count")
    return text.replace("_", " ").replace(".", " ")


def _shown(label: str, value: float) -> str:
    suffix = _suffix(label)
    return format_quantity(value, SUFFIXES[suffix]) if suffix else f"{value:g}"
