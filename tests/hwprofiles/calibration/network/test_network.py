"""A recorded network replayed: lines, profile, both orders against prediction, page and command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from api.commands.calibrate import command
from api.network import network_text
from hwprofiles.calibration.measurement import Journal
from hwprofiles.calibration.network import lab, session
from hwprofiles.calibration.network.answers import checked_orders
from hwprofiles.calibration.network.evidence import (
    ROLES,
    SHIPPED,
    Records,
    of_run,
    read_evidence,
    write_evidence,
)
from hwprofiles.calibration.network.lab import Topology, forbidden, topology_of
from hwprofiles.calibration.network.orders import message_bytes, order_rows, stages
from hwprofiles.calibration.network.page import large, off_ratios, page, ranked_right
from hwprofiles.calibration.network.session import (
    DEFAULT,
    Compared,
    NetworkPlan,
    compared,
    run_network,
)
from hwprofiles.calibration.network.switch import LinkSpec
from hwprofiles.calibration.runners.torch_kernels import TorchKernels
from hwprofiles.cluster import Cluster
from hwprofiles.document import parse_as
from hwprofiles.efficiency import Curves
from hwprofiles.errors import MoesaicError
from planner.work.order import FineGrained, cdac, dcca

ROOT = Path(__file__).parents[4]
LAYER: dict[str, Any] = {
    "tokens": 96, "hidden": 512, "inter": 128, "top_k": 2, "devices": 4, "nodes": 2, "dtype": "fp32"
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Compared:
    return compared(read_evidence(), DEFAULT)


def test_lines_hold_on_sizes_that_were_not_fitted(found: Compared) -> None:
    """R² 0.99 and a hold-out error of 5 to 9 % are known to be in reach."""
    assert len(found.report.lines) == 3
    for line in found.report.lines:
        assert line.r_squared_ratio > 0.99
        assert line.held_out_count >= 20
        assert line.error_median_ratio < 0.09


def test_no_layer_sends_a_message_of_a_fitted_size() -> None:
    records = read_evidence()
    fitted = {row["message_bytes"] for row in records.fitted if row["kernel"] == "all_to_all"}
    sent = {message_bytes(row, order) for row in records.layers for order in ("cdac", "dcca")}
    assert not fitted & sent
    assert len(sent) > 20


@pytest.mark.parametrize("part", ["exchange_", ""])
def test_the_quotient_of_both_orders_is_predicted(found: Compared, part: str) -> None:
    orders = large(found.report.orders)
    assert len(orders) > 40
    assert {(o.devices, o.nodes) for o in orders} == {(2, 1), (2, 2), (4, 2)}
    assert max(off_ratios(orders, part)) <= 0.15
    assert np.median(off_ratios(orders, part)) < 0.05


def test_the_faster_order_is_predicted(found: Compared) -> None:
    """Where both take equally long within a measurement's spread, neither is the faster one."""
    orders = large(found.report.orders)
    assert ranked_right(orders, "exchange_") == len(orders)
    clear = [order for order in orders if abs(order.quotient()[0] - 1) > 0.05]
    assert len(clear) > 40
    assert ranked_right(clear) == len(clear)


def test_intervals_hold_on_groups_that_were_left_out(found: Compared) -> None:
    """Short layers alone leave the 75 to 88 %: their products start warmer than measured apart."""
    judged = {(c.what, c.left_out): c for c in found.report.intervals}
    assert judged.keys() == {
        (what, left_out)
        for what, names in (("exchange", ("message size", "width of a token", "group of ranks")),
                            ("layer", ("width of the model", "tokens", "group of ranks")))
        for left_out in names
    }  # fmt: skip
    tokens = judged.pop(("layer", "tokens"))
    assert 0.65 <= tokens.coverage_ratio <= 0.88
    for coverage in judged.values():
        assert 0.75 <= coverage.coverage_ratio <= 0.88
        assert coverage.rows_count >= 80
    band = found.curves.families["all_to_all"].time
    assert band is not None
    assert (band.low, band.high) == (judged["exchange", "message size"].low_ratio,
                                     judged["exchange", "message size"].high_ratio)  # fmt: skip


def test_few_held_out_rows_leave_the_interval_of_the_fit(found: Compared) -> None:
    records = read_evidence()
    few = compared(replace(records, held_out=records.held_out[:5], layers=()), DEFAULT)
    assert few.report.intervals == ()
    assert few.curves.families["all_to_all"].time != found.curves.families["all_to_all"].time


