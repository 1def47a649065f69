"""The outermost layer of the app: refuses strangers before a body is read, limits bodies, and answers bugs with a bare 500.

app.add_middleware(Guard, body_bytes=1_000_000, hosts=frozenset({"factory.example"}), keys=keys)
request.state.caller  # in a route: who asks, unless its path is open
"""

from __future__ import annotations

from collections.abc import Set

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serve.auth import KeyFile
from factory.serve.errors import error_response, internal_error, log_failure
from factory.serve.hosts import check_host, check_origin
from factory.serve.limits import APIError

OPEN = ("/", "/health", "/openapi.json")  # need no key, like the page's files; any other path does, routed or not
STATIC = "/static/"


class Guard:
    """Admits requests by host, origin and API key, and lets at most ``body_bytes`` of each body through."""

    def __init__(self, app: ASGIApp, body_bytes: int, hosts: Set[str], keys: KeyFile) -> None:
        self.app, self.body_bytes, self.hosts, self.keys = app, body_bytes, hosts, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._admit(scope)
        except APIError as refusal:
            return await error_response(refusal)(scope, receive, send)
        await self._answer(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises: APIError 403 for a host that is not ours, or another site's page; 401 without a valid key."""
        check_host(scope, self.hosts)
        check_origin(scope)
        if scope["path"] not in OPEN and not scope["path"].startswith(STATIC):
            scope.setdefault("state", {})["caller"] = self.keys.caller(Headers(scope=scope).get("authorization"))

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
