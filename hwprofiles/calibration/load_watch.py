"""How much of the cores' time somebody else took while a sample ran."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.calibration.environment import usable_cores

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of `man 5 proc_stat`
_STEAL = 7


@dataclass(frozen=True)
class Moment:
    """Clocks at one moment, in seconds."""

    wall_s: float
    busy_s: float
    steal_s: float
    own_s: float


@dataclass(frozen=True)
class Load:
    """Shares of the cores' time between two moments."""

    steal_ratio: float
    foreign_ratio: float


class LoadWatch:
    """Reads /proc/stat and this process's own clock; where /proc is missing it sees no load.

    `helpers` gives the ids of processes whose time counts as own: ranks, a switch.
    """

    RESOLUTION_S = 0.05
    """Kernel ticks are 10 ms, so shorter windows say nothing."""

    def __init__(self, helpers: Callable[[], Iterable[int]] = tuple) -> None:
        self.helpers = helpers
        self.cores = {f"cpu{number}" for number in usable_cores()}
        self.tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01

    def now(self) -> Moment:
        """Read all clocks."""
        busy, steal = self._ticks()
        own = os.times()
        spent = own.user + own.system + own.children_user + own.children_system
        spent += sum(_spent_ticks(number) for number in self.helpers()) * self.tick_s
        return Moment(time.perf_counter(), busy * self.tick_s, steal * self.tick_s, spent)

    def _ticks(self) -> tuple[int, int]:
        try:
            lines = _STAT.read_text(encoding="ascii").splitlines()
        except OSError:
            return 0, 0
        busy = steal = 0
        for line in lines:
            name, *fields = line.split()
            if name in self.cores:
                busy += sum(int(fields[i]) for i in _BUSY)
                steal += int(fields[_STEAL]) if len(fields) > _STEAL else 0
        return busy, steal

    def between(self, before: Moment, after: Moment) -> Load:
        """Load by others between two moments, as shares of all usable cores' time."""
        span = max((after.wall_s - before.wall_s) * max(len(self.cores), 1), 1e-9)
        slack = self.tick_s * max(len(self.cores), 1)
        foreign = (after.busy_s - before.busy_s) - (after.own_s - before.own_s) - slack
        steal = after.steal_s - before.steal_s
        return Load(max(0.0, steal / span), max(0.0, foreign / span))


def _spent_ticks(process: int) -> int:
    """Ticks that another process ran, user and system (`man 5 proc_pid_stat`, fields 14, 15)."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
