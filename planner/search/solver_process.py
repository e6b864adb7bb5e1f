"""HiGHS in a process of its own: kept for the next programme, killed beyond time or memory.

The process reads programmes as arrays and writes what it finds as it finds it, so that a process
that dies leaves its best solution and bound behind. It ends when its parent does.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

HEAD = struct.Struct("<Q")
GRACE_S = 5.0
"""A process may take this long beyond its time limit to start, read and write."""
KEPT = 2
"""Idle processes that wait for the next programme."""
CHUNK_BYTES = 1 << 20
WATCH_S = 1.0


@dataclass(frozen=True)
class Model:
    """A programme as HiGHS is given it: a minimisation, rows in the order they were required in."""

    names: tuple[str, ...]
    cost: tuple[float, ...]
    bounds: tuple[tuple[float | None, float | None], ...]
    """Of each variable."""
    whole: tuple[bool, ...]
    """Variables in whole numbers; empty: none is."""
    sides: tuple[tuple[float | None, float | None], ...]
    """Of each row."""
    terms: tuple[tuple[tuple[int, float], ...], ...]
    """Variables and coefficients of each row."""

    @property
    def bytes(self) -> float:
        """Roughly what remembering it takes."""
        return 200.0 * (len(self.names) + len(self.sides)) + 100.0 * sum(map(len, self.terms))


@dataclass(frozen=True)
class Ended:
    """How a run of HiGHS ended, in its own minimising sense."""

    status: str
    found: bool
    objective: float
    bound: float
    run_s: float
    values: tuple[float, ...] = ()
    """Of each variable, where they went through a pipe."""


@dataclass(frozen=True)
class Asked:
    """One programme, options of HiGHS by name (its time limit too), and memory it may take."""

    model: Model
    options: dict[str, Any]
    memory_limit_bytes: float


def read_end(highs: Any) -> Ended:  # noqa: ANN401 - highspy has no types
    """Read how a run ended."""
    info = highs.getInfo()
    return Ended(
        status=str(highs.getModelStatus()).rpartition(".")[2],
        found=str(info.primal_solution_status) in ("2", "SolutionStatus.kSolutionStatusFeasible"),
        objective=float(info.objective_function_value),
        bound=float(info.mip_dual_bound),
        run_s=float(highs.getRunTime()),
    )


class Process:
    """A running solver and the pipes to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.popen = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def solve(self, asked: Asked) -> Ended:
        """Solve; a process that dies or is killed leaves what it found, with its status.

        `killed` is said beyond the time limit, `died` when memory or a fault ended it.
        """
        started = time.perf_counter()
        last = Ended("running", found=False, objective=math.inf, bound=-math.inf, run_s=0.0)
        status = "died"
        try:
            _write(_pipe(self.popen.stdin), asked)
            for said in _frames(_pipe(self.popen.stdout), asked.options["time_limit"] + GRACE_S):
                if said.status != "running":
                    return said
                last = said
        except TimeoutError:
            status = "killed"
        except (EOFError, OSError):
            pass
        self.end()
        return replace(last, status=status, run_s=time.perf_counter() - started)

    def end(self) -> None:
        """Kill it, where it is our own, and close its pipes."""
        if self.owner == os.getpid():
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()

    def usable(self) -> bool:
        """Whether it runs and is this process's own, not that of one we were forked from."""
        return self.owner == os.getpid() and self.popen.poll() is None


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - both are asked for
    return pipe


_IDLE: list[Process] = []
_LOCK = threading.Lock()


def solve_apart(asked: Asked) -> Ended:
    """Solve in a kept process, or in a new one where none is idle."""
    with _LOCK:
        for useless in [process for process in _IDLE if not process.usable()]:
            useless.end()
            _IDLE.remove(useless)
        process = _IDLE.pop() if _IDLE else None
    process = process or Process()
    try:
        said = process.solve(asked)
    except BaseException:
        process.end()
        raise
    with _LOCK:
        if process.usable() and len(_IDLE) < KEPT:
            _IDLE.append(process)
            return said
    process.end()
    return said


