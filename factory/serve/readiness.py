"""Whether a request could be answered now: what ``GET /ready`` says.

await Readiness(registry, teacher_is_here, engines).problem()    # None, or "no student can be resolved, …"

Anybody may ask, so the answer names nothing, and is found out at most once in some seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from aiohttp import ClientError, ClientSession, ClientTimeout

from factory.errors import FactoryError
from factory.registry.registry import Registry
from factory.serve.engines import Engines, Upstream

KEPT = 2.0  # seconds for which an answer stands
PATIENCE = 3.0  # seconds for an upstream


class Readiness:
    """``Readiness(registry, teacher_is_here, engines)``: ``teacher_is_here`` says whether its files are on this machine."""

    def __init__(self, registry: Registry, teacher_is_here: Callable[[], bool], engines: Engines) -> None:
        self.registry, self.teacher_is_here, self.engines = registry, teacher_is_here, engines
        self._lock, self._problem, self._until = asyncio.Lock(), "", -1.0

    async def problem(self) -> str | None:
        """``await readiness.problem()``: why no request could be answered, in one line without a name; None if one could."""
        async with self._lock:
            if monotonic() >= self._until:
                self._problem = await asyncio.to_thread(self._model_problem) or await self._upstream_problem()
                self._until = monotonic() + KEPT
            return self._problem or None

    def _model_problem(self) -> str:
        """ "" where there is a model."""
        try:
            if os.path.lexists(self.registry.root):  # before the first student is published it is not there
                os.listdir(self.registry.root)
            names = {summary.name for summary in self.registry.versions("student")}
        except (OSError, FactoryError):
            return "the registry cannot be read"
        for name in names:
            with suppress(OSError, FactoryError):
                self.registry.resolve(self.registry.resolve(name).base or "")
                return ""
        with suppress(OSError, FactoryError):
            if self.teacher_is_here():
                return ""
        return "no student can be resolved, and the teacher's files are not on this machine"

    async def _upstream_problem(self) -> str:
        if not isinstance(self.engines, Upstream):
            return ""
        try:
            async with (
                ClientSession(timeout=ClientTimeout(total=PATIENCE)) as session,
                session.get(f"{self.engines.url}/models", headers=self.engines.headers) as response,
            ):
                status = response.status
        except (ClientError, TimeoutError):
            return "the upstream server cannot be reached"
        if status in (401, 403):
            return "the upstream server refuses this server's key"
        return "the upstream server fails" if status >= 500 else ""
