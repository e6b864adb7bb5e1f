"""Is the service alive and ready."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz() -> dict[str, str]:
    """Say that catalogues load."""
    from hwprofiles.library import names

    return {"status": "ok" if names("devices") else "no devices"}
