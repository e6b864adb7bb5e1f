"""Names as published tables write them, read as the names of this project."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from hwprofiles.errors import MoesaicError
from hwprofiles.files import read_document
from hwprofiles.library import load_device

FILE = Path(__file__).with_name("naming.yaml")
VERSION = re.compile(r"v?(\d+\.\d+(?:\.\d+)?(?:(?:rc|\.post|\.?dev)\d+)*)")
TWIN = re.compile(r"[,(]\s*(?:or\b|x\d+|page)", re.IGNORECASE)


@cache
def _patterns(kind: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    rows = read_document(FILE)[kind]
    return tuple((re.compile(row["pattern"]), row["name"]) for row in rows)


def _first(kind: str, text: str, what: str) -> str:
    lower = text.strip().lower()
    for pattern, name in _patterns(kind):
        if pattern.search(lower):
            return name
    raise MoesaicError("unknown_name", f"{what} {text!r} is not known")


@cache
def model_name(text: str) -> str:
    """The config a model text stands for.

    >>> model_name("nvidia/DeepSeek-R1-NVFP4")
    'deepseek-ai/DeepSeek-R1'

    Raises:
        MoesaicError: `unknown_name`.
    """
    return _first("models", text, "model")


@cache
def device_name(text: str) -> str:
    """The device a hardware text stands for.

    Raises:
        MoesaicError: `unknown_name`, or `invalid` when the text names several machines.
    """
    if not text:
        raise MoesaicError("invalid", "no hardware stated")
    if TWIN.search(text):
        raise MoesaicError("invalid", f"hardware {text!r} names several machines")
    try:
        return load_device(text).name
    except MoesaicError as error:
        raise MoesaicError("unknown_name", f"device {text!r} is not in the catalogue") from error


@cache
def precision_name(text: str) -> str:
    """The numeric format a precision text stands for.

    Raises:
        MoesaicError: `unknown_name`.
    """
    return _first("precisions", text, "precision")


@cache
def engine_name(text: str) -> tuple[str, str]:
    """Engine and version of a framework text; the version is empty where none is stated.

    >>> engine_name("trt release:1.2.0rc2")
    ('trtllm', '1.2.0rc2')

    Raises:
        MoesaicError: `unknown_name`.
    """
    found = VERSION.search(text)
    return _first("engines", text, "engine"), found.group(1) if found else ""
