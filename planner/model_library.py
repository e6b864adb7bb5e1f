"""Find a model by name, by a config file or folder, or take it inline.

`planner/models/*.yaml` holds one model each: its names, where its numbers come from, and either a
`config` as Hugging Face writes it or a `model` document.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from hwprofiles.document import Document
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.files import MAX_DEPTH, MAX_DIGITS, read_document, read_text
from hwprofiles.library import canonical
from planner.compression.exchange_order import as_dcca
from planner.formats.hf_config import read_config
from planner.moe_model import MoeModel

ROOT = Path(__file__).parent / "models"


class ModelEntry(Document):
    """One file of the catalogue."""

    schema_version: int = 1
    name: str
    title: str
    aliases: tuple[str, ...] = ()
    source: str
    date: str
    note: str = ""
    config: dict[str, Any] | None = None
    quant: dict[str, Any] | None = None
    model: dict[str, Any] | None = None


@cache
def entries() -> dict[str, ModelEntry]:
    """Every model of the catalogue by name."""
    return {path.stem: _entry(path.stem) for path in sorted(ROOT.glob("*.yaml"))}


@cache
def _entry(name: str) -> ModelEntry:
    path = ROOT / f"{name}.yaml"
    return ModelEntry.parse(read_document(path), what=path.name)


def _wanted(name: str) -> str | None:
    """The catalogue's name for a way to write it; a name itself needs no other file read."""
    if name in _names():
        return name
    return _aliases().get(canonical(name)) or _aliases().get(canonical(name.rpartition("/")[2]))


@cache
def _names() -> frozenset[str]:
    return frozenset(path.stem for path in ROOT.glob("*.yaml"))


def model_names() -> tuple[str, ...]:
    """Names of the catalogue's models."""
    return tuple(entries())


@cache
def _aliases() -> dict[str, str]:
    """Every way to write a model's name, canonical, to its name."""
    found: dict[str, str] = {}
    for name, entry in entries().items():
        for alias in (name, entry.title, *entry.aliases):
            found[canonical(alias)] = name
            found[canonical(alias.rpartition("/")[2])] = name
    return found


@cache
def load_named(name: str) -> MoeModel:
    """Load a model of the catalogue by name, title or alias ("deepseek-ai/DeepSeek-V3").

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    wanted = _wanted(name)
    if wanted is None:
        raise unknown_name("model", name, entries(), "/model")
    entry = _entry(wanted)
    sources = (f"{entry.source} ({entry.date})",)
    if entry.model is not None:
        data = {"name": entry.title, "sources": sources, **entry.model}
        return MoeModel.parse(data, what=f"model {wanted}")
    model = read_config(entry.config or {}, name=entry.title, quant=entry.quant)
    return model.model_copy(update={"sources": sources})


def load_model(source: str | Path | dict[str, Any], *, assume: bool = False) -> MoeModel:
    """Load a model by name, or from a `config.json` or a folder that holds one.

    Args:
        source: a catalogue name or alias, a file, or a folder; `hf_quant_config.json` and a
            safetensors index beside a config are read too; or a model inline.
        assume: read an unknown model_type by its field names.

    Raises:
        MoesaicError: `unknown_name`, `invalid` or `outside_evidence`.
    """
    if isinstance(source, dict):
        return resolve_model(source, assume=assume)
    text = str(source)
    looks_like_path = text.endswith((".json", ".yaml", ".yml")) or text.startswith((".", "/", "~"))
    path = Path(text).expanduser()
    if isinstance(source, str) and not looks_like_path and canonical(text) in _aliases():
        return load_named(text)
    if looks_like_path or path.is_dir():
        return read_model_file(path, assume=assume)
    return load_named(text)


def read_model(path: Path) -> MoeModel:
    """Read a model document, a config, or a folder that holds one."""
    return read_model_file(path)


def read_model_file(path: Path, *, assume: bool = False) -> MoeModel:
    """Read a config, a model document or a folder with a config."""
    config = path / "config.json" if path.is_dir() else path
    if config.suffix in {".yaml", ".yml"}:
        document = read_document(config)
        if not isinstance(document, dict):
            raise MoesaicError("invalid", f"{config} is no model document and no config")
        return resolve_model(document, assume=assume)
    data = read_json(config)
    if isinstance(data, dict) and "kinds" in data:
        return MoeModel.parse(data, what="model")
    beside = config.parent / "hf_quant_config.json"
    quant = read_json(beside) if config.name == "config.json" and beside.is_file() else None
    name = config.parent.name.replace("--", "/") if config.name == "config.json" else config.stem
    model = read_config(data, name=name or "model", quant=quant, assume=assume)
    return model.model_copy(update={"sources": (str(config),)})


def resolve_model(data: object, *, assume: bool = False) -> MoeModel:
    """Take a model, a catalogue name, a model document or a config, inline; never a path.

    Questions over REST come through here, and must not read the server's files.
    """
    if isinstance(data, MoeModel):
        return data
    if isinstance(data, str):
        return load_named(data)
    if isinstance(data, dict) and "kinds" in data:
        return MoeModel.parse(data, what="model")
    if isinstance(data, dict) and "base" in data:
        return _changed(data, assume=assume)
    if isinstance(data, dict):
        return read_config(data, name=str(data.get("name", "inline")), assume=assume)
    raise MoesaicError("invalid", "a model is a name, a config or a model document", "/model")


def _changed(data: dict[str, Any], *, assume: bool) -> MoeModel:
    """Read `{base: NAME, dcca_ratio: r, …}`: a model with fields changed, or in DCCA order.

    >>> resolve_model({"base": "bigmac-gpt3-xl-fine-grained", "dcca_ratio": 0.25}).moe.latent
    512
    """
    fields = {name: value for name, value in data.items() if name not in ("base", "dcca_ratio")}
    model = resolve_model(data["base"], assume=assume)
    if fields:
        model = MoeModel.parse({**model.model_dump(mode="json"), **fields}, what="model")
    ratio = data.get("dcca_ratio")
    if ratio is None:
        return model
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise MoesaicError("invalid", f"dcca_ratio {ratio!r} is no number", "/model/dcca_ratio")
    return as_dcca(model, ratio)


def read_json(path: Path) -> Any:  # noqa: ANN401 - plain data of any shape
    """Read a config as JSON: duplicate keys, NaN, depth and size are refused."""
    return parse_config(read_text(path), str(path))


def parse_config(text: str, name: str) -> Any:  # noqa: ANN401 - plain data of any shape
    """Parse a config's text.

    Python writes `Infinity` into configs (Nemotron-H's `time_step_limit`), so that one constant is
    read; a size that is infinite is refused where it is used.

    Raises:
        MoesaicError: `invalid`, with the file and what is wrong with it.
    """
    try:
        data = json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer
        )
    except MoesaicError as error:
        raise MoesaicError(error.kind, f"{name}: {error.message}", error.path) from error
    except (ValueError, RecursionError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise MoesaicError("invalid", f"{name}: {problem}") from error
    _check_depth(data, name)
    return data


def _constant(name: str) -> float:
    if name == "NaN":
        raise MoesaicError("invalid", "NaN is no number here")
    return math.inf


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise MoesaicError("invalid", f"an integer of {len(digits)} digits is out of range")
    return int(digits)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MoesaicError("invalid", f"key {twice[:80]!r} stands twice")
    return found


def _check_depth(data: object, name: str) -> None:
    """Walk level by level, containers only."""
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise MoesaicError("invalid", f"{name}: nested deeper than {MAX_DEPTH} levels")
