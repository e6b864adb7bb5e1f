"""The only table from an error's kind to HTTP status and exit status."""

from __future__ import annotations

from hwprofiles.errors import ErrorKind, MoesaicError

STATUS: dict[ErrorKind, tuple[int, int, str]] = {
    "invalid": (422, 2, "The question is not valid"),
    "unknown_name": (422, 2, "A name is not known"),
    "infeasible": (409, 3, "No answer meets every limit"),
    "outside_evidence": (422, 4, "The evidence does not reach this far"),
    "internal": (500, 1, "Something failed on our side"),
}
"""Kind: HTTP status, exit status, title."""


def http_status(error: MoesaicError) -> int:
    """HTTP status of an error."""
    return STATUS[error.kind][0]


def exit_status(error: MoesaicError) -> int:
    """Exit status of an error."""
    return STATUS[error.kind][1]


def problem(error: MoesaicError) -> dict[str, object]:
    """RFC 9457 body of an error, with a JSON Pointer to the field at fault."""
    status, _, title = STATUS[error.kind]
    body: dict[str, object] = {
        "type": f"urn:moesaic:problem:{error.kind}",
        "title": title,
        "status": status,
        "detail": error.message,
    }
    if error.path:
        body["errors"] = [{"pointer": error.path, "detail": error.message}]
    return body


PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"description": title, "content": {"application/problem+json": {}}}
    for status, _, title in STATUS.values()
}
"""The error answers of every route, for OpenAPI."""
