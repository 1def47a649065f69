"""Which requests an engine answers together: those that use the same adapter.

async with scheduler.slot("healthcare-small@3"):
    ...  # one of the engine's slots
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Waiter:
    """A request that waits for a slot; ``admitted`` is done once it has one."""

    adapter: str
    since: float  # the event loop's clock, seconds
    admitted: asyncio.Future[None]


class AdapterScheduler:
    """``async with scheduler.slot("healthcare-small@3"):`` at most ``slots`` requests at once, all with the same adapter.

    llama.cpp batches only requests with the same adapter; the others wait until that batch is done, so a busy adapter
    would starve the rest. Here a request that has waited longer than ``patience`` seconds comes next: the running adapter
    gets no further requests, and when its last one is done, the longest-waiting request decides the next adapter.
    """

    def __init__(self, slots: int, patience: float = 2.0) -> None:
        self.slots, self.patience = slots, patience
        self.running, self.adapter = 0, ""
        self._waiting: deque[Waiter] = deque()  # in order of arrival

    @asynccontextmanager
    async def slot(self, adapter: str) -> AsyncIterator[None]:
        """Waits for a slot and frees it at the end, also if the request is cancelled."""
        loop = asyncio.get_running_loop()
        waiter = Waiter(adapter, loop.time(), loop.create_future())
        self._waiting.append(waiter)
        self._admit(loop.time())
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.admitted.cancelled():  # admitted and cancelled in the same moment
                self.running -= 1
            self._admit(loop.time())
            raise
        try:
            yield
        finally:
            self.running -= 1
            self._admit(loop.time())

    def _admit(self, now: float) -> None:
        self._waiting = deque(waiter for waiter in self._waiting if not waiter.admitted.cancelled())
        while self._waiting and self.running < self.slots:
            first = self._waiting[0]
            if not self.running:
                self.adapter = first.adapter
            elif first.adapter != self.adapter and now - first.since > self.patience:
                return
            following = next((waiter for waiter in self._waiting if waiter.adapter == self.adapter), None)
            if following is None:
                return
            self._waiting.remove(following)
            self.running += 1
            following.admitted.set_result(None)