def test_dcca_wins_across_nodes_and_loses_to_its_projections_inside(found: Compared) -> None:
    across = [o.quotient()[0] for o in large(found.report.orders) if o.nodes == 2]
    assert max(across) < 1
    inside = [o.quotient()[0] for o in found.report.orders if o.nodes == 1]
    assert max(inside) > 1


def test_the_page_is_written_from_the_evidence(found: Compared) -> None:
    assert (ROOT / "docs" / "network.md").read_text(encoding="utf-8") == page(found.report)


def test_the_shipped_profile_is_the_fitted_one(found: Compared) -> None:
    curves = parse_as(Curves, json.loads((SHIPPED / "profile.json").read_text()))
    assert curves.families == found.curves.families
    cluster = parse_as(Cluster, json.loads((SHIPPED / "cluster.json").read_text()))
    assert [t.latency_s.value for t in cluster.tiers] == [
        t.latency_s.value for t in found.cluster.tiers
    ]


def test_messages_are_those_of_the_papers_formula() -> None:
    """BigMac's table counts dispatch and combine of all ranks, forward and backward, in bf16."""
    of = FineGrained(layers=1, hidden=512, vocab=1, experts=8, top_k=2, ratio=0.25, ep=4,
                     tokens=4 * 96, sequence=96)  # fmt: skip
    for order, cost in (("cdac", cdac(of)), ("dcca", dcca(of))):
        rows = [r for r in order_rows(LAYER, order) if r["kernel"] == "all_to_all"]
        sent = sum(r["message_bytes"] for r in rows) * 4 * (1 - 1 / 4)
        assert sent * 2 / 4 * 2 == pytest.approx(cost.exchange_bytes)


def test_both_orders_compute_the_same_but_for_the_shared_products() -> None:
    def flops(order: str) -> float:
        rows = [r for r in order_rows(LAYER, order) if r["kernel"] == "gemm"]
        return float(sum(2 * r["m"] * r["n"] * r["k"] for r in rows))

    assert flops("dcca") - flops("cdac") == 2 * 2 * 96 * 512 * 128


def test_evidence_goes_round(tmp_path: Path) -> None:
    records = read_evidence()
    write_evidence(records, tmp_path)
    assert (tmp_path / "rows.csv").read_text() == (SHIPPED / "rows.csv").read_text()
    for name, rows in zip(ROLES.values(), (records.fitted, records.held_out, records.layers),
                          strict=True):  # fmt: skip
        for number, factor in ((1, 3.0), (2, 1.0), (3, 1.1)):
            (tmp_path / f"round-{number}").mkdir(exist_ok=True)
            journal = Journal(tmp_path / f"round-{number}" / name)
            for row in rows[:3]:
                journal.append({**row, "median_s": row["median_s"] * factor})
            journal.append({"id": "x", "disturbed": True})
    again = of_run(tmp_path)
    assert len(again.fitted) == len(again.layers) == 3
    assert again.fitted[0]["median_s"] == pytest.approx(1.1 * records.fitted[0]["median_s"])
    assert again.fitted[0]["rounds_count"] == 3
    assert again.fitted[0]["samples_count"] == 3 * records.fitted[0]["samples_count"]
    with pytest.raises(MoesaicError, match="holds no network calibration"):
        of_run(tmp_path / "none")


def test_a_layer_in_one_order_only_is_left_out(found: Compared) -> None:
    rows = [row for row in read_evidence().layers if row["backend"] == "gloo-cdac"]
    assert checked_orders(rows, [], found.cluster, found.curves) == ()


def test_too_few_exchanges_fit_nothing() -> None:
    records = read_evidence()
    kept = [row for row in records.fitted if row["kernel"] != "all_to_all"]
    with pytest.raises(MoesaicError, match="0 all-to-alls fit no two links"):
        compared(Records(records.environment, kept, [], []), DEFAULT)


