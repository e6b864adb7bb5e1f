"""`/v1/models` and `/v1/hardware`: what is known."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.problems import PROBLEMS
from hwprofiles import library

router = APIRouter(prefix="/v1", tags=["catalogue"], responses=PROBLEMS)


@router.get("/hardware")
def list_hardware() -> dict[str, list[str]]:
    """Name every device and cluster of the catalogue."""
    return {"devices": list(library.names("devices")), "clusters": list(library.names("clusters"))}


@router.get("/hardware/{name}")
def show_hardware(name: str) -> dict[str, Any]:
    """Show one device or cluster with the source of every number."""
    if library.canonical(name) in library.names("clusters"):
        return library.load_cluster(name).model_dump(mode="json")
    return library.load_device(name).model_dump(mode="json")
