"""Find models by name among the shipped documents, or take them inline."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hwprofiles.document import parse_as
from hwprofiles.errors import MoesaicError, unknown_name
from hwprofiles.files import read_document
from hwprofiles.library import canonical
from planner.moe_model import MoeModel

FOLDER = Path(__file__).parent / "models"


@cache
def model_names() -> tuple[str, ...]:
    """Names of the shipped models."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def load_model(name: str) -> MoeModel:
    """Load a shipped model by name; an owner before a slash is passed over.

    Raises:
        MoesaicError: `unknown_name`, with the nearest known names.
    """
    wanted = canonical(name.rpartition("/")[2])
    if wanted not in model_names():
        raise unknown_name("model", name, model_names())
    return parse_as(MoeModel, read_document(FOLDER / f"{wanted}.yaml"), what=f"model {wanted}")


def resolve_model(data: object) -> MoeModel:
    """Take a name or an inline model document."""
    if isinstance(data, MoeModel):
        return data
    if isinstance(data, str):
        return load_model(data)
    return parse_as(MoeModel, data, what="model")


def read_model(path: Path) -> MoeModel:
    """Read a model document from a file.

    Raises:
        MoesaicError: `invalid` when it is none.
    """
    data = read_document(path)
    if isinstance(data, dict) and "kinds" in data:
        return parse_as(MoeModel, data, what=f"model {path.name}")
    raise MoesaicError("invalid", f"{path} is no model document; it needs name, kinds, layers")
