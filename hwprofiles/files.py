"""Files to plain data and back, refusing what could mean two things or harm.

YAML or JSON in and out; duplicate keys, NaN, aliases, deep nesting and huge files are errors.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from hwprofiles.errors import MoesaicError

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 40
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):  # type: ignore[misc] # the C loader has no stub of its own
    """YAML's safe subset without duplicate keys."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:  # noqa: ANN401
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key_node, yaml.ScalarNode):
            raise MoesaicError("invalid", "a key must be a plain word, not a list or mapping")
        if key in seen:
            line = key_node.start_mark.line + 1
            raise MoesaicError("invalid", f"key {key!r} stands twice, again on line {line}")
        seen.add(key)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True)
        for k, v in node.value
    }


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_document(path: Path) -> Any:  # noqa: ANN401 - plain data of any shape
    """Read one YAML or JSON file as plain data.

    Raises:
        MoesaicError: kind `invalid`: missing, too large, malformed, duplicate keys, not finite.
    """
    return parse_text(read_text(path), str(path), as_json=path.suffix == ".json")


def read_text(path: Path) -> str:
    """Read a text file of at most `MAX_BYTES`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MoesaicError("invalid", f"{path} has {size} bytes; at most {MAX_BYTES} are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MoesaicError("invalid", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MoesaicError("invalid", f"{path} is not UTF-8 text: {error.reason}") from error


def parse_text(text: str, name: str, *, as_json: bool) -> Any:  # noqa: ANN401 - plain data
    """Parse YAML or JSON text; `name` is what errors call it."""
    try:
        data = _load_json(text) if as_json else _load_yaml(text)
    except MoesaicError as error:
        raise MoesaicError(error.kind, f"{name}: {error.message}", error.path) from error
    except RecursionError as error:
        raise MoesaicError("invalid", f"{name}: nested deeper than {MAX_DEPTH} levels") from error
    except (ValueError, yaml.YAMLError) as error:
        raise MoesaicError("invalid", f"{name}: {' '.join(str(error).split())}") from error
    _check(data, name)
    return data


def _load_yaml(text: str) -> Any:  # noqa: ANN401 - plain data
    """Load YAML without aliases: a short text with nested ones can stand for terabytes."""
    if "*" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, _Loader)):
        raise MoesaicError("invalid", "YAML aliases are not accepted; write the value out")
    return yaml.load(text, _StrictLoader)  # noqa: S506 - a safe loader


def _load_json(text: str) -> Any:  # noqa: ANN401 - plain data
    return json.loads(
        text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise MoesaicError("invalid", f"key {key!r} stands twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise MoesaicError("invalid", f"{name} is no number here")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise MoesaicError("invalid", f"an integer of {len(digits)} digits is out of range")
    return int(digits)


def _check(data: object, name: str) -> None:
    """Walk without recursion: depth, finiteness and absurd integers."""
    stack: list[tuple[object, int]] = [(data, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise MoesaicError("invalid", f"{name}: nested deeper than {MAX_DEPTH} levels")
        _check_number(node, name)
        if isinstance(node, dict):
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)


def _check_number(node: object, name: str) -> None:
    if isinstance(node, float) and not math.isfinite(node):
        raise MoesaicError("invalid", f"{name}: {node} is no finite number")
    if isinstance(node, int) and abs(node) >= 10**MAX_DIGITS:
        raise MoesaicError(
            "invalid", f"{name}: an integer of more than {MAX_DIGITS} digits is out of range"
        )


def apply_overrides(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Apply `--set path=value` to plain data; the value is read as YAML.

    >>> apply_overrides({"workload": {"isl": 1}}, ("workload.isl=4096",))
    {'workload': {'isl': 4096}}
    >>> apply_overrides({"classes": [{"name": "chat"}]}, ("classes.0.name=code",))
    {'classes': [{'name': 'code'}]}

    Raises:
        MoesaicError: kind `invalid` when the text has no "=" or the path crosses a value.
    """
    result: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise MoesaicError("invalid", f"--set {override!r}: write it like workload.isl=4096")
        *parents, last = path.strip().split(".")
        node: Any = result
        for name in parents:
            node = _inside(node, name, override)
        key = _key(node, last, override)
        node[key] = parse_text(text, f"--set {override}", as_json=False)
    return result


def _inside(node: Any, name: str, override: str) -> Any:  # noqa: ANN401 - plain data
    """What a step of an override's path holds; a missing field is begun."""
    key = _key(node, name, override)
    child = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    if isinstance(child, str):  # a catalogue name, of which one field changes
        child = node[key] = {"base": child}
    if not isinstance(child, dict | list):
        raise MoesaicError("invalid", f"--set {override!r}: {name} holds no fields")
    return child


def _key(node: Any, name: str, override: str) -> Any:  # noqa: ANN401 - plain data
    """A field's name, or an entry's number in a list."""
    if isinstance(node, dict):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise MoesaicError(
            "invalid", f"--set {override!r}: {name} is no entry of a list of {len(node)}"
        )
    return int(name)


def dump(data: object, form: str) -> str:
    """Write plain data as `json`, `jsonl` (one line) or `yaml`."""
    if form == "yaml":
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if form == "jsonl":
        return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in.

    Raises:
        MoesaicError: `internal`, in one sentence, where that is not allowed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoesaicError("internal", f"cannot make {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary neighbour, then a rename.

    Raises:
        MoesaicError: kind `internal` when the folder is missing or the disk is full.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MoesaicError("internal", f"cannot write {path}: {error.strerror}") from error
