"""The journal against the worst: a process killed at any moment, a disk that takes nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwprofiles.calibration.measurement import Journal
from hwprofiles.errors import MoesaicError

WRITER = """
import sys
from pathlib import Path
from hwprofiles.calibration.measurement import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(10**6):
    journal.append({"id": str(number), "padding": "x" * 5000})
    print(number, flush=True)
"""


def test_a_kill_loses_no_row_that_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        finished = [int(writer.stdout.readline()) for _ in range(20)]
        time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
        finished += [int(line) for line in writer.stdout if line.strip().isdigit()]
    ids = {int(row["id"]) for row in Journal(path).read()}
    assert set(finished) <= ids
    Journal(path).append({"id": "after"})
    assert len(Journal(path).read()) == len(ids) + 1


def test_a_full_disk_is_told_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take half a line before it is full; the next row starts on a clean line."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"id": "a"})

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 3)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MoesaicError, match="No space left on device"):
            journal.append({"id": "b"})
    assert [row["id"] for row in journal.read()] == ["a"]
    journal.append({"id": "c"})
    assert [row["id"] for row in journal.read()] == ["a", "c"]
