"""A foreign config's fields by the role they play, each read with its type and its place in errors.

Configs name the same size in many ways; `hf_families.yaml` lists the names of every role. A size is
never taken from a class default: what a config does not say is an error that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hwprofiles.errors import MoesaicError

MAX_SIZE = 10_000_000
MAX_LAYERS = 4096


class Fields:
    """The fields of one config object, found by role.

    Args:
        data: the plain JSON object.
        roles: role -> names under which configs carry it, the likeliest first.
        pointer: JSON Pointer of this object inside the document.
    """

    def __init__(
        self, data: Mapping[str, Any], roles: Mapping[str, Sequence[str]], pointer: str = ""
    ) -> None:
        self.data = data
        self.roles = roles
        self.pointer = pointer

    def find(self, role: str) -> tuple[str, Any] | None:
        """Field name and value of a role, the first one that is present and not null."""
        for name in self.roles.get(role, (role,)):
            value = self._at(name)
            if value is not None:
                return name, value
        return None

    def _at(self, name: str) -> Any:  # noqa: ANN401 - plain JSON
        if name in self.data:
            return self.data[name]
        node: Any = self.data
        for part in name.split("."):
            if not isinstance(node, dict):
                return None
            node = node.get(part)
        return node

    def error(self, name: str, message: str) -> MoesaicError:
        """An `invalid` error at one field."""
        return MoesaicError("invalid", message, f"{self.pointer}/{name.replace('.', '/')}")

    def size(self, role: str) -> int:
        """A size that must be there.

        Raises:
            MoesaicError: `invalid`, with the field's path, when absent or no whole number.
        """
        found = self.find(role)
        if found is None:
            names = self.roles.get(role, (role,))
            raise self.error(
                names[0],
                f"the config does not say its {role.replace('_', ' ')} (looked for "
                f"{', '.join(names)}); class defaults are never taken as sizes",
            )
        return self.whole(*found)

    def optional(self, role: str, default: int = 0) -> int:
        """A size that may be absent, null or zero."""
        found = self.find(role)
        return default if found is None else self.whole(*found, least=0)

    def maybe(self, role: str) -> int | None:
        """A size, or none where the config does not have it."""
        found = self.find(role)
        return None if found is None else self.whole(*found)

    def whole(self, name: str, value: object, least: int = 1) -> int:
        """Check one whole number within bounds; a list that repeats one number is that number."""
        if isinstance(value, list) and value:
            if any(entry != value[0] for entry in value):
                raise self.error(name, f"{name} differs from layer to layer, which is not read")
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            shown = str(value)[:60]
            raise self.error(name, f"{name} is {shown!r}, not a whole number")
        if not least <= value <= MAX_SIZE:
            raise self.error(name, f"{name} is {str(value)[:40]}; known: {least} to {MAX_SIZE}")
        return value

    def flag(self, role: str, *, default: bool) -> bool:
        """A yes or no."""
        found = self.find(role)
        if found is None:
            return default
        name, value = found
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise self.error(name, f"{name} is {str(value)[:60]!r}, not true or false")

    def number(self, role: str) -> float | None:
        """A finite number, or none."""
        found = self.find(role)
        if found is None:
            return None
        name, value = found
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.error(name, f"{name} is {str(value)[:60]!r}, not a finite number")
        return float(value)

    def each(self, role: str, layers: int) -> list[Any] | None:
        """A list with one entry a layer, or none; the rest describes MTP modules."""
        found = self.find(role)
        if found is None:
            return None
        name, value = found
        if not isinstance(value, list):
            raise self.error(name, f"{name} is not a list of one entry a layer")
        if len(value) < layers:
            raise self.error(name, f"{name} has {len(value)} entries for {layers} layers")
        if any(isinstance(entry, list) for entry in value):
            raise self.error(name, f"{name} holds lists; one word or number a layer is known")
        return value[:layers]

    def indices(self, role: str, layers: int) -> list[int] | None:
        """A list of layer indices, or none."""
        found = self.find(role)
        if found is None:
            return None
        name, value = found
        if isinstance(value, str):  # Step-3 writes "4,5,6"
            value = [int(part) if part.strip().isdigit() else part for part in value.split(",")]
        if not isinstance(value, list):
            raise self.error(name, f"{name} is not a list of layer indices")
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry <= layers:
                raise self.error(name, f"{name} holds {str(entry)[:40]!r}; known: 0 to {layers}")
        return value

    def child(self, name: str) -> Fields | None:
        """The fields of an object inside this one."""
        inner = self.data.get(name)
        if not isinstance(inner, dict):
            return None
        return Fields(inner, self.roles, f"{self.pointer}/{name}")

    def text(self, role: str) -> str | None:
        """A word, or none."""
        found = self.find(role)
        if found is None:
            return None
        name, value = found
        if not isinstance(value, str):
            raise self.error(name, f"{name} is {str(value)[:60]!r}, not text")
        return value
