"""HTTP between server and engine: a whole answer, or a stream's events as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ServerDisconnectedError,
    TCPConnector,
)

from factory.serve.engines import Lease
from factory.serve.limits import APIError
from factory.serve.schemas import JsonObject

MAX_BYTES = 10_000_000  # of an answer, or of one event of a stream


class Unreachable(APIError):
    """Raised where no connection was made: nothing was sent."""


class EngineClient:
    """``await EngineClient().answer(lease, "/chat/completions", body)``; cancelling the call closes the engine's side too.

    elsewhere: it is nobody's engine on this machine: the environment's proxies lead there, and no request is sent twice.
    """

    def __init__(self, *, elsewhere: bool = False) -> None:
        self.elsewhere = elsewhere

    @cached_property
    def _session(self) -> ClientSession:
        """aiohttp, since httpx needs 2.6 times its CPU time per event, on cores that the engine needs.

        Each connection is used once: llama.cpp closes those of streams, and a POST on a closed one is lost. Proxies in the
        environment are ignored for engines on this machine, and for an upstream, which is given by its address.
        """
        return ClientSession(
            connector=TCPConnector(limit=0, force_close=True),
            timeout=ClientTimeout(total=None, sock_connect=10),
            trust_env=self.elsewhere,
        )

    async def answer(self, lease: Lease, path: str, body: JsonObject) -> JsonObject:
        """``await client.answer(lease, "/chat/completions", body)``: the engine's JSON object.

        Raises: APIError 400 where the engine rejects the request, 429 where it is busy, 503 where it cannot be reached or ends
            meanwhile, 502 for any other failure.
        """
        async with self._open(lease, path, body) as response:
            content = _parse(await _whole(response))
        if not isinstance(content, dict):
            raise APIError(502, "the engine did not answer with a JSON object", code="bad_engine")
        return content

    @asynccontextmanager
    async def events(self, lease: Lease, path: str, body: JsonObject) -> AsyncIterator[AsyncIterator[JsonObject]]:
        """``async with client.events(lease, path, body) as events:`` raises what ``answer`` raises, also in the middle."""
        async with self._open(lease, path, body) as response:
            yield _events(response)

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _open(self, lease: Lease, path: str, body: JsonObject) -> AsyncIterator[ClientResponse]:
        content = json.dumps(body | lease.extra).encode()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **lease.headers}
        try:
            async with await self._post(lease.url + path, content, headers) as response:
                if response.status != 200:
                    raise _engine_error(response.status, await _whole(response))
                yield response
        except ClientError as error:
            raise _gone(error) from None

    async def _post(self, url: str, content: bytes, headers: dict[str, str]) -> ClientResponse:
        """Under load llama.cpp closes one connection in some thousands without a word: then nothing is lost by a second one."""
        try:
            return await self._session.post(url, data=content, headers=headers, allow_redirects=False)
        except (ServerDisconnectedError, ClientOSError):
            if self.elsewhere:
                raise
            return await self._session.post(url, data=content, headers=headers, allow_redirects=False)


async def _whole(response: ClientResponse) -> bytes:
    """Raises: APIError 502 for an answer without an end."""
    content = b""
    async for part in response.content.iter_any():
        content += part
        if len(content) > MAX_BYTES:
            raise APIError(502, "the engine sent an answer without an end", code="bad_engine")
    return content


async def _events(response: ClientResponse) -> AsyncIterator[JsonObject]:
    """The JSON of every event; an event is one ``data:`` line."""
    async for line in _lines(response):
        data = line.removeprefix(b"data:").strip()
        if data == line or data == b"[DONE]":
            continue
        content = _parse(data)
        yield content if isinstance(content, dict) else {"error": {"message": "the engine sent a malformed event"}}


async def _lines(response: ClientResponse) -> AsyncIterator[bytes]:
    """Raises: APIError 503 where the engine ends in the middle; 502 for a line without an end."""
    rest = b""
    try:
        async for part in response.content.iter_any():
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_BYTES:
                raise APIError(502, "the engine sent a line without an end", code="bad_engine")
            for line in lines:
                yield line
    except ClientError as error:
        raise _gone(error) from None


def _gone(error: ClientError) -> APIError:
    """What was asked of it is lost, and may be asked again: of the next engine, or of the same upstream."""
    message = f"the engine has ended or cannot be reached ({type(error).__name__}); try again in 1 s"
    kind = Unreachable if isinstance(error, ClientConnectorError) else APIError
    return kind(503, message, code="engine_failed", headers={"Retry-After": "1"})


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _engine_error(status: int, data: bytes) -> APIError:
    """Clients see why an engine rejects their request; of other failures they see only the status."""
    content = _parse(data)
    error = content.get("error") if isinstance(content, dict) else None
    fields = error if isinstance(error, dict) else {}
    if status in (400, 404, 413, 422):
        code = "context_length_exceeded" if fields.get("type") == "exceed_context_size_error" else "engine_refused"
        return APIError(400, str(fields.get("message") or "the engine rejected this request")[:500], code=code)
    if status in (429, 503):
        return APIError(429, "the engine is busy; try again in 1 s", code="queue_full", headers={"Retry-After": "1"})
    return APIError(502, f"the engine failed with status {status}", code="engine_failed")
