"""What every document of the project is: frozen, complete, and closed to unknown fields."""

from __future__ import annotations

import hashlib
import json
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hwprofiles.errors import MoesaicError


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,
    )

    def digest(self) -> str:
        """Name the content: the first 16 hex digits of SHA-256 over canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def parse(cls, data: object, *, what: str = "document") -> Self:
        """Build from plain data, or raise one `MoesaicError` that lists every bad field.

        Raises:
            MoesaicError: kind `invalid`, its path the JSON Pointer of the first bad field.
        """
        return parse_as(cls, data, what=what)


Model = TypeVar("Model", bound=BaseModel)


def parse_as(model: type[Model], data: object, *, what: str = "document") -> Model:
    """Validate `data` as `model`; every complaint goes into one `MoesaicError`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid(error, what) from error


def invalid(error: ValidationError, what: str) -> MoesaicError:
    """Turn pydantic's list of complaints into one sentence with field paths."""
    complaints = [
        (pointer(item["loc"]), item["msg"].removeprefix("Value error, "))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    path, message = complaints[0]
    rest = "".join(f"; {where or '/'}: {text}" for where, text in complaints[1:])
    return MoesaicError("invalid", f"{message}{rest} (in this {what})", path or "/")


def pointer(location: tuple[int | str, ...]) -> str:
    """Write a pydantic location as a JSON Pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)
