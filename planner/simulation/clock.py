"""SimPy's clock with events at absolute times, so that skipping events cannot shift a bit."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import simpy
from simpy.events import Event, EventPriority

ARRIVAL = 0
"""Priority of arrivals and transfers: at equal times they come before an iteration's end."""


class Clock(simpy.Environment):
    """A SimPy environment that also takes plain calls at absolute times.

    `timeout(t - now)` fires at `now + (t - now)`, which can differ from `t` in the last bit; a run
    that skips uneventful iterations would then drift from one that does not.
    """

    priority = ARRIVAL
    """Priority of the call that runs now."""

    def call_at(self, time_s: float, call: Callable[[], None], priority: int = ARRIVAL) -> None:
        """Run `call` at `time_s`; equal times go by priority, then by order of booking."""
        event = Event(self)

        def run(_: Event) -> None:
            self.priority = priority
            call()

        event._ok = True  # noqa: SLF001 - how SimPy's own Timeout triggers itself
        event._value = None  # noqa: SLF001
        event.callbacks.append(run)
        heapq.heappush(self._queue, (time_s, EventPriority(priority), next(self._eid), event))
