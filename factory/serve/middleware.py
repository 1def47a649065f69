"""The outermost layer of the app: refuses strangers before a body is read, limits bodies, and answers bugs with a bare 500."""

from __future__ import annotations

from collections.abc import Set

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serve.errors import error_response, internal_error, log_failure
from factory.serve.hosts import check_host, check_origin
from factory.serve.limits import APIError


class Guard:
    """``app.add_middleware(Guard, body_bytes=1_000_000, hosts=frozenset({"factory.example"}))``."""

    def __init__(self, app: ASGIApp, body_bytes: int, hosts: Set[str]) -> None:
        self.app, self.body_bytes, self.hosts = app, body_bytes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._admit(scope)
        except APIError as refusal:
            return await error_response(refusal)(scope, receive, send)
        await self._answer(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises: APIError 403 for a host that is not ours, or another site's page."""
        check_host(scope, self.hosts)
        check_origin(scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
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
