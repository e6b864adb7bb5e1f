"""The one error that every room raises: what was asked, what is known, what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

ErrorKind = Literal["invalid", "unknown_name", "infeasible", "outside_evidence", "internal"]


class MoesaicError(Exception):
    """An answer that cannot be given, with the kind that decides HTTP and exit status.

    Args:
        kind: one of `ErrorKind`; `api/problems.py` maps it to a status.
        message: one sentence that says what was asked, what is known, what would work.
        path: the JSON Pointer of the field at fault, "" where no single field is.
    """

    def __init__(self, kind: ErrorKind, message: str, path: str = "") -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def unknown_name(what: str, name: str, known: Iterable[str], path: str = "") -> MoesaicError:
    """Say that a name is not known, and which known names are nearest.

    >>> str(unknown_name("device", "h100", ["h100-sxm", "zcu102"]))
    "no device 'h100'; did you mean h100-sxm? known: h100-sxm, zcu102"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    return MoesaicError("unknown_name", f"no {what} {name!r}{hint} known: {', '.join(names)}", path)