def test_a_topology_goes_round() -> None:
    assert topology_of(DEFAULT.text()) == DEFAULT
    single = Topology(1, 3, LinkSpec("near", 1e6, 0.0), LinkSpec("far", 1e6, 0.0))
    assert NetworkPlan(single).groups() == [{"devices": 3, "nodes": 1}]
    apart = Topology(3, 1, LinkSpec("near", 1e6, 0.0), LinkSpec("far", 1e6, 0.0))
    assert NetworkPlan(apart).groups() == [{"devices": 3, "nodes": 3}]
    device = compared(read_evidence(), DEFAULT).cluster.device
    assert [t.name for t in session.lab_cluster(device, single).tiers] == ["near"]
    assert [t.name for t in session.lab_cluster(device, apart).tiers] == ["far"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--devices", "5"], "5 ranks on 2 nodes"),
        (["--devices", "1", "--nodes", "1"], "1 ranks on 1 nodes"),
        (["--devices", "128"], "128 ranks"),
        (["--near", "fast"], "no quantity"),
        (["--far", "10 GiB"], "is in bytes, not in bytes per second"),
        (["--far", "0 MB/s"], "carries something"),
    ],
)
def test_bad_topologies_are_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(MoesaicError, match=says):
        CliRunner().invoke(command, ["--network", "--out", str(tmp_path / "o"), *arguments],
                           catch_exceptions=False)  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_where_nothing_is_permitted_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "_TUN", tmp_path / "no-tun")
    assert "need Linux with /dev/net/tun" in str(forbidden())
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MoesaicError, match="torch is not installed"):
        run_network(tmp_path / "o", NetworkPlan())
    monkeypatch.undo()
    monkeypatch.setattr(lab.shutil, "which", lambda _: None)
    assert "not installed" in str(forbidden()) or "need Linux" in str(forbidden())


def test_the_command_shows_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Compared
) -> None:
    asked: list[NetworkPlan] = []

    def replayed(_: Path, plan: NetworkPlan, __: object) -> object:
        asked.append(plan)
        return found.report

    monkeypatch.setattr(session, "run_network", replayed)
    arguments = ["--network", "--far", "100 Mbit/s", "--quiet", "--quick", "--out", str(tmp_path)]
    run = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    assert "faster order right" in run.stdout
    assert run.stdout.strip() == network_text(found.report)
    assert asked[0].topology.far.bytes_per_s == 12.5e6
    assert asked[0].quick
    run = CliRunner().invoke(command, [*arguments, "-o", "json"], catch_exceptions=False)
    assert len(json.loads(run.stdout)["orders"]) == len(found.report.orders)


def test_stages_on_one_rank_compute_what_the_orders_say(tmp_path: Path) -> None:
    """A group of one: nothing travels, and both orders keep the tokens' shape."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    torch = importlib.import_module("torch")
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        kernels = TorchKernels(torch, "cpu", group.group.WORLD)
        for order in ("cdac", "dcca"):
            out: Any = stages(kernels, {**LAYER, "order": order})()
            assert tuple(out.shape) == (96, 512)
        assert stages(kernels, {"kernel": "all_to_all", "message_bytes": 64.0})() is None
        assert stages(kernels, {"kernel": "gemm", "m": 2, "n": 2, "k": 2, "dtype": "fp32"})
    finally:
        group.destroy_process_group()


@pytest.mark.slow
@pytest.mark.hardware
def test_a_real_network(tmp_path: Path) -> None:
    """Measures here and now: processes, namespaces, links; kept wide, for machines differ."""
    reason = session.unusable()
    if reason:
        pytest.skip(reason)
    report = run_network(tmp_path / "o", NetworkPlan(quick=True))
    assert not report.refused
    orders = large(report.orders)
    assert np.median(off_ratios(orders, "exchange_")) < 0.15
    assert ranked_right(orders, "exchange_") == len(orders)
    again = run_network(tmp_path / "o", NetworkPlan(quick=True))
    assert again.measured_count == 0


WITHOUT_RIGHTS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
for number in (12, 21):  # CAP_NET_ADMIN, CAP_SYS_ADMIN
    libc.prctl(24, number)  # PR_CAPBSET_DROP
ask = "from hwprofiles.calibration.network.lab import forbidden; print(forbidden())"
os.execv(sys.executable, [sys.executable, "-c", ask])
"""


@pytest.mark.hardware
def test_without_rights_it_is_served_or_told() -> None:
    """Without root's rights a namespace of users is tried; what is forbidden is told in words."""
    if forbidden() or os.geteuid() != 0:
        pytest.skip("there are no rights to give up here")
    run = subprocess.run([sys.executable, "-c", WITHOUT_RIGHTS], capture_output=True, text=True,
                         cwd=ROOT, check=False)  # fmt: skip
    assert run.stdout.strip() == "None" or "not permitted here: " in run.stdout


def test_rows_are_few_and_dated() -> None:
    table = pl.read_csv(SHIPPED / "rows.csv")
    assert 250 < table.height < 400
    assert table["measured_at"].null_count() == 0
    assert not table["disturbed"].any()
