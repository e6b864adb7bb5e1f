"""Documents: closed, frozen, and precise about what is wrong where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hwprofiles.cluster import Cluster
from hwprofiles.device import Device
from hwprofiles.document import Document, pointer
from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_cluster, load_device, load_hardware, resolve_cluster


def device(**changes: Any) -> dict[str, Any]:
    return load_device("h100-sxm").model_dump(mode="json") | changes


def sourced(value: object) -> dict[str, object]:
    return {
        "value": value,
        "source": "made up for a test",
        "date": "2024-01-01",
        "certainty": "assumed",
    }


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"power_w": sourced("3.35 TB/s")}, "/power_w/value", "bytes per second, not in watts"),
        ({"power_w": sourced(-1)}, "/power_w/value", "zero or more"),
        ({"power_w": sourced(float("nan"))}, "/power_w/value", "finite"),
        ({"power_w": {"value": 3}}, "/power_w/source", "required"),
        ({"power_w": 700}, "/power_w", "dictionary|instance"),
        ({"colour": "green"}, "/colour", "not permitted"),
        ({"memory": []}, "/memory", "at least 1"),
        ({"kind": "toaster"}, "/kind", "gpu"),
        ({"name": "../etc"}, "/name", "pattern"),
        ({"peak_flop_per_s": {"a/b": sourced(-1)}}, "/peak_flop_per_s/a~1b/value", "zero or more"),
        ({"schema_version": 2}, "/schema_version", "1"),
    ],
)
def test_each_error_points_at_its_field(changes: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(MoesaicError, match=says) as caught:
        Device.parse(device(**changes), what="device")
    assert caught.value.kind == "invalid"
    assert caught.value.path == path


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(MoesaicError) as caught:
        Device.parse(device(kind="toaster", colour=1), what="device")
    assert "/colour" in caught.value.message
    assert caught.value.path == "/kind"


def test_pointer_escapes() -> None:
    assert pointer(("a", 0, "b/c~d")) == "/a/0/b~1c~0d"


def test_documents_are_frozen_and_named_by_content() -> None:
    one = load_device("h100-sxm")
    with pytest.raises(ValidationError):
        one.name = "other"
    assert one.digest() == Device.parse(device()).digest()
    assert one.digest() != Device.parse(device(title="another")).digest()


def cluster(**changes: Any) -> dict[str, Any]:
    return load_cluster("dgx-h100-x4").model_dump(mode="json") | changes


def tier(spans: int) -> dict[str, Any]:
    return {
        "name": f"t{spans}",
        "kind": "pcie",
        "spans_devices": spans,
        "bandwidth_bytes_per_s": sourced("1 GB/s"),
        "latency_s": sourced("1 us"),
    }


@pytest.mark.parametrize(
    ("tiers", "says"),
    [
        ([], "disconnected"),
        ([tier(8)], "disconnected"),
        ([tier(32), tier(8)], "more devices each time"),
        ([tier(8), tier(8), tier(32)], "more devices each time"),
    ],
)
def test_a_broken_topology_is_refused(tiers: list[Any], says: str) -> None:
    with pytest.raises(MoesaicError, match=says):
        Cluster.parse(cluster(tiers=tiers), what="cluster")


def test_the_nearest_tier_that_joins_a_group() -> None:
    four = load_cluster("dgx-h100-x4")
    assert [four.tier_for(n).name for n in (2, 8, 9, 32)] == [
        "nvlink", "nvlink", "infiniband", "infiniband",
    ]  # fmt: skip


def test_graph_adds_up() -> None:
    graph = load_cluster("dgx-h100-x4").graph()
    devices = [name for name in graph if name.startswith("device")]
    assert len(devices) == 32
    assert all(graph.edges[d, f"nvlink{int(d[6:]) // 8}"]["latency_s"] > 0 for d in devices)
    leaving = [edge["bandwidth_bytes_per_s"] for *_, edge in graph.out_edges(devices[:8], data=True)
               if edge["kind"] == "infiniband"]  # fmt: skip
    assert sum(leaving) == 8 * 50e9


@given(st.integers(1, 64), st.integers(1, 16))
def test_base_stretches_only_the_outermost_tier(nodes: int, width: int) -> None:
    base = load_cluster("dgx-h100-x4")
    made = resolve_cluster({"base": "dgx-h100-x4", "nodes": nodes, "devices_per_node": width})
    assert made.device_count == nodes * width
    assert made.tiers[0] == base.tiers[0]
    assert made.tiers[-1].spans_devices >= made.device_count


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"base": "dgx-h100-x4", "nodes": 0}, "/nodes"),
        ({"base": "dgx-h100-x4", "nodes": "four"}, "/cluster/nodes"),
        ({"base": "dgx-h100-x4", "nodes": True}, "/cluster/nodes"),
        ({"base": "dgx-h100-x4", "tiers": []}, "/cluster/tiers"),
        ({"base": "dgx-h100-x4", "device": "h1000"}, ""),
        ({"base": "dgx-h1000"}, ""),
        ({"name": "x"}, "/title"),
        (7, "/cluster"),
        ("h100", ""),
    ],
)
def test_bad_clusters(data: object, path: str) -> None:
    with pytest.raises(MoesaicError) as caught:
        resolve_cluster(data)
    assert caught.value.path == path


def test_base_takes_another_device() -> None:
    made = resolve_cluster({"base": "dgx-h100", "device": "h20", "nodes": 2})
    assert made.device.name == "h20"
    assert made.name == "dgx-h100-2x8"
    assert resolve_cluster(made) is made


def test_hardware_is_a_device_or_a_cluster() -> None:
    assert isinstance(load_hardware("NVIDIA GB200 "), Device)
    assert isinstance(load_hardware("gb200-nvl72"), Cluster)
    assert isinstance(load_hardware("dgx-h100"), Cluster)
    with pytest.raises(MoesaicError, match="did you mean") as caught:
        load_hardware("zcu1002")
    assert "zcu102" in caught.value.message


def test_a_schema_describes_fields_by_the_strings_under_them():
    class Said(Document):
        """What is told."""

        size_bytes: float
        """How large."""
        plain: int

    class Derived(Said):
        """What is told anew."""

        size_bytes: float = 1.0
        """How large now."""

    properties = Said.model_json_schema()["properties"]
    assert properties["size_bytes"]["description"] == "How large."
    assert "description" not in properties["plain"]
    assert (
        Derived.model_json_schema()["properties"]["size_bytes"]["description"] == "How large now."
    )
