"""Answers of late, kept in memory by what was asked, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """The last answers to what costs time to work out; the oldest leave first.

    Only what follows from its key alone may be kept here. Threads may share one: two that ask the
    same at once both work it out, and find the same.
    """

    def __init__(self, most_bytes: float) -> None:
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._held: OrderedDict[Hashable, tuple[V, float]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V], size: Callable[[V], float]) -> V:
        """The value of a key, made where it is not held.

        Args:
            key: all that the value follows from.
            make: works it out; what it raises is not kept.
            size: bytes of a value; one larger than all the room is not kept.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value = make()
        self._keep(key, value, size(value))
        return value

    def _keep(self, key: Hashable, value: V, size: float) -> None:
        if size > self._most_bytes:
            return
        with self._lock:
            self._held[key] = (value, size)
            while sum(held for _, held in self._held.values()) > self._most_bytes:
                self._held.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._held.clear()
