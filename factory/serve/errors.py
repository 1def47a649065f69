"""Every failure as clients see it: OpenAI's error shape, one line, and no traceback.

app = FastAPI(exception_handlers=HANDLERS, responses=RESPONSES)
error_response(APIError(404, "...", code="model_not_found"))
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from factory.errors import FactoryError
from factory.serve.limits import APIError
from factory.serve.request_ids import in_log

LOG = logging.getLogger("factory.serve")
UNAVAILABLE = "no engine can answer this request; the server's log says why"
ENDPOINTS = "this server has POST /v1/chat/completions, /v1/completions and /v1/embeddings, and GET /v1/models"
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ErrorFields(BaseModel):
    """The fields of OpenAI's errors."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response with an error status."""

    error: ErrorFields


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request is invalid, or asks for something that is not supported",
        401: "The API key is missing, unknown or expired",
        403: "The API key does not give access to this model",
        404: "No such model",
        413: "The request body is too large",
        429: "The queue is full, or the API key has used what it may",
        502: "The engine failed",
        503: "No engine is available",
        504: "The request timed out",
    }.items()
}


def error_response(error: APIError) -> JSONResponse:
    """``error_response(APIError(404, ...))``: the error as a response."""
    return JSONResponse(error.body(), error.status, error.headers)


def as_api_error(error: Exception) -> APIError:
    """``as_api_error(ServeError("..."))``: any exception as clients see it; the log says why, with folders and addresses."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, FactoryError):
        LOG.error("unavailable: %s", error)
        return APIError(503, in_log(UNAVAILABLE), code="unavailable")
    log_failure(error)
    return internal_error()


def status_of(error: Exception) -> int:
    """``status_of(ServeError("..."))`` → 503: the status of ``as_api_error``, without logging."""
    if isinstance(error, APIError):
        return error.status
    return 503 if isinstance(error, FactoryError) else 500


def internal_error() -> APIError:
    """What clients see of a bug."""
    message = in_log("internal server error; the server's log says where it happened")
    return APIError(500, message, code="internal_error")


def log_failure(error: BaseException) -> None:
    """Logs the type and place of an unexpected exception, but not its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    LOG.error("request failed: %s%s", type(error).__name__, where)


async def _handle(_: Request, error: Exception) -> Response:
    return error_response(as_api_error(error))


async def _handle_validation(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if isinstance(part, str) and part != "body"]
    message = f"{'.'.join(path) or 'request body'}: {str(first['msg']).removeprefix('Value error, ')}"
    return error_response(APIError(400, message, code=str(first["type"]), param=path[0] if path else None))


async def _handle_http(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 404 and request.url.path.startswith("/v1/"):  # such as /v1/responses
        message += f"; {ENDPOINTS}"
    code = CODES.get(error.status_code, "invalid_request")
    return error_response(APIError(error.status_code, message, code=code, headers=error.headers))


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    APIError: _handle,
    FactoryError: _handle,
    RequestValidationError: _handle_validation,
    HTTPException: _handle_http,
}
