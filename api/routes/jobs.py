"""`/v1/jobs`: questions that take longer than a client should wait."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.jobs import JOBS, Job
from api.problems import PROBLEMS

router = APIRouter(prefix="/v1", tags=["jobs"], responses=PROBLEMS)
RETRY_S = 2


def accepted(job: Job) -> JSONResponse:
    """Say where the answer will be: 202, `Location`, `Retry-After`."""
    headers = {"Location": f"/v1/jobs/{job.name}", "Retry-After": str(RETRY_S)}
    return JSONResponse(job.told(), 202, headers=headers)


@router.get("/jobs")
def list_jobs() -> dict[str, list[dict[str, Any]]]:
    """List jobs, newest first, without their answers."""
    return {"jobs": JOBS.listed()}


@router.get("/jobs/{name}")
def show_job(name: str) -> dict[str, Any]:
    """State of a job, how much of it is done, and its answer or problem when it is finished."""
    return JOBS.find(name).told()


@router.delete("/jobs/{name}")
def cancel_job(name: str) -> dict[str, Any]:
    """Cancel a job; it stops at its next step."""
    return JOBS.cancel(name).told()
