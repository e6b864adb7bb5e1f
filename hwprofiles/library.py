"""Find devices and clusters by name in the data folders, or take them inline."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.files import read_document, read_text

ROOT = Path(__file__).parent


@cache
def names(folder: str) -> tuple[str, ...]:
    """Names in one data folder (`devices`, `clusters`, `curves`)."""
    return tuple(sorted(path.stem for path in (ROOT / folder).glob("*.yaml")))


def canonical(name: str) -> str:
    """Write a name the way files are named: lower case, "-" for blanks and "_".

    >>> canonical("H200_SXM")
    'h200-sxm'
    """
    return re.sub(r"[\s_/]+", "-", name.strip().lower())


@cache
def _aliases() -> dict[str, str]:
    """Every alias of every device, canonical, to the device's name."""
    found: dict[str, str] = {}
    for name in names("devices"):
        data = read_document(ROOT / "devices" / f"{name}.yaml")
        found |= {canonical(alias): name for alias in data.get("aliases", ())}
    return found


@cache
def load_device(name: str) -> Device:
    """Load a device by name or alias.

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    wanted = canonical(name)
    if wanted not in names("devices"):
        wanted = _aliases().get(wanted, wanted)
    if wanted not in names("devices"):
        raise unknown_name("device", name, names("devices"))
    return parse_as(Device, read_document(ROOT / "devices" / f"{wanted}.yaml"), what=wanted)


@cache
def load_cluster(name: str) -> Cluster:
    """Load a cluster by name.

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    wanted = canonical(name)
    if wanted not in names("clusters"):
        raise unknown_name("cluster", name, names("clusters"))
    data = read_document(ROOT / "clusters" / f"{wanted}.yaml")
    return parse_as(Cluster, {**data, "device": load_device(data["device"])}, what="cluster")


def load_hardware(name: str) -> Device | Cluster:
    """Load a device or a cluster by name, or a device by alias.

    Raises:
        MoesaicError: `unknown_name`, with the nearest names of both kinds.
    """
    wanted = canonical(name)
    if wanted in names("clusters"):
        return load_cluster(name)
    if wanted in names("devices") or wanted in _aliases():
        return load_device(name)
    known = {*names("devices"), *names("clusters")}
    raise unknown_name("device or cluster", name, known)


def resolve_cluster(data: object) -> Cluster:
    """Take a name, an inline cluster, or `{base: NAME, nodes: N, devices_per_node: M, device: D}`.

    With `base`, the named cluster is taken and the given fields replace its own; the outermost tier
    is stretched over the new device count.
    """
    if isinstance(data, Cluster):
        return data
    if isinstance(data, str):
        return load_cluster(data)
    if not isinstance(data, dict):
        raise MoesaicError("invalid", "a cluster is a name or an object", "/cluster")
    fields: dict[str, Any] = dict(data)
    if isinstance(fields.get("device"), str):
        fields["device"] = load_device(fields["device"])
    base = fields.pop("base", None)
    if base is None:
        return parse_as(Cluster, fields, what="cluster")
    return _stretched(load_cluster(str(base)), fields)


def cluster_for(device: str, devices: int = 1, nodes: int = 1) -> Cluster:
    """The cluster a device named alone stands in: the smallest that holds a group, else stretched.

    Args:
        device: name or alias of the device.
        devices: ranks of the largest group.
        nodes: nodes the group spans at least.

    Raises:
        MoesaicError: `unknown_name` for the device, `outside_evidence` when no link that joins
            several of it is known.
    """
    machine = load_device(device)
    known = sorted(
        (load_cluster(c) for c in names("clusters") if _device_of(c) == machine.name),
        key=lambda cluster: (cluster.device_count, cluster.name),
    )
    for cluster in known:
        if cluster.device_count >= devices and cluster.nodes >= nodes:
            return cluster
    if known:
        base = known[-1]
        return _stretched(base, {"nodes": max(nodes, -(-devices // base.devices_per_node))})
    if max(devices, nodes) > 1:
        raise MoesaicError(
            "outside_evidence",
            f"no catalogue cluster joins several {machine.name}; describe one under cluster",
            "/device",
        )
    alone = {"name": f"{machine.name}-x1", "title": f"One {machine.title}", "device": machine,
             "nodes": 1, "devices_per_node": 1, "tiers": ()}  # fmt: skip
    return parse_as(Cluster, alone, what="cluster")


@cache
def _device_of(cluster: str) -> str:
    """Name of a cluster's device, from its line alone: reading every cluster takes 60 ms."""
    found = re.search(
        r"^device: *(\S+)$", read_text(ROOT / "clusters" / f"{cluster}.yaml"), re.MULTILINE
    )
    if found is None or found.group(1) not in names("devices"):
        return load_cluster(cluster).device.name
    return found.group(1)


def _stretched(base: Cluster, fields: dict[str, Any]) -> Cluster:
    allowed = {"nodes", "devices_per_node", "device", "name", "title"}
    if set(fields) - allowed:
        extra = min(set(fields) - allowed)
        raise MoesaicError(
            "invalid", f"with base, only {sorted(allowed)} may change", f"/cluster/{extra}"
        )
    nodes, width = (
        _whole(fields.get(key, getattr(base, key)), key) for key in ("nodes", "devices_per_node")
    )
    if not base.tiers and nodes * width > 1:
        raise MoesaicError(
            "outside_evidence",
            f"no catalogue link joins several {base.device.name}; describe one under cluster",
            "/device",
        )
    tiers = [tier.model_dump() for tier in base.tiers]
    tiers[-1]["spans_devices"] = max(tiers[-1]["spans_devices"], nodes * width)
    device = fields.get("device", base.device)
    name = fields.get("name", f"{base.name}-{nodes}x{width}")
    if "title" not in fields:
        fields = fields | {"title": f"{nodes} x {width} {fields.get('device', base.device).title}"}
    return parse_as(
        Cluster, {**base.model_dump(), **fields, "name": name, "device": device, "tiers": tiers},
        what="cluster",
    )  # fmt: skip


def _whole(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise MoesaicError("invalid", f"{value!r} is no whole number", f"/cluster/{field}")
    return value
