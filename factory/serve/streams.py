"""Server-sent events, and what ends a request early: the client leaves, or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from factory.errors import FactoryError
from factory.serve.limits import APIError
from factory.serve.middleware import failure, log_failure
from factory.serve.schemas import DONE, Json, event

LEFT = 499  # a status that nobody reads: the client closed the connection


@dataclass
class RequestContext:
    """One request under way."""

    route: str
    begun: float  # of the event loop's clock
    deadline: float
    model: str = ""
    status: int = 200


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive, visit: RequestContext) -> AsyncIterator[None]:
    """``async with cancel_on_disconnect(request.receive, visit):`` stops what is inside when nobody waits for it any more.

    Raises: APIError 499 when the client has closed the connection, 504 when the time is over.
    """
    task, left = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout_at(visit.deadline):
            yield
    except TimeoutError:
        seconds = visit.deadline - visit.begun
        raise APIError(504, f"not answered within {seconds:g} s; ask for fewer tokens", code="timeout") from None
    except asyncio.CancelledError:
        if not left:  # the server stops
            raise
        task.uncancel()
        raise APIError(LEFT, "the client has left", code="client_left") from None
    finally:
        watcher.cancel()


class EventStream(Response):
    """Sends chunks as they come; ``stack`` holds engine and place in the queue, and is left whatever happens."""

    def __init__(
        self, chunks: AsyncIterator[Json], stack: AsyncExitStack, visit: RequestContext, headers: Mapping[str, str]
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=dict(headers) | {"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.chunks, self.stack, self.visit = chunks, stack, visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async with self.stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with cancel_on_disconnect(receive, self.visit):
                    async for chunk in self.chunks:
                        await write(event(chunk))
                    await write(DONE)
            except Exception as error:
                refusal = as_api_error(error)
                self.visit.status = refusal.status
                if refusal.status != LEFT:
                    await write(event(refusal.body()))
        await write(b"", more=False)


def status_of(error: Exception) -> int:
    """What the client sees, or would see."""
    return error.status if isinstance(error, APIError) else 503 if isinstance(error, FactoryError) else 500


def as_api_error(error: Exception) -> APIError:
    """Any error as what the client is told of it; those that nobody planned are logged."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, FactoryError):
        return APIError(503, str(error), code="unavailable")
    log_failure(error)
    return failure()
