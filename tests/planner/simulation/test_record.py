"""The request log: whole parts on disk while the run goes on, the same table in every form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.simulation.record import ROWS_A_PART, RequestLog
from planner.simulation.sequence import Sequence


def fill(log: RequestLog, count: int) -> None:
    for number in range(log.count, log.count + count):
        sequence = Sequence(number, Request(float(number), 10, 3, line=number + 1), float(number))
        sequence.queued_s = sequence.scheduled_s = number + 0.1
        sequence.first_token_s = number + 0.5
        log.add(sequence, number + 0.9)


READERS = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}


@pytest.mark.parametrize("suffix", READERS)
def test_every_form_holds_the_same_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"requests{suffix}"
    log = RequestLog(path)
    fill(log, ROWS_A_PART + 7)
    table = log.close()
    assert READERS[suffix](path).equals(table)
    assert list(tmp_path.iterdir()) == [path]
    assert table["ttft_s"][0] == pytest.approx(0.5)
    assert table["tpot_s"][0] == pytest.approx(0.2)


@pytest.mark.parametrize("suffix", READERS)
def test_a_killed_run_leaves_its_finished_part(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"requests{suffix}"
    script = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from planner.simulation.record import RequestLog
from planner.formats.request import Request
from planner.simulation.sequence import Sequence
log = RequestLog(Path({str(path)!r}))
for number in range({2 * ROWS_A_PART + 5}):
    log.add(Sequence(number, Request(0.0, 10, 3), 0.0), 1.0)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    if suffix == ".parquet":
        left = pl.read_parquet(f"{path}.parts/*.parquet")
    else:
        left = READERS[suffix](path)
    assert left["request_index"].to_list() == list(range(2 * ROWS_A_PART))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match=r"known endings: \.csv"):
        RequestLog(tmp_path / "requests.xlsx")
    with pytest.raises(MoesaicError, match="cannot write"):
        RequestLog(tmp_path / "missing" / "requests.csv")
