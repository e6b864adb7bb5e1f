"""Every device and cluster of the catalogue loads, is sourced, and answers to its names."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import networkx as nx
import pytest

from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.document import Document
from hwprofiles.efficiency import load_curves
from hwprofiles.library import ROOT, load_cluster, load_device, names
from hwprofiles.sourced import Sourced

PLAIN = {"schema_version", "nodes", "devices_per_node", "spans_devices"}
"""Numbers that name a thing or choose a size; they describe no measurement."""


def bare_numbers(document: Document, path: str = "") -> Iterator[str]:
    """Paths of numbers that carry no source."""
    for name in type(document).model_fields:
        value = getattr(document, name)
        if isinstance(value, Sourced) or name in PLAIN:
            continue
        items = value.values() if isinstance(value, dict) else value
        for item in items if isinstance(items, tuple | type({}.values())) else (value,):
            if isinstance(item, Sourced):
                continue
            if isinstance(item, Document):
                yield from bare_numbers(item, f"{path}/{name}")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield f"{path}/{name}"


def sourced_values(document: Document) -> Iterator[Sourced[float]]:
    """Every sourced value inside a document."""
    for name in type(document).model_fields:
        value = getattr(document, name)
        items = tuple(value.values()) if isinstance(value, dict) else value
        for item in items if isinstance(items, tuple) else (value,):
            if isinstance(item, Sourced):
                yield item
            elif isinstance(item, Document):
                yield from sourced_values(item)


def test_bare_numbers_finds_one() -> None:
    class Careless(Document):
        power_w: float

    assert list(bare_numbers(Careless(power_w=3.0))) == ["/power_w"]


@pytest.mark.parametrize("name", names("devices"))
def test_every_device_number_is_sourced(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert not list(bare_numbers(device))
    values = list(sourced_values(device))
    assert len(values) >= 3
    for value in values:
        assert value.value > 0
        assert datetime.date(2015, 1, 1) < value.date <= datetime.datetime.now(datetime.UTC).date()
    curves = load_curves(device.curves)
    assert curves.families or curves.array


@pytest.mark.parametrize("name", names("clusters"))
def test_every_cluster_is_sourced_and_connected(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert not list(bare_numbers(cluster))
    assert nx.is_strongly_connected(cluster.graph())
    inner = [tier.latency_s.value for tier in cluster.tiers]
    assert inner == sorted(inner)


def test_no_number_was_copied_with_sparsity() -> None:
    """FP8 runs at twice BF16 on Hopper and Blackwell, so a peak with sparsity would show."""
    for name in ("h100-sxm", "h200-sxm", "b200-sxm", "gb200", "gb300", "l40s"):
        device = load_device(name)
        assert device.peak("fp8") / device.peak("bf16") == pytest.approx(2, rel=0.02), name
    assert load_device("h100-sxm").peak("bf16") == 989.4e12


def test_sources_that_disagree_stand_side_by_side() -> None:
    package = load_device("ascend-a3-package")
    assert [item.value for item in package.peak_flop_per_s["fp16"].conflicts] == [800e12]
    die_tier = load_cluster("cloudmatrix384").tiers[0]
    assert {item.value for item in die_tier.bandwidth_bytes_per_s.conflicts} == {210e9, 270e9}


def test_die_and_package_are_told_apart() -> None:
    die, package = load_device("ascend-a3-die"), load_device("ascend-a3-package")
    assert (die.unit, package.unit) == ("die", "package")
    assert package.peak("int8") == 2 * die.peak("int8")
    assert load_cluster("cloudmatrix384").device_count == 768
    assert load_cluster("cloudmatrix384-packages").device_count == 384


def test_edge_moe_arithmetic() -> None:
    """256 MAC a cycle at 300 MHz and 256 bit a cycle (sharc-lab/Edge-MoE hardware.hpp)."""
    board = load_device("zcu102")
    assert board.macs_per_cycle_count is not None
    assert board.clock_hz is not None
    assert board.power_w is not None
    assert 2 * board.macs_per_cycle_count.value * board.clock_hz.value == board.peak("int16")
    assert board.bandwidth_bytes_per_s == 256 / 8 * board.clock_hz.value


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H100 SXM 80GB", "h100-sxm"),
        ("h100_sxm", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("gb200_nvl72", "gb200"),
        ("GB300 NVL72", "gb300"),
        ("RTX Pro 6000 Blackwell Server", "rtx-pro-6000"),
        ("rtx_pro_6000_server", "rtx-pro-6000"),
        ("Ascend 910C", "ascend-a3-package"),
        ("ATLAS_800_A2_376T_64G", "ascend-a2-376t"),
        ("Snapdragon 8 Gen 4 phone (OnePlus 13)", "snapdragon-8-gen4"),
    ],
)
def test_names_that_users_and_data_write(written: str, name: str) -> None:
    assert load_device(written).name == name


def test_no_alias_names_two_devices() -> None:
    seen: dict[str, str] = {}
    for name in names("devices"):
        for alias in load_device(name).aliases:
            assert seen.setdefault(alias.lower(), name) == name, alias
            assert alias not in names("devices") or alias == name


def test_catalogue_round_trips() -> None:
    for name in names("devices"):
        device = load_device(name)
        again = Device.parse(device.model_dump(mode="json"))
        assert again.digest() == device.digest()
    cluster = load_cluster("cloudmatrix384")
    assert Cluster.parse(cluster.model_dump(mode="json")).digest() == cluster.digest()


def test_files_are_named_after_what_they_hold() -> None:
    for folder in ("devices", "clusters"):
        assert list((ROOT / folder).glob("*.yaml"))
        assert not [p for p in (ROOT / folder).iterdir() if p.suffix != ".yaml"]