@atexit.register
def end_all() -> None:
    """End the idle processes."""
    with _LOCK:
        for process in _IDLE:
            process.end()
        _IDLE.clear()


def _write(pipe: IO[bytes], thing: object) -> None:
    body = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(HEAD.pack(len(body)))
    pipe.write(body)
    pipe.flush()


def _frames(pipe: IO[bytes], limit_s: float) -> Iterator[Ended]:
    """What the process says, until it has been silent or busy for too long."""
    until = time.perf_counter() + limit_s
    while True:
        (size,) = HEAD.unpack(_read(pipe, HEAD.size, until))
        yield pickle.loads(_read(pipe, size, until))  # noqa: S301 - our own process wrote it


def _read(pipe: IO[bytes], size: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        left_s = until - time.perf_counter()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(size - len(found), CHUNK_BYTES))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


Told = Callable[[Any], None]


def run(model: Model, options: dict[str, Any], told: Told | None = None) -> Any:  # noqa: ANN401 - highspy has no types
    """Hand HiGHS the model as arrays and run it.

    Args:
        model: to minimise.
        options: of HiGHS, by name.
        told: hears of each better solution.
    """
    import highspy

    inf = highspy.kHighsInf
    given: Any = highspy.HighsLp()
    given.num_col_, given.col_cost_ = len(model.names), model.cost
    given.col_lower_, given.col_upper_ = _ends(model.bounds, inf)
    if model.whole:
        kinds = highspy.HighsVarType
        given.integrality_ = [kinds.kInteger if w else kinds.kContinuous for w in model.whole]
    given.num_row_ = len(model.sides)
    given.row_lower_, given.row_upper_ = _ends(model.sides, inf)
    matrix = given.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = len(model.names), len(model.sides)
    matrix.start_ = list(itertools.accumulate(map(len, model.terms), initial=0))
    matrix.index_ = [number for row in model.terms for number, _ in row]
    matrix.value_ = [value for row in model.terms for _, value in row]
    highs: Any = highspy.Highs  # it carries no types
    highs = highs()
    for name, value in {"output_flag": False, **options}.items():
        highs.setOptionValue(name, value)
    highs.passModel(given)
    if told is not None:
        highs.setCallback(lambda _kind, _text, said, _into, _data: told(said), None)
        highs.startCallback(highspy.cb.HighsCallbackType.kCallbackMipImprovingSolution)
    highs.run()
    return highs


def _ends(
    pairs: tuple[tuple[float | None, float | None], ...], inf: float
) -> tuple[list[float], list[float]]:
    """Lower and upper ends; none: without end."""
    lower = [-inf if low is None else low for low, _ in pairs]
    return lower, [inf if high is None else high for _, high in pairs]


def _solve(asked: Asked, out: IO[bytes]) -> Ended:
    """Inside the process: solve under a memory limit and say what is found on the way."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(asked.memory_limit_bytes), hard))

    def told(said: Any) -> None:  # noqa: ANN401 - highspy has no types
        _write(out, Ended(
            "running", found=True, objective=float(said.mip_primal_bound),
            bound=float(said.mip_dual_bound), run_s=float(said.running_time),
            values=tuple(map(float, said.mip_solution)),
        ))  # fmt: skip

    highs = run(asked.model, asked.options, told)
    return replace(read_end(highs), values=tuple(highs.getSolution().col_value))


def _watch(parent: int) -> None:
    """End with the parent, also in the middle of a programme."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(0)


def serve(source: IO[bytes], out: IO[bytes]) -> None:
    """Solve one programme after another until the input ends."""
    while head := source.read(HEAD.size):
        asked = pickle.loads(source.read(HEAD.unpack(head)[0]))  # noqa: S301 - our parent wrote it
        _write(out, _solve(asked, out))


def main() -> None:
    """Be the process."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin.buffer, sys.stdout.buffer)
