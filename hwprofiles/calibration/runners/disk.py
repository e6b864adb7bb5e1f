"""Reads from the local disk that do not come from the page cache, for every runner."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

from hwprofiles.calibration.runners.base import Prepared, cannot
from hwprofiles.errors import MoesaicError

_BLOCK_BYTES = 2**24


def disk_read(runner: str, size: int, folder: Path | None) -> Prepared:
    """Read a file into memory that was just dropped from the page cache.

    Args:
        runner: who asks, for the message.
        size: bytes to read.
        folder: on the disk that is meant; none: where temporary files go.

    Raises:
        MoesaicError: `outside_evidence` where the system cannot drop a file from its cache.
    """
    if not hasattr(os, "posix_fadvise"):
        raise cannot(runner, "a disk read that does not come from the page cache on this system")
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".calibrate-")
    Path(name).unlink()
    block = os.urandom(min(size, _BLOCK_BYTES))
    for start in range(0, size, len(block)):
        os.write(descriptor, block[: size - start])
    os.fsync(descriptor)
    buffer = ctypes.create_string_buffer(size)

    def drop() -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(descriptor, 0, os.SEEK_SET)

    def read() -> None:
        view, at = memoryview(buffer), 0
        while at < size:
            count = os.readv(descriptor, [view[at:size]])
            if count == 0:
                raise MoesaicError("internal", f"a file of {size} bytes ended after {at}")
            at += count

    return Prepared(read, before=drop, close=lambda: os.close(descriptor))
