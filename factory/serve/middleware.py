"""The outermost layer of the app: limits the size of bodies, and answers unexpected exceptions with a bare 500."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serve.errors import error_response, internal_error, log_failure


class Guard:
    """``app.add_middleware(Guard, body_bytes=1_000_000)``."""

    def __init__(self, app: ASGIApp, body_bytes: int) -> None:
        self.app, self.body_bytes = app, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        left, started = self.body_bytes, False

        async def limited_receive() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))  # counted, since a chunked body has no Content-Length
            if left < 0:
                raise HTTPException(413, f"the request body is larger than {self.body_bytes:,} bytes; send less")
            return message

        async def noted_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, limited_receive, noted_send)
        except Exception as error:
            log_failure(error)
            if not started:
                await error_response(internal_error())(scope, receive, send)
