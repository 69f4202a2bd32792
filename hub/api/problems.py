"""Every answer that says no: problem details (RFC 9457), with the HTTP status of each error in one place.

    the shape is wrong (JSON, types, bounds, unknown fields)    400   the same request will always be wrong
    the shape is right, the content can't be                    422   an unknown type, a deadline before the start
    the present state says no                                   409

`code` is the stable name, `title` goes with the status, `detail` says what to do, `errors` names the fields.
"""

import math
import re
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from hub.schemas import FieldProblem, Problem
from shared.errors import (
    BadInputError,
    ConflictError,
    FelloeError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

log = structlog.get_logger()

MEDIA_TYPE: Final = "application/problem+json"

_STATUS: Final[dict[type[FelloeError], int]] = {
    BadInputError: 422,
    NotAuthenticatedError: 401,
    NotAllowedError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    OverloadedError: 429,
    UnavailableError: 503,
}
# What the framework itself refuses, before a handler is asked.
_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}
# msgspec ends its messages with where it stopped: "Expected `int` >= 1 - at `$.resources.pids`".
_WHERE: Final = re.compile(
    r"^(?P<message>.*?)(?: - at `(?P<where>(?:key in )?\$[^`]*)`)?$", re.DOTALL
)

_encode = msgspec.json.Encoder().encode


# Python has these names from 3.13 on.
_RENAMED: Final = {413: "Content Too Large", 422: "Unprocessable Content"}


class MalformedError(BadInputError):
    """The shape is wrong; made from what msgspec says."""

    code = "malformed"

    def __init__(self, error: msgspec.MsgspecError, part: str) -> None:
        found = _WHERE.match(str(error))
        message, where = (found["message"], found["where"]) if found else (str(error), None)
        self.field = (where or "$").replace("$.", "").replace("$", part)
        super().__init__(f"{self.field}: {message}")
        self.message = message


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error is to its caller; what we did not foresee is told without details."""
    match error:
        case MalformedError():
            return _problem(
                400,
                error.code,
                str(error),
                [FieldProblem(field=error.field, message=error.message)],
            )
        case FelloeError():
            return _problem(_status_of(error), error.code, str(error))
        case HTTPException() if error.status_code < 500:
            return _problem(
                error.status_code, _CODES.get(error.status_code, "bad_request"), error.detail
            )
        case _:
            return _problem(500, "internal", "a fault of the hub; its log says more")


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Render any exception of a handler or of the framework: the app's one exception handler."""
    status, body, headers = render(error, request.method, request.url.path)
    return Response(body, status_code=status, headers=headers)


def render(error: Exception, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
    """Return status, body and headers for an exception; what we did not foresee goes to the log."""
    problem = problem_of(error)
    body = _encode(problem)
    if problem.code == "internal":
        log.error("request_failed", method=method, path=path, exc_info=error)
    length = {"content-type": MEDIA_TYPE, "content-length": str(len(body))}
    return problem.status, body, {**length, **_headers(error, problem)}


def _problem(
    status: int, code: str, detail: str, errors: list[FieldProblem] | None = None
) -> Problem:
    return Problem(
        type=f"urn:felloe:problem:{code}",
        title=title_of(status),
        status=status,
        detail=detail,
        code=code,
        errors=errors or [],
    )


def title_of(status: int) -> str:
    """Return a status's name in RFC 9110, section 15, whatever this Python calls it."""
    return _RENAMED.get(status) or HTTPStatus(status).phrase


def _status_of(error: FelloeError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def _headers(error: Exception, problem: Problem) -> dict[str, str]:
    match error:
        case OverloadedError():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case HTTPException():
            return {name: str(value) for name, value in (error.headers or {}).items()}
        case _:
            return {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
