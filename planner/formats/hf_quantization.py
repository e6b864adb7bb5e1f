"""Stored formats of a checkpoint by bucket, from its quantisation fields and their exceptions.

`quantization_config` (fp8, compressed-tensors, awq, gptq, mxfp4, modelopt) and
`hf_quant_config.json` name one scheme and the modules it leaves out, or one scheme a module. Names
are split into layer and suffix, so that each suffix is compared once, not once a layer.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import dtype

PLAIN = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32",
         "float": "fp32"}  # fmt: skip
ALGORITHMS = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK_SCALES": "fp8_block", "NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4",
    "MXFP4": "mxfp4", "MXFP8": "mxfp8", "W4A8_MXFP4_FP8": "w4a8_mxfp4",
    "W4A16_MXFP4": "w4a16_mxfp4",
    "W4A16_AWQ": "w4a16", "W4A16": "w4a16", "W4A16_GPTQ": "w4a16", "W4A8_AWQ": "w4a8",
    "W8A16": "w8a16", "W8A8_SQ_PER_CHANNEL": "int8", "INT8": "int8",
}  # fmt: skip
"""Names of ModelOpt's algorithms and the formats they store."""

KV_FORMATS = {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4"}
_NAME = re.compile(r"^(?:.*\.)?layers\.(\d+\*?|\*)(?:\.(.*)|(\*))?$")
_OTHER_STACK = re.compile(r"(?:re:\W*)?(?:model\.)?(?:mtp|vision|visual|audio|multi_modal|mm_)")
_FLOAT_8, _BITS_4, _BITS_8 = 8, 4, 8
_FP4_BLOCK = 16
MAX_PATTERN = 300


class Scheme:
    """What one checkpoint stores its modules in.

    Args:
        default: format of quantised modules, none where only listed modules are.
        plain: format of all others.
        ignored: names and patterns of modules left plain.
        listed: module name -> format, where each module says its own.
    """

    def __init__(
        self, default: str | None, plain: str, ignored: Iterable[str], listed: Mapping[str, str]
    ) -> None:
        self.default = default
        self.plain = plain
        self.listed: dict[str, dict[str, str]] = {}
        for name, stored in listed.items():
            layer, suffix = split_name(name)
            self.listed.setdefault(suffix, {})[layer] = stored
        self.ignored: dict[str, set[str]] = {}
        self.expressions: list[re.Pattern[str]] = []
        for pattern in () if listed else ignored:
            # a list of modules says all; what it leaves out is in the scheme beneath it
            if _OTHER_STACK.match(pattern):
                continue
            if pattern.startswith("re:"):
                self.expressions.append(_expression(pattern[3:]))
                continue
            layer, suffix = split_name(pattern)
            self.ignored.setdefault(suffix, set()).add(layer)

    @property
    def uniform(self) -> bool:
        """Whether no module is an exception."""
        return not (self.ignored or self.listed or self.expressions)

    def rules(self, suffix: str) -> tuple[dict[str, str], set[str]]:
        """Formats by layer and layers left plain, for modules of one suffix."""
        formats: dict[str, str] = {}
        for name, layers in self.listed.items():
            if suffix == name or suffix.startswith(f"{name}.") or fnmatch.fnmatchcase(suffix, name):
                formats |= layers
        plain: set[str] = set()
        for name, layer_names in self.ignored.items():
            if matches(name, suffix):
                plain |= layer_names
        if any(one.fullmatch(f"model.layers.0.{suffix}") for one in self.expressions):
            plain.add("*")
        return formats, plain

    def stored(self, layer: int, rules: tuple[dict[str, str], set[str]]) -> str:
        """Format of one layer's module under the rules of its suffix."""
        formats, plain = rules
        text = str(layer)
        if text in formats or "*" in formats:
            return formats.get(text) or formats["*"]
        if "*" in plain or text in plain or any(
            name.endswith("*") and text.startswith(name[:-1]) for name in plain
        ):  # fmt: skip
            return self.plain
        return self.default or self.plain


def split_name(name: str) -> tuple[str, str]:
    """Split a module name or pattern into layer and what follows.

    >>> split_name("model.layers.10.mlp.shared_experts*")
    ('10', 'mlp.shared_experts*')
    >>> split_name("lm_head")
    ('*', 'lm_head')
    """
    found = _NAME.match(name)
    if found is None:
        return "*", name
    return found[1], found[2] or "*"


def matches(pattern: str, suffix: str) -> bool:
    """Whether a pattern without its layer names a module: glob, parent, or one part of its name."""
    if fnmatch.fnmatchcase(suffix, pattern) or suffix.startswith(f"{pattern}."):
        return True
    bare = pattern.removeprefix("*.").removesuffix(".*")
    return bare in suffix.split(".") or (
        bare != pattern and f".{bare}." in f".{suffix}."
    )  # fmt: skip


def _expression(text: str) -> re.Pattern[str]:
    if len(text) > MAX_PATTERN or re.search(r"[)\]][*+{].*[*+{]|\(\?", text):
        raise _bad("ignore", f"the pattern {text[:60]!r} is longer or more nested than is read")
    try:
        return re.compile(text)
    except re.error as error:
        raise _bad("ignore", f"{text[:60]!r} is no regular expression: {error}") from error


def read_scheme(config: Mapping[str, Any], quant: Mapping[str, Any] | None, plain: str) -> Scheme:
    """Read how a checkpoint is quantised.

    Args:
        config: `quantization_config` of config.json, or an empty mapping.
        quant: `hf_quant_config.json`, which wins where both speak.
        plain: format of what is not quantised.

    Raises:
        MoesaicError: `invalid` for malformed fields, `outside_evidence` for schemes not known.
    """
    merged = dict(config)
    if quant is not None:
        inner = quant.get("quantization", quant)
        if not isinstance(inner, dict):
            raise MoesaicError("invalid", "quantization is no object", "/quantization")
        merged |= {key: value for key, value in inner.items() if value is not None}
    if not merged:
        return Scheme(None, plain, (), {})
    listed = _listed(merged)
    default = _default(merged, listed)
    ignored = _names(merged, "exclude_modules", "ignore", "modules_to_not_convert")
    return Scheme(default, plain, ignored, listed)


def _default(merged: Mapping[str, Any], listed: Mapping[str, str]) -> str | None:
    algorithm = merged.get("quant_algo")
    method = merged.get("quant_method")
    if algorithm == "MIXED_PRECISION":
        return _by_method(merged) if method == "fp8" else None
    if isinstance(algorithm, str):
        return _algorithm(algorithm)
    if listed and method is None:
        return None
    return _by_method(merged)


def _by_method(merged: Mapping[str, Any]) -> str | None:
    method = str(merged.get("quant_method", "")).lower().replace("_", "-")
    if method in {"fp8", "fbgemm-fp8"}:
        return "fp8_block" if merged.get("weight_block_size") else "fp8"
    if method in ("mxfp4", "quark-mxfp4"):
        return "mxfp4"
    if method in ("awq", "gptq", "auto-round", "autoround", "intel/auto-round", "gptq-marlin"):
        return _by_bits(_bits(merged.get("bits", merged.get("w_bit"))), "int", None)
    if method in ("compressed-tensors", "modelopt", "") and merged.get("config_groups"):
        return _by_groups(merged["config_groups"])
    if method == "bitsandbytes":
        return "w8a16" if merged.get("load_in_8bit") else "w4a16"
    raise MoesaicError(
        "outside_evidence",
        f"quantisation {method[:40]!r} is not known; known: fp8, mxfp4, awq, gptq, "
        "compressed-tensors, modelopt, bitsandbytes",
        "/quantization_config/quant_method",
    )


def _by_groups(groups: object) -> str:
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    if not isinstance(weights, dict):
        raise _bad("config_groups", "no group says how weights are stored")
    size = weights.get("group_size")
    kind = str(weights.get("type", "int"))
    block = bool(weights.get("block_structure")) or weights.get("strategy") == "block"
    if kind == "float" and weights.get("num_bits") == _FLOAT_8:
        return "fp8_block" if block else "fp8"
    return _by_bits(_bits(weights.get("num_bits")), kind, size)


def _by_bits(bits: int, kind: str, group: object) -> str:
    if bits == _BITS_4 and kind == "float":
        return "nvfp4" if group == _FP4_BLOCK else "mxfp4"
    known = {_BITS_4: "w4a16", _BITS_8: "w8a16"}
    if bits not in known:
        raise MoesaicError(
            "outside_evidence", f"{bits}-bit weights are not known; known: 4, 8",
            "/quantization_config/bits",
        )  # fmt: skip
    return known[bits]


def _bits(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad("bits", f"{str(value)[:40]!r} is no number of bits")
    return value


def _algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise MoesaicError(
            "outside_evidence",
            f"quantisation {name[:40]!r} is not known; known: {', '.join(ALGORITHMS)}",
            "/quantization_config/quant_algo",
        )
    return ALGORITHMS[name]


def _listed(merged: Mapping[str, Any]) -> dict[str, str]:
    layers = merged.get("quantized_layers")
    if layers is None:
        return {}
    if not isinstance(layers, dict):
        raise _bad("quantized_layers", "it is no object")
    return {
        str(name): _algorithm(str(entry.get("quant_algo")))
        for name, entry in layers.items()
        if isinstance(entry, dict)
    }


def _names(merged: Mapping[str, Any], *fields: str) -> list[str]:
    found: list[str] = []
    for field in fields:
        value = merged.get(field) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise _bad(field, "it is not a list of module names")
        found += value
    return found


def _bad(field: str, message: str) -> MoesaicError:
    return MoesaicError("invalid", f"{field}: {message}", f"/quantization_config/{field}")


def kv_format(config: Mapping[str, Any], quant: Mapping[str, Any] | None) -> str | None:
    """Format the checkpoint asks its cache to be kept in, where it says so."""
    inner = (quant or {}).get("quantization", {})
    name = inner.get("kv_cache_quant_algo") if isinstance(inner, dict) else None
    scheme = name or config.get("kv_cache_scheme") or config.get("kv_cache_quant_algo")
    if isinstance(scheme, str):
        return KV_FORMATS.get(scheme)
    if isinstance(scheme, dict):
        return {8: "fp8" if scheme.get("type") == "float" else "int8"}.get(
            scheme.get("num_bits", 0)
        )
    return None


class Mean:
    """Formats of one bucket, weighed by parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, float] = {}

    def add(self, stored: str, parameters: float) -> None:
        """Count parameters kept in one format."""
        self.parameters[stored] = self.parameters.get(stored, 0.0) + parameters

    @property
    def main(self) -> str | None:
        """The format most parameters are in."""
        return max(self.parameters, key=self.parameters.__getitem__, default=None)

    @property
    def mean_bytes(self) -> float | None:
        """Mean bytes a parameter where formats are mixed, else none."""
        if len(self.parameters) < 2:  # noqa: PLR2004
            return None
        total = sum(self.parameters.values())
        return sum(n * dtype(name).weight_bytes for name, n in self.parameters.items()) / total
