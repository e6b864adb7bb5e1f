"""`/v1/models` and `/v1/hardware`: what is known."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.problems import PROBLEMS
from hwprofiles import library
from planner.model_facts import model_facts
from planner.model_library import load_named, model_names
from planner.parameters import count_parameters

router = APIRouter(prefix="/v1", tags=["catalogue"], responses=PROBLEMS)


@router.get("/models")
def list_models() -> dict[str, list[str]]:
    """Name every model of the catalogue."""
    return {"models": list(model_names())}


@router.get("/models/{name}")
def show_model(name: str) -> dict[str, Any]:
    """Show one model: what `models show` says, its document, its parameters by bucket."""
    model = load_named(name)
    document = {"model": model.model_dump(mode="json")}
    return model_facts(model) | document | {"parameters": count_parameters(model).model_dump()}


@router.get("/hardware")
def list_hardware() -> dict[str, list[str]]:
    """Name every device and cluster of the catalogue."""
    return {"devices": list(library.names("devices")), "clusters": list(library.names("clusters"))}


@router.get("/hardware/{name}")
def show_hardware(name: str) -> dict[str, Any]:
    """Show one device or cluster with the source of every number."""
    return library.load_hardware(name).model_dump(mode="json")
