"""HTTP between gateway and engine: a whole answer, or a stream's events as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from factory.serve.engines import Lease
from factory.serve.limits import APIError
from factory.serve.schemas import Json


class EngineClient:
    """``await EngineClient().answer(lease, "/chat/completions", body)``. Whoever stops waiting closes the engine's side too."""

    @cached_property
    def _session(self) -> ClientSession:
        """aiohttp, since httpx takes 2.6 times its processor time for an event, and so much of a core is an engine's.

        A connection is used once: llama.cpp closes those of a stream, and a POST that meets a closed one is lost. It asks no
        proxy of the environment: engines are on this machine, an upstream is named with its own address.
        """
        return ClientSession(
            connector=TCPConnector(limit=0, force_close=True), timeout=ClientTimeout(total=None, sock_connect=10)
        )

    async def answer(self, lease: Lease, path: str, body: Json) -> Json:
        """Raises: APIError, 400 for what the engine finds wrong with the request, 502 for anything else."""
        async with self._open(lease, path, body) as response:
            content = _parsed(await response.read())
        if not isinstance(content, dict):
            raise APIError(502, "the engine answered something that is no JSON object", code="bad_engine")
        return content

    @asynccontextmanager
    async def events(self, lease: Lease, path: str, body: Json) -> AsyncIterator[AsyncIterator[Json]]:
        """``async with relay.events(lease, path, body) as events:`` it has begun: refusals of the request are raised here."""
        async with self._open(lease, path, body) as response:
            yield _events(response)

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _open(self, lease: Lease, path: str, body: Json) -> AsyncIterator[ClientResponse]:
        content = json.dumps(body | lease.extra).encode()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **lease.headers}
        try:
            async with self._session.post(lease.url + path, data=content, headers=headers) as response:
                if response.status != 200:
                    raise _refusal(response.status, await response.read())
                yield response
        except ClientError as error:
            raise APIError(502, f"the engine cannot be reached ({type(error).__name__})", code="engine_failed") from None


async def _events(response: ClientResponse) -> AsyncIterator[Json]:
    """Every event's JSON; an event is one line of ``data:``."""
    rest = b""
    async for part in response.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == line or data == b"[DONE]":
                continue
            content = _parsed(data)
            yield content if isinstance(content, dict) else {"error": {"message": "the engine sent half an event"}}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _refusal(status: int, data: bytes) -> APIError:
    """What the engine says of a request is told to the client, of anything else only that it failed."""
    content = _parsed(data)
    error = content.get("error") if isinstance(content, dict) else None
    facts = error if isinstance(error, dict) else {}
    if status in (400, 404, 413, 422):
        code = "context_length_exceeded" if facts.get("type") == "exceed_context_size_error" else "engine_refused"
        return APIError(400, str(facts.get("message") or "the engine refuses this request")[:500], code=code)
    if status in (429, 503):
        return APIError(429, "the engine is busy; try again", code="queue_full", headers={"Retry-After": "1"})
    return APIError(502, f"the engine failed with status {status}", code="engine_failed")
