"""The line to ranks, with ranks that speak the protocol but need no torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hwprofiles.calibration.harness import Harness, Limits
from hwprofiles.calibration.measurement import Journal
from hwprofiles.calibration.network import group as groups
from hwprofiles.calibration.network.group import OrderRunner, RankGroup
from hwprofiles.calibration.network.session import DEFAULT
from hwprofiles.errors import MoesaicError

RANK = """
import json, os, socket, sys, time
number, world, store, teller, backend = sys.argv[1:]
if number == "{absent}":
    sys.exit(1)
line = socket.socket(socket.AF_UNIX)
line.connect(teller)
line.sendall(f"{{number}} {{os.getpid()}}\\n".encode())
line.sendall(b"ready\\n")
row = {{}}
for text in line.makefile("rb"):
    told = json.loads(text)
    if told["do"] == "prepare":
        row = told["row"]
        answer = {{"error": "no such thing"}} if row.get("m") == 999 else None
    elif row.get("m") == 13:
        sys.exit(1)
    else:
        begin = told["at"] + 0.001 * int(number)
        answer = [begin, told["at"] + 0.01]
    line.sendall(json.dumps(answer).encode() + b"\\n")
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ranks that answer what a rank answers; rank 2 of three never comes."""
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK).format(absent=2))
    monkeypatch.setattr(
        groups, "start_rank",
        lambda *told: subprocess.Popen([sys.executable, str(script), *map(str, told)]),
    )  # fmt: skip
    monkeypatch.setattr(groups.importlib.metadata, "version", lambda _: "9.9")
    return tmp_path


def test_times_go_from_the_last_start_to_the_last_end(ranks: Path) -> None:
    with RankGroup(2) as group:
        harness = Harness(
            group, Journal(ranks / "j"), "box",
            Limits(warm_up_s=0.0, foreign_ratio=9, steal_ratio=9), group.watch(),
        )  # fmt: skip
        rows = [{"kernel": "all_reduce", "devices": 2, "message_bytes": 8.0}]
        assert harness.measure_all(rows).measured_count == 1
        (row,) = harness.journal.read()
        assert row["median_s"] == pytest.approx(0.009, abs=1e-6)
        assert row["backend"] == "gloo"
        assert "2 ranks on one machine" in group.environment().libraries["network"]
        cdac = OrderRunner(group, "cdac")
        assert (cdac.name, cdac.environment()) == ("gloo-cdac", group.environment())
        local = group.prepare({"kernel": "gemm", "m": 8})
        assert group.sample(local) == pytest.approx(0.01, abs=1e-6)
        assert cdac.sample(cdac.prepare({"devices": 2, "nodes": 1})) > 0
        cdac.synchronise()


@pytest.mark.usefixtures("ranks")
def test_what_a_rank_refuses_is_told() -> None:
    with RankGroup(2) as group:
        with pytest.raises(MoesaicError, match="no such thing"):
            group.prepare({"kernel": "gemm", "m": 999})
        with pytest.raises(MoesaicError, match="3 ranks are wanted, 2 are here"):
            group.prepare({"kernel": "all_reduce", "devices": 3, "nodes": 1})


@pytest.mark.usefixtures("ranks")
def test_a_rank_that_ends_is_noticed() -> None:
    with RankGroup(2) as group:
        prepared = group.prepare({"kernel": "gemm", "m": 13})
        with pytest.raises(MoesaicError, match="has ended"):
            group.sample(prepared)


@pytest.mark.usefixtures("ranks")
def test_a_rank_that_never_comes_is_noticed() -> None:
    with pytest.raises(MoesaicError, match="2 of 3 ranks met, then a process ended"), RankGroup(3):
        pass


@pytest.mark.usefixtures("ranks")
def test_members_lie_on_their_nodes() -> None:
    group = RankGroup(0, DEFAULT)
    assert group.chosen({"devices": 2, "nodes": 1}) == [0, 1]
    assert group.chosen({"devices": 2, "nodes": 2}) == [0, 2]
    assert group.chosen({"devices": 4, "nodes": 2}) == [0, 1, 2, 3]
    assert "near 500 Mbit/s 50 us, far 200 Mbit/s" in group.environment().libraries["network"]
    group.close()
