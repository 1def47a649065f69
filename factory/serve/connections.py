"""Clients that send or read slowly: how long a connection may take, and how many there may be.

uvicorn.Config(app, http=BoundedConnection, timeout_keep_alive=30, limit_concurrency=512)

uvicorn itself waits without end for a request that has begun, and for a client that no longer reads its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """uvicorn's connection with a deadline: whoever keeps the server waiting for ``timeout_keep_alive`` seconds is cut off.

    That is the time for a whole request to arrive, head and body, and for a full buffer of an answer to be read; answering
    has a limit of its own. At ``limit_concurrency`` connections a new one takes the place of the one that has waited longest
    for its request; where every request has arrived, the new one gets uvicorn's 503.
    """

    _receiving: asyncio.TimerHandle | None = None  # until the whole request is here
    _sending: asyncio.TimerHandle | None = None  # until the client reads on

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._receiving = self._deadline()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):  # all of the request is here, or it was not HTTP
            self._stop_receiving()
        elif self._receiving is None:
            self._receiving = self._deadline()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self._deadline()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_receiving()
        self._stop_sending()

    def _deadline(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _make_room(self) -> None:
        others = (one for one in self.connections if isinstance(one, BoundedConnection) and one is not self)
        waiting = {one: one._receiving.when() for one in others if one._receiving is not None}
        if waiting:
            longest = min(waiting, key=waiting.__getitem__)
            longest._stop_receiving()
            longest.transport.abort()
            self.connections.discard(longest)  # at once: the loop tells it later, and others may connect before that
