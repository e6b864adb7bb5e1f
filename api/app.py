"""The REST service: the verbs of the shell as JSON over HTTP, errors as RFC 9457 problems."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from api.problems import http_status, problem
from api.routes import health, jobs, layouts, models, plans, simulations
from hwprofiles.document import pointer
from hwprofiles.errors import MoesaicError

PROBLEM_JSON = "application/problem+json"


def create_app() -> FastAPI:
    """Build the service with all routes; no answer depends on what was asked before."""
    app = FastAPI(
        title="moesaic", version=version("moesaic"),
        description="Performance models and plans for Mixture-of-Experts models.",
    )  # fmt: skip
    for routes in (plans, jobs, layouts, models, simulations, health):
        app.include_router(routes.router)
    app.add_exception_handler(MoesaicError, _say_problem)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    return app


async def _say_problem(_: Request, error: Exception) -> JSONResponse:
    known = error if isinstance(error, MoesaicError) else MoesaicError("internal", str(error))
    return JSONResponse(problem(known), http_status(known), media_type=PROBLEM_JSON)


async def _say_invalid(_: Request, error: Exception) -> JSONResponse:
    items = error.errors() if isinstance(error, RequestValidationError) else []
    message = str(items[0]["msg"]) if items else "the body is not valid"
    place = pointer(tuple(items[0]["loc"])[1:]) if items else ""
    known = MoesaicError("invalid", message, place or "/")
    return await _say_problem(_, known)
