"""What every document of the project is: frozen, complete, and closed to unknown fields."""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import textwrap
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from hwprofiles.errors import MoesaicError


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe fields by the strings under them: read when a schema is asked, not at start."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _field_docs(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema

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


def _field_docs(model: type) -> dict[str, str]:
    """The string under each field of a model and of those it is derived from."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if part is not object and part.__module__.partition(".")[0] != "pydantic":
            found |= _class_docs(part)
    return found


def _class_docs(part: type) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
    except (OSError, TypeError, SyntaxError):  # made without a file
        return {}
    lines = body.body if isinstance(body, ast.ClassDef) else []
    return {
        field.target.id: inspect.cleandoc(said.value.value)
        for field, said in itertools.pairwise(lines)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
        and isinstance(said.value.value, str)
    }  # fmt: skip


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
