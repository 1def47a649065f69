"""HTTP between gateway and engine: a whole answer, or a stream's events as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from factory.serve.limits import Refusal
from factory.serve.pool import Lease
from factory.serve.protocol import Json


class Relay:
    """``await Relay().answer(lease, "/chat/completions", body)``. Whoever stops waiting closes the engine's side too."""

    def __init__(self) -> None:
        # No proxy of the environment: engines are on this machine, an upstream is named with its own address.
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10), limits=httpx.Limits(), trust_env=False)

    async def answer(self, lease: Lease, path: str, body: Json) -> Json:
        """Raises: Refusal, 400 for what the engine finds wrong with the request, 502 for anything else."""
        async with self._open(lease, path, body) as response:
            content = _parsed(await response.aread())
        if not isinstance(content, dict):
            raise Refusal(502, "the engine answered something that is no JSON object", code="bad_engine")
        return content

    @asynccontextmanager
    async def events(self, lease: Lease, path: str, body: Json) -> AsyncIterator[AsyncIterator[Json]]:
        """``async with relay.events(lease, path, body) as events:`` it has begun: refusals of the request are raised here."""
        async with self._open(lease, path, body) as response:
            yield _events(response)

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _open(self, lease: Lease, path: str, body: Json) -> AsyncIterator[httpx.Response]:
        content = json.dumps(body | lease.extra).encode()
        headers = {"Content-Type": "application/json", **lease.headers}
        try:
            async with self._client.stream("POST", lease.url + path, content=content, headers=headers) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                yield response
        except httpx.HTTPError as error:
            raise Refusal(502, f"the engine cannot be reached ({type(error).__name__})", code="engine_failed") from None


async def _events(response: httpx.Response) -> AsyncIterator[Json]:
    """Every event's JSON; an event is one line of ``data:``."""
    rest = b""
    async for part in response.aiter_raw():
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


def _refusal(status: int, data: bytes) -> Refusal:
    """What the engine says of a request is told to the client, of anything else only that it failed."""
    content = _parsed(data)
    error = content.get("error") if isinstance(content, dict) else None
    facts = error if isinstance(error, dict) else {}
    if status in (400, 404, 413, 422):
        code = "context_length_exceeded" if facts.get("type") == "exceed_context_size_error" else "engine_refused"
        return Refusal(400, str(facts.get("message") or "the engine refuses this request")[:500], code=code)
    if status in (429, 503):
        return Refusal(429, "the engine is busy; try again", code="queue_full", headers={"Retry-After": "1"})
    return Refusal(502, f"the engine failed with status {status}", code="engine_failed")
