"""The outermost layer of the app: refuses strangers before a body is read, limits bodies, and answers bugs with a bare 500.

app.add_middleware(Guard, body_bytes=1_000_000, hosts=frozenset({"factory.example"}), keys=keys, rates=Rates())
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
from factory.serve.rates import Rates
from factory.serve.request_ids import HEADER, REQUEST_ID, request_id

# These need no key, like the pages' files in STATIC; any other path does, routed or not.
OPEN = ("/", "/docs", "/health", "/ready", "/openapi.json")
STATIC = "/static/"


class Guard:
    """Gives each request an id, admits it by host, origin, API key and rate, and lets ``body_bytes`` of its body through."""

    def __init__(self, app: ASGIApp, body_bytes: int, hosts: Set[str], keys: KeyFile, rates: Rates) -> None:
        self.app, self.body_bytes, self.hosts, self.keys, self.rates = app, body_bytes, hosts, keys, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        current = request_id(Headers(scope=scope).get(HEADER))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (HEADER.encode(), current.encode())]}
            await send(message)

        token = REQUEST_ID.set(current)
        try:
            self._admit(scope)
        except APIError as refusal:
            await error_response(refusal)(scope, receive, send_with_id)
        else:
            await self._answer(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(token)

    def _admit(self, scope: Scope) -> None:
        """Raises: APIError 403 for a host that is not ours or another's page; 401 without a valid key; 429 beyond its rate."""
        check_host(scope, self.hosts)
        check_origin(scope)
        if scope["path"] not in OPEN and not scope["path"].startswith(STATIC):
            caller = self.keys.caller(Headers(scope=scope).get("authorization"))
            self.rates.take_request(caller)
            scope.setdefault("state", {})["caller"] = caller

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
