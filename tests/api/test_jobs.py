"""Jobs: queued, running, finished, failed, cancelled, and the answer of the synchronous way."""

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api import jobs
from api.app import create_app
from api.jobs import Jobs
from api.routes import plans
from hwprofiles.errors import MoesaicError
from planner.pipeline import answer, read_question

FIRST = Path(__file__).parents[1] / "scenarios" / "design-pangu-800i.yaml"
FEW = ("design.hidden=[4096]", "design.experts=[64]")


def finished(job, state):
    for _ in range(600):
        if job.state == state:
            return job
        time.sleep(0.05)
    raise AssertionError(f"{job.state}, not {state}")


def test_a_long_design_is_a_job_with_the_same_answer(monkeypatch):
    monkeypatch.setattr(plans, "MOST_DESIGNS", 1)
    asked = read_question(FIRST, FEW)
    with TestClient(create_app()) as client:
        told = client.post("/v1/plans", json=asked.model_dump(mode="json"))
        assert told.status_code == 202
        assert int(told.headers["Retry-After"]) > 0
        place = told.headers["Location"]
        finished(jobs.JOBS.find(told.json()["id"]), "succeeded")
        found = client.get(place).json()
        assert (found["done_count"], found["total_count"]) == (3, 3)
        assert found["result"] == answer(asked).model_dump(mode="json")
        assert any(one["id"] == found["id"] for one in client.get("/v1/jobs").json()["jobs"])
        assert client.get("/v1/jobs/nonsense").status_code == 422


def test_a_design_that_is_infeasible_fails_with_its_problem(monkeypatch):
    monkeypatch.setattr(plans, "MOST_DESIGNS", 1)
    body = read_question(FIRST, (*FEW, "limits.tpot_s=1 ms")).model_dump(mode="json")
    with TestClient(create_app()) as client:
        name = client.post("/v1/plans", json=body).json()["id"]
        job = finished(jobs.JOBS.find(name), "failed")
    assert job.error["type"] == "urn:moesaic:problem:infeasible"


def test_cancelling_stops_a_running_job_and_one_that_waits():
    def endless(seen):
        while True:
            time.sleep(0.01)
            seen(1, 2)

    own = Jobs()
    first, second = own.start(endless), own.start(endless)
    finished(first, "running")
    assert own.cancel(second.name).state == "cancelled"
    own.cancel(first.name)
    finished(first, "cancelled")
    assert [one["state"] for one in own.listed()] == ["cancelled", "cancelled"]


def test_too_many_jobs_are_refused_and_faults_are_kept():
    own = Jobs()
    broken = finished(own.start(lambda _: 1 / 0), "failed")
    assert broken.error["type"] == "urn:moesaic:problem:internal"

    def waits(seen):
        while True:
            time.sleep(0.01)
            seen(0, 1)

    many = [own.start(waits) for _ in range(jobs.MOST_OPEN)]
    with pytest.raises(MoesaicError, match="jobs wait or run"):
        own.start(waits)
    for job in many:
        own.cancel(job.name)
    for job in many:
        finished(job, "cancelled")
