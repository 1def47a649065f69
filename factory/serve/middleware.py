"""Around the app: bodies of a bounded size, and no failure that says more than its kind, to the client or to the log."""

from __future__ import annotations

import logging
import traceback

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serve.limits import APIError

LOG = logging.getLogger("factory.serve")


class Guard:
    """``app.add_middleware(Guard, body_bytes=1_000_000)``."""

    def __init__(self, app: ASGIApp, body_bytes: int) -> None:
        self.app, self.body_bytes = app, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        left, begun = self.body_bytes, False

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Exception as error:
            log_failure(error)
            if not begun:
                await refused(failure())(scope, receive, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self.body_bytes} bytes")  # FastAPI lets it through


def refused(refusal: APIError) -> JSONResponse:
    """``refused(APIError(404, ...))`` as a response."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def failure() -> APIError:
    """What a client is told of a mistake of ours."""
    return APIError(500, "the server failed to answer this request; its log says where", code="internal_error")


def log_failure(error: BaseException) -> None:
    """Kind and place. Not the message: it may quote what was asked."""
    places = traceback.extract_tb(error.__traceback__)
    where = f" in {places[-1].filename}:{places[-1].lineno}" if places else ""
    LOG.error("a request failed: %s%s", type(error).__name__, where)
