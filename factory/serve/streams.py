"""Server-sent events, and how a request ends early: the client disconnects, or the time limit is reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from factory.serve.auth import Caller
from factory.serve.errors import as_api_error
from factory.serve.limits import APIError
from factory.serve.schemas import DONE, JsonObject, event

CLIENT_CLOSED_REQUEST, TIMED_OUT = 499, 504  # the first is nginx's status; only metrics see it


@dataclass
class RequestContext:
    """One request in progress; what is below ``deadline`` is filled in as it becomes known."""

    route: str
    caller: Caller
    started: float  # of the event loop's clock, seconds
    deadline: float
    model: str = ""
    status: int = 200
    reserved: int = 0  # tokens, of its prompts and the longest answers that it may get
    used: int = 0  # tokens that engines told
    cost: float = 0.0  # of models elsewhere, in the currency of their price

    @property
    def tokens(self) -> int:
        """What it took: of an answer that was broken off nobody knows, and then what it could have taken."""
        broken_off = self.status in (CLIENT_CLOSED_REQUEST, TIMED_OUT)
        return max(self.used, self.reserved if broken_off else 0)


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive, context: RequestContext) -> AsyncIterator[None]:
    """``async with cancel_on_disconnect(request.receive, context):`` cancels its body when nobody waits for it any more.

    Raises: APIError 499 when the client has disconnected, 504 when the deadline has passed.
    """
    task, disconnected = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout_at(context.deadline):
            yield
    except TimeoutError:
        seconds = context.deadline - context.started
        raise APIError(TIMED_OUT, f"not answered within {seconds:g} s; ask for fewer tokens", code="timeout") from None
    except asyncio.CancelledError:
        if not disconnected:  # cancelled from outside: the server is stopping
            raise
        task.uncancel()
        raise APIError(CLIENT_CLOSED_REQUEST, "the client disconnected", code="client_disconnected") from None
    finally:
        watcher.cancel()


class EventStream(Response):
    """Sends chunks as they come. ``stack`` holds the engine and the place in the queue; it is closed in any case."""

    def __init__(
        self, chunks: AsyncIterator[JsonObject], stack: AsyncExitStack, context: RequestContext, headers: Mapping[str, str]
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=dict(headers) | {"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.chunks, self.stack, self.context = chunks, stack, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async with self.stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with cancel_on_disconnect(receive, self.context):
                    async for chunk in self.chunks:
                        await write(event(chunk))
                    await write(DONE)
            except Exception as error:
                failure = as_api_error(error)
                self.context.status = failure.status
                if failure.status != CLIENT_CLOSED_REQUEST:
                    await write(event(failure.body()))
        await write(b"", more=False)
