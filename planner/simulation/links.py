"""KV caches on their way from prefill to decode: each sender's link carries one at a time."""

from __future__ import annotations

from collections.abc import Callable

from hwprofiles.errors import MoesaicError
from planner.simulation.clock import ARRIVAL, Clock


class KvLinks:
    """One link a prefill rank; transfers queue in order, the delay lives in the link.

    Args:
        clock: the simulation's clock.
        link_bytes_per_s: bandwidth of each link.
        link_latency_s: time from the last byte's departure to its arrival.
        count: links.
    """

    def __init__(
        self, clock: Clock, link_bytes_per_s: float, link_latency_s: float, count: int
    ) -> None:
        if not link_bytes_per_s > 0 or not link_latency_s >= 0:
            raise MoesaicError(
                "invalid",
                f"a KV link of {link_bytes_per_s} B/s and {link_latency_s} s; bandwidth must be "
                "above zero",
            )
        self._clock = clock
        self.count = count
        self._rate = link_bytes_per_s
        self._latency_s = link_latency_s
        self._free_s: dict[tuple[int, int], float] = {}
        self.moved_bytes = 0.0
        self.busy_s = 0.0
        self.waited_s = 0.0

    def send(self, link: tuple[int, int], size_bytes: float, arrived: Callable[[], None]) -> None:
        """Queue a transfer and call `arrived` when its last byte is there.

        Args:
            link: group and rank of the sender.
            size_bytes: what travels.
            arrived: called then.
        """
        now_s = self._clock.now
        start_s = max(now_s, self._free_s.get(link, 0.0))
        took_s = size_bytes / self._rate
        self._free_s[link] = start_s + took_s
        self.moved_bytes += size_bytes
        self.busy_s += took_s
        self.waited_s += start_s - now_s
        self._clock.call_at(self._free_s[link] + self._latency_s, arrived, ARRIVAL)
