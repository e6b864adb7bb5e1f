"""The house rules that a machine can check: units in names, file length, docstrings, versions."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "hwprofiles", "planner", "reports")
LONGEST = 400
SUFFIXES = (
    "_s", "_bytes", "_bytes_per_s", "_flop_per_s", "_flops", "_ratio", "_share", "_fraction",
    "_count", "_w",
    "_j", "_hz", "_tokens", "_percent", "_tokens_per_s", "_per_s", "_j_per_token", "_ms",
    "_tokens_per_s_per_device", "_tokens_per_s_per_user", "_flop_per_s_per_device",
    "_per_token", "_bits", "_rate", "_usd",
)  # fmt: skip
PLAIN_FIELDS: dict[str, str] = {
    "Sourced.value": "its unit stands in the name of the field that holds it",
    "Conflict.value": "its unit stands in the name of the field that holds it",
    "Band.low": "three points of a ratio",
    "Band.typical": "three points of a ratio",
    "Band.high": "three points of a ratio",
    "EfficiencyCurve.half_rows": "a count of matrix rows",
    "LayerPlacement.max_over_mean_before": "a ratio, the field's own name",
    "LayerPlacement.max_over_mean": "a ratio, the field's own name",
    "LayerPlacement.bound": "a ratio, as max_over_mean",
    "LayerTraffic.crossing": "visits a token, or a share of pairs, as the measure says",
    "LayerTraffic.crossing_before": "as LayerTraffic.crossing",
    "LayerTraffic.bound": "as LayerTraffic.crossing",
    "LayerTraffic.greedy": "as LayerTraffic.crossing",
    "LayerTraffic.greedy_max_over_mean": "a ratio, the field's own name",
    "Moves.max_over_mean_sum": "ratios, summed over layers",
    "Moves.bound": "as Moves.max_over_mean_sum",
    "PlacementQuestion.balance_slack": "a share",
    "PlacementQuestion.traffic_weight": "busiest over mean for each crossing",
    "PlacementQuestion.sources": "counts of token-expert pairs, or shares of them",
    "Greedy.max_over_mean": "a ratio, the field's own name",
    "PlacementQuestion.loads": "counts of tokens, or shares of them",
    "PlacementQuestion.speeds": "relative speeds",
    "BitsQuestion.alpha": "an exponent",
    "BitsQuestion.beta": "an exponent",
    "BitsQuestion.gamma": "an exponent",
    "BitsAnswer.objective": "weighed output errors, in the unit of the calibration",
    "BitsAnswer.bound": "as BitsAnswer.objective",
    "PruneQuestion.coverage": "a share",
    "PruneAnswer.coverage": "shares",
    "PruneAnswer.objective": "shares of layers, summed",
    "PruneAnswer.bound": "as PruneAnswer.objective",
    "QualityRow.at": "the number of the setting that the row names",
    "QualityRow.value": "its unit stands in the field `unit`",
    "Quality.value": "its unit stands in the field `unit`",
    "Quality.between": "settings, as QualityRow.at",
    "OpenLoad.burstiness": "a shape parameter",
    "RampLoad.request_rates": "requests per second, the field's own word",
    "EngineSettings.mtp_acceptance": "a probability",
    "Figure.typical": "its unit stands in the name of the field that holds the figure",
    "Figure.low": "as Figure.typical",
    "Figure.high": "as Figure.typical",
    "Figure.mean_low": "as Figure.typical",
    "Figure.mean_high": "as Figure.typical",
    "PlacementBody.score": "counts of tokens, or shares of them",
    "FactorRow.routing_weight_sum": "routing weights, shares of one a token, summed",
    "FactorRow.quant_loss": "norms of output error, in the unit of the calibration",
    "MemoryFit.buckets": "bytes by bucket, each key says so",
    "Estimate.typical": "its unit stands in the name of the field that holds the estimate",
    "Estimate.low": "as Estimate.typical",
    "Estimate.high": "as Estimate.typical",
    "Binding.value": "the unit of the limit it names",
    "Binding.without_objective": "as the objective of the answer",
    "Binding.one_percent_more_value": "as Binding.value",
    "Binding.one_percent_more_objective": "as the objective of the answer",
    "Placement.objective_value": "busiest over mean, what crosses, or their weighted sum",
    "Choices.block_order": "ratios of DCCA",
    "ParetoPlan.objective_value": "as Plan.objective_value",
    "Plan.objective_value": "what the objective counts: tokens/s, devices, dollars, seconds",
    "FleetPlan.objective_value": "share, devices, dollars an hour or watts, by aim",
    "Limits.usd_per_hour": "dollars an hour",
    "FleetLimits.usd_per_hour": "dollars an hour",
    "FleetPlan.usd_per_hour": "dollars an hour",
    "FleetPlan.usd_per_million_tokens": "dollars for a million output tokens",
    "Proof.objective": "what the objective counts: requests per second, devices, shares, dollars",
    "Proof.bound": "as Proof.objective",
    "Point.mtp_acceptance": "a probability",
    "Choices.mtp_acceptance": "a probability",
    "_Policy.capacity_factor": "a ratio, the field's own name",
    "ZipfRouting.alpha": "an exponent",
    "OffloadFit.popularity_exponent": "an exponent",
    "QuantileLengths.isl": "levels to tokens, the field's own word",
    "QuantileLengths.osl": "as QuantileLengths.isl",
    "PaperFigure.value": "its unit stands in the field `unit`",
    "DirichletRouting.alpha": "a concentration",
    "MeasuredRouting.counts": "counts of tokens, or shares of them",
}
"""Floats without a unit in their name, each with the reason."""
PLAIN_COLUMNS: dict[str, str] = {
    "COMPARED": "the unit of the row's target",
    "LAYOUT": "parallel degrees, counts of devices",
    "POINT": "parallel degrees and counts of sequences, tokens, devices",
    "COUNTER": "the unit stands in the counter's name",
    "PASS": "counts of sequences and tokens",
    "SERVING": "quantity_unit_side: ttft_s_low, tpot_s_high; the rest are counts",
    "CANDIDATE": "SERVING and the devices of a machine",
    "SHEET": "KERNEL_ROW and how often it runs",
    "SERVING_MEASUREMENT": "isl and osl, the field's own words; the rest says its unit",
    "MEASUREMENT": "KERNEL_ROW and what was measured of it",
    "SCHEMA": "KERNEL_ROW and the exponent of a load",
    "KERNEL_ROW": "sizes of a kernel by the field's own words (m, n, k, isl ...), all counts",
}
"""Tables whose float columns are words of the field."""


def modules() -> Iterator[types.ModuleType]:
    """Import every module of the four packages."""
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield root
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            yield importlib.import_module(found.name)


def generic(model: type[BaseModel]) -> dict[str, typing.Any]:
    """What a generic model was made from and with."""
    return getattr(model, "__pydantic_generic_metadata__", {"args": (), "origin": None})


def holds_float(annotation: object) -> bool:
    """Whether a type has a float anywhere a value can sit."""
    if annotation is float:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(holds_float(argument) for argument in generic(annotation)["args"])
    return any(holds_float(argument) for argument in typing.get_args(annotation))


def documents() -> dict[str, type[BaseModel]]:
    """Every pydantic model defined in the packages, by qualified name."""
    found = {}
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseModel):
                origin = generic(value)["origin"] or value
                if origin.__module__.split(".")[0] in PACKAGES:
                    found[f"{origin.__module__}.{origin.__qualname__}"] = origin
    return found


def unnamed_units(model: type[BaseModel]) -> list[str]:
    """Float fields of a model whose name ends in no unit and which no reason excuses."""
    return [
        f"{model.__qualname__}.{name}"
        for name, field in model.model_fields.items()
        if holds_float(field.annotation)
        and not f"_{name}".endswith(SUFFIXES)
        and f"{model.__qualname__}.{name}" not in PLAIN_FIELDS
        and not any(name in getattr(base, "model_fields", {}) for base in model.__bases__)
    ]


def test_the_check_sees_a_float_without_a_unit() -> None:
    class Careless(BaseModel):
        power: float
        speeds: dict[str, tuple[float, ...]]
        time_s: float | None
        name: str

    names = unnamed_units(Careless)
    assert [name.rsplit(".", 1)[1] for name in names] == ["power", "speeds"]


def test_every_float_field_says_its_unit() -> None:
    found = documents()
    assert len(found) > 10
    assert not [name for model in found.values() for name in unnamed_units(model)]


def test_every_excuse_is_still_needed() -> None:
    known = {
        f"{model.__qualname__}.{name}"
        for model in documents().values()
        for name in model.model_fields
    }
    assert set(PLAIN_FIELDS) <= known


def test_every_float_column_says_its_unit() -> None:
    bad = []
    for module in modules():
        for name, schema in vars(module).items():
            if not name.isupper() or not isinstance(schema, dict) or name in PLAIN_COLUMNS:
                continue
            bad += [
                f"{module.__name__}.{name}.{column}"
                for column, kind in schema.items()
                if kind == pl.Float64 and not f"_{column}".endswith(SUFFIXES)
            ]
    assert not bad


def sources() -> list[Path]:
    """Python files of the project."""
    folders = [ROOT / name for name in (*PACKAGES, "tests")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def tracked() -> list[Path]:
    """Files under version control; all files outside hidden folders where there is none."""
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0 and listing.stdout:
        return [path for name in listing.stdout.splitlines() if (path := ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and p.relative_to(ROOT).parts[0][0] != "."]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST, f"{path.name} is longer than {LONGEST} lines"
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, f"{path.name} starts without the sentence it exists for"


FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|home|root|opt|Users|mnt)/"  # paths of one machine
    r"|files\.pythonhosted\.org|pypi\.org/simple|index-url|artifactory|test\.pypi"  # package hosts
)


def test_nothing_names_a_machine_or_a_package_host() -> None:
    bad = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        bad += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in FOREIGN.finditer(text)]
    assert not bad


def test_version_is_the_changelogs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]
    assert importlib.metadata.version("moesaic") == project["version"]
