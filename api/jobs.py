"""Long questions answered beside the request: states, progress, cancelling, the answer when ready.

Jobs live in this process: a restart forgets them, and the question is asked again.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from api.problems import problem
from hwprofiles.errors import MoesaicError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Seen = Callable[[int, int], None]
Work = Callable[[Seen], Any]
"""Does the work, tells how much of it is done, and gives the answer as plain data."""
MOST_OPEN = 16
"""Jobs that wait or run; one more is refused."""
MOST_KEPT = 64
"""Jobs that are remembered; the oldest finished ones are forgotten."""


class CancelledError(Exception):
    """Raised inside a job that was cancelled."""


@dataclass
class Job:
    """One long question."""

    name: str
    state: State = "queued"
    done_count: int = 0
    total_count: int = 0
    result: Any = None
    error: dict[str, object] | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def told(self) -> dict[str, Any]:
        """What a client sees."""
        said: dict[str, Any] = {"id": self.name, "state": self.state,
                                "done_count": self.done_count,
                                "total_count": self.total_count}  # fmt: skip
        if self.state == "succeeded":
            said["result"] = self.result
        return said if self.error is None else said | {"error": self.error}


class Jobs:
    """All jobs of this process; one runs at a time, in the order they came."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def start(self, work: Work) -> Job:
        """Queue some work.

        Raises:
            MoesaicError: `invalid` when too many wait already.
        """
        job = Job(uuid.uuid4().hex)
        with self._lock:
            waiting = [one for one in self._jobs.values() if one.state in ("queued", "running")]
            if len(waiting) >= MOST_OPEN:
                raise MoesaicError("invalid", f"{MOST_OPEN} jobs wait or run already; come again "
                                   "when some are done, or DELETE one")  # fmt: skip
            finished = [key for key, one in self._jobs.items() if one not in waiting]
            for key in finished[: max(len(self._jobs) - MOST_KEPT + 1, 0)]:
                del self._jobs[key]
            self._jobs[job.name] = job
        threading.Thread(target=self._run, args=(job, work), daemon=True).start()
        return job

    def find(self, name: str) -> Job:
        """A job by its id.

        Raises:
            MoesaicError: `unknown_name`.
        """
        if name not in self._jobs:
            raise MoesaicError("unknown_name", f"no job {name!r}; finished jobs are forgotten when "
                               f"{MOST_KEPT} newer ones have come", "/id")  # fmt: skip
        return self._jobs[name]

    def listed(self) -> list[dict[str, Any]]:
        """Every job without its answer, newest first."""
        told = [job.told() for job in self._jobs.values()]
        return [{k: v for k, v in one.items() if k != "result"} for one in reversed(told)]

    def cancel(self, name: str) -> Job:
        """Ask a job to stop; one that is finished stays as it is."""
        job = self.find(name)
        job.stop.set()
        if job.state == "queued":
            job.state = "cancelled"
        return job

    def _run(self, job: Job, work: Work) -> None:
        def seen(done: int, total: int) -> None:
            job.done_count, job.total_count = done, total
            if job.stop.is_set():
                raise CancelledError

        with self._turn:
            if job.stop.is_set():
                job.state = "cancelled"
                return
            job.state = "running"
            try:
                job.result = work(seen)
                job.state = "succeeded"
            except CancelledError:
                job.state = "cancelled"
            except MoesaicError as error:
                job.error, job.state = problem(error), "failed"
            except Exception as error:  # noqa: BLE001 - a job's fault must not vanish in its thread
                job.error = problem(MoesaicError("internal", str(error)))
                job.state = "failed"


JOBS = Jobs()
"""Of this process."""
