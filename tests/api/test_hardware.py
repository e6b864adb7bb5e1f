"""The hardware verb: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from api.cli import main
from api.commands.hardware import command
from hwprofiles.errors import MoesaicError
from hwprofiles.library import load_cluster, load_device, names


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_names_everything() -> None:
    data = json.loads(run("list", "-o", "json"))
    assert [item["name"] for item in data["devices"]] == list(names("devices"))
    assert [item["name"] for item in data["clusters"]] == list(names("clusters"))
    table = run("list")
    assert all(name in table for name in (*names("devices"), *names("clusters")))


@pytest.mark.parametrize("name", ["h100-sxm", "xeon-6980p", "zcu102"])
def test_show_prints_every_number_with_its_source(name: str) -> None:
    device = load_device(name)
    table = run("show", name)
    for value in (*device.peak_flop_per_s.values(), device.power_w):
        assert value is not None
        assert value.source in table
        assert str(value.date) in table
        assert value.certainty in table


def test_show_puts_contradicting_sources_below() -> None:
    lines = run("show", "ascend-a3-package").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("peak fp16"))
    assert "752 TFLOP/s" in lines[at]
    assert "but also" in lines[at + 1]
    assert "800 TFLOP/s" in lines[at + 1]


def test_show_takes_clusters_files_and_overrides(tmp_path: Path) -> None:
    assert "infiniband latency" in run("show", "dgx-h100-x4")
    shown = run("show", "dgx-h100-x4", "-o", "yaml", "--set", "nodes=2")
    path = tmp_path / "mine.yaml"
    path.write_text(shown)
    again = json.loads(run("show", str(path), "-o", "json"))
    assert again["nodes"] == 2
    assert again["device"]["name"] == "h100-sxm"
    path.write_text(shown.replace("bandwidth_bytes_per_s:", "bandwith_bytes_per_s:"))
    with pytest.raises(MoesaicError, match="bandwith"):
        run("show", str(path))


def test_topology_names_the_cut_that_an_all_to_all_waits_for(tmp_path: Path) -> None:
    table = run("topology", "hgx-h800-x4")
    assert "8 rail" in table
    assert "waiting for node0" in table
    found = json.loads(run("topology", "bigmac-testbed", "--pair-bytes", "2MB", "-o", "json"))
    assert found["all_to_all_s"] == pytest.approx(8 * 24 * 2e6 / 12.5e9, rel=1e-3)
    path = tmp_path / "apart.yaml"
    whole = run("show", "hgx-h800-x4", "-o", "yaml")
    path.write_text(whole.replace("spans_devices: 256", "spans_devices: 16"))
    with pytest.raises(MoesaicError, match="no link tier joins all 32 devices"):
        run("topology", str(path))


def test_a_graph_of_a_million_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vast.yaml"
    text = run("show", "dgx-h100-x4", "-o", "yaml").replace("nodes: 4", "nodes: 100000")
    path.write_text(text.replace("spans_devices: 256", "spans_devices: 800000"))
    with pytest.raises(MoesaicError, match="800000 devices; at most 16384"):
        run("topology", str(path))


def test_a_cluster_file_may_name_its_device(tmp_path: Path) -> None:
    data = load_cluster("dgx-h100").model_dump(mode="json") | {"device": "H100 SXM 80GB"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    assert json.loads(run("show", str(path), "-o", "json"))["device"]["name"] == "h100-sxm"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "h1000"], "did you mean h100-sxm"),
        (["show", "none.yaml"], "No such file"),
        (["topology", "h100-sxm"], "is one device"),
        (["topology", "dgx-h100", "--devices", "9"], "device8 is not among the 8 devices"),
        (["topology", "dgx-h100", "--pair-bytes", "nan"], "'nan' is no quantity in bytes"),
        (["show", "h100-sxm", "--set", "power_w.value=3 GB"], "/power_w/value: '3 GB' is in bytes"),
        (["list", "--set", "a=1"], "has no fields"),
    ],
)
def test_a_bad_question_ends_with_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["hardware", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_show_says_what_times_are_made_from():
    text = run("show", "h800-sxm")
    assert "tables of sglang" in text
    assert "InferSim" in text
    assert "DeepGEMM README" in text
    assert "curves ascend-a3" in run("show", "ascend-a3-die")
    assert "tables of hccl" in run("show", "atlas-800-a3")
    assert "aiconfigurator-core 0.12.0" in run("show", "h200-sxm")
