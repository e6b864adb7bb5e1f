"""A number that says where it comes from, when, and how certain it is."""

from __future__ import annotations

import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field

from hwprofiles.document import Document

Certainty = Literal["datasheet", "measured", "simulated", "derived", "secondary", "assumed"]
Value = TypeVar("Value")


class Sourced(Document, Generic[Value]):
    """One value with its origin; values that contradict it stand beside it in `conflicts`."""

    value: Value
    source: Annotated[str, Field(min_length=8)]
    """Document, page or file, exact enough to find it again."""
    date: datetime.date
    """Publication date of the source, or the day it was read."""
    certainty: Certainty
    note: str = ""
    conflicts: tuple[Conflict[Value], ...] = ()
    """Other sources that say otherwise, kept and shown."""


class Conflict(Document, Generic[Value]):
    """A contradicting value with its own origin."""

    value: Value
    source: Annotated[str, Field(min_length=8)]
    date: datetime.date
    note: str = ""
