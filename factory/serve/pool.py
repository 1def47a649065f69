"""llama.cpp engines: one per base, each a process that starts at its first request and may end at any time.

    pool = Pool(GgufFiles(registry, load_models, "q8_0"), limits)
    async with pool.lease(resolver.resolve("healthcare-small", caller)) as lease:
        ...  # POST to lease.url with lease.extra in the body
    await pool.close()

An engine leaves when another takes its place, and is closed once its own requests are answered:

- a request needs an adapter that it lacks: a running llama.cpp cannot load another, so an engine with more of them starts;
- a new engine would not fit into memory, and this one was used least recently;
- nobody has used it for half an hour.

One that has died, or is stuck, is replaced at the next request; after a second crash in a row that has to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientError, ClientTimeout, request

from factory.errors import RegistryError, ServeError
from factory.models.llama_server import LlamaServer, lora_choice
from factory.registry.references import CHAMPION
from factory.registry.versions import Version
from factory.serve.engines import GgufFiles, Lease
from factory.serve.limits import APIError, Limits
from factory.serve.resolver import Target
from factory.serve.scheduler import AdapterScheduler

LOG = logging.getLogger("factory.serve")
MAX_PREVIOUS = 8  # adapters that a new engine takes over because they were used
CHECK_SECONDS = 5.0  # between two looks at an engine
IDLE_SECONDS = 1800.0
HANDOVER_SECONDS = 1.0  # for those who waited for an engine's start to take it
STABLE_SECONDS = 60.0  # an engine that dies later has not died in a row
MAX_WAIT = 60.0  # seconds until an engine that keeps dying is started again
PROCESS_BYTES = 60_000_000  # of an engine without base and adapters: Python, llama.cpp, what it computes with
ADAPTER_FACTOR = 1.7  # bytes in memory for each byte of an adapter's file, once it has been used


@dataclass(frozen=True)
class EngineFiles:
    """What an engine loads, and the bytes of memory that it is going to take."""

    base: Path
    adapters: dict[str, Path]  # by reference
    bytes: int


@dataclass(eq=False)
class Engine:
    """One llama.cpp server, the adapters that it was started with, and the number of requests that it answers."""

    server: LlamaServer
    base: str
    adapters: tuple[str, ...]
    bytes: int
    scheduler: AdapterScheduler
    since: float  # of the event loop's clock
    used: float
    users: int = 0

    def has(self, target: Target) -> bool:
        return target.version is None or target.reference in self.adapters

    def lease(self, target: Target) -> Lease:
        chosen = self.adapters.index(target.reference) if target.version else None
        # Sample from the whole distribution unless the request says otherwise: llama.cpp's own defaults would cut it.
        extra = {"lora": lora_choice(len(self.adapters), chosen), "top_k": 0, "min_p": 0.0}
        return Lease(f"{self.server.url}/v1", extra, self.server.headers)


@dataclass
class Crashes:
    """How often in a row a base's engine has died, and when the next may start."""

    count: int = 0
    until: float = 0.0

    def add(self, now: float, lived: float) -> float:
        """``crashes.add(now, lived)``: seconds until the next start; none after the first crash, then 1, 2, 4, up to 60."""
        self.count = 1 if lived > STABLE_SECONDS else self.count + 1
        wait = 0.0 if self.count == 1 else min(MAX_WAIT, 2.0 ** (self.count - 2))
        self.until = now + wait
        return wait


class Pool:
    """``async with pool.lease(target) as lease:`` an engine that has the target's adapter, and one of its slots."""

    def __init__(self, files: GgufFiles, limits: Limits, threads: int | None = None, stuck: float | None = None) -> None:
        """stuck: seconds that an engine may take for one step; a quarter of a request's, but at least 5, if left out."""
        self.files, self.limits, self.threads = files, limits, threads
        self.stuck = max(5.0, limits.seconds / 4) if stuck is None else stuck
        self._engines: dict[str, Engine] = {}  # by base: those that get new requests
        self._leaving: set[Engine] = set()  # those that only answer what they have
        self._starting: dict[str, asyncio.Task[Engine]] = {}  # by base
        self._watching: dict[Engine, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._crashes: dict[str, Crashes] = {}  # by base
        self._recent: dict[str, None] = {}  # adapters, the last used one at the end
        self._room, self._freed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        """Raises: ServeError if no engine can be started; APIError 503 while one that keeps dying may not be."""
        while True:
            engine = await self._engine_for(target)
            engine.users += 1  # nothing is awaited in between, so the engine cannot have been closed
            self._touch(engine, target)
            try:
                async with engine.scheduler.slot(target.reference):
                    if engine.server.alive:  # else it died while this request waited, and nothing was sent
                        yield engine.lease(target)
                        return
            finally:
                self._touch(engine, target)
                self._give_back(engine)

    def count(self) -> int:
        """Engines in memory."""
        return len(self._engines) + len(self._leaving)

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(engine.bytes for engine in (*self._engines.values(), *self._leaving))

    async def close(self) -> None:
        """Closes every engine, also one that is still starting."""
        for engine in list(self._engines.values()):
            self._leave(engine)
        while self._starting:
            await asyncio.gather(*self._starting.values(), return_exceptions=True)
            for engine in list(self._engines.values()):
                self._leave(engine)
        await asyncio.gather(*self._closing, *(self._close(engine) for engine in list(self._leaving)))

    # --------------------------------------------------------------------------------------------------------- requests

    async def _engine_for(self, target: Target) -> Engine:
        while True:
            engine = self._engines.get(target.base)
            if engine is not None and not engine.server.alive:
                self._lost(engine, f"ended by {engine.server.ending}")
            elif engine is not None and engine.has(target):
                return engine
            task, ours = self._starting.get(target.base), False
            if task is None:
                self._check_crashes(target)
                task, ours = asyncio.create_task(self._replace(target)), True
                self._starting[target.base] = task
                task.add_done_callback(lambda _: self._starting.pop(target.base))
            try:
                engine = await asyncio.shield(task)  # a cancelled request leaves the engine to the next one
            except ServeError:
                if ours:  # a start for another request may have failed because of that request's version
                    raise
            else:
                if engine.has(target) and engine.users:  # else it has had to go meanwhile
                    return engine

    def _touch(self, engine: Engine, target: Target) -> None:
        engine.used = asyncio.get_running_loop().time()
        self._recent.pop(target.reference, None)
        self._recent[target.reference] = None

    def _give_back(self, engine: Engine) -> None:
        engine.users -= 1
        self._close_if_done(engine)

    # ----------------------------------------------------------------------------------------------------------- starts

    async def _replace(self, target: Target) -> Engine:
        """Starts an engine of the target's base that gets all new requests; the previous one, if any, leaves.

        For a moment it counts as used: another base may want its memory before those who waited for it have taken it.
        """
        files = await asyncio.to_thread(self._files_for, target, [*reversed(self._recent)])
        async with self._room:
            await self._make_room(files.bytes)
            engine = await self._start(target, files)
            if previous := self._engines.get(target.base):
                self._leave(previous)
            self._engines[target.base] = engine
        self._watching[engine] = asyncio.create_task(self._watch(engine))
        engine.users += 1
        asyncio.get_running_loop().call_later(HANDOVER_SECONDS, self._give_back, engine)
        return engine

    async def _start(self, target: Target, files: EngineFiles) -> Engine:
        """Raises: ServeError, whatever fails."""
        parallel, context = self.limits.parallel, self.limits.context
        adapters = list(files.adapters.values())

        def load() -> LlamaServer:
            return LlamaServer(files.base, adapters=adapters, parallel=parallel, context=context, threads=self.threads)

        try:
            server = await asyncio.to_thread(load)
        except Exception as error:
            self._count_crash(target.base, "did not start", 0.0)
            raise _not_started(target, error) from error
        now = asyncio.get_running_loop().time()
        return Engine(server, target.base, tuple(files.adapters), files.bytes, AdapterScheduler(parallel), now, now)

    def _files_for(self, target: Target, recent: Sequence[str]) -> EngineFiles:
        """Raises: ServeError, whatever fails: torch, gguf or the disk. This request fails, the server goes on."""
        try:
            base = self.files.base(target.base)
            adapters = self._adapter_files(target, recent) if target.version else {}
            tokens = self.limits.parallel * self.limits.context
            cache = tokens * self.files.bytes_per_token(target.base)
        except Exception as error:
            raise _not_started(target, error) from error
        used = sum(_adapter_bytes(path) for path in adapters.values())
        return EngineFiles(base, adapters, PROCESS_BYTES + base.stat().st_size + cache + used)

    def _adapter_files(self, target: Target, recent: Sequence[str]) -> dict[str, Path]:
        """GGUF files by reference, as many as an engine may have, the target's first.

        Those of other versions that cannot be written are left out: only their requests fail.
        """
        files: dict[str, Path] = {}
        room = self.limits.adapter_memory
        for version in self._wanted_versions(target, recent):
            try:
                path = self.files.adapter(version)
            except Exception:
                if version.reference == target.reference:
                    raise
                continue
            room -= _adapter_bytes(path)
            if room < 0 and files:
                break
            files[version.reference] = path
        return files

    def _wanted_versions(self, target: Target, recent: Sequence[str]) -> Iterator[Version]:
        """The target, those used last on this base, and what the students' names and champions on it mean."""
        registry, seen = self.files.registry, set()
        here = {summary.reference: summary.name for summary in registry.versions("student") if summary.base == target.base}
        used = [reference for reference in recent if reference in here]
        likely = [reference for name in dict.fromkeys(here.values()) for reference in (name, f"{name}@{CHAMPION}")]
        for reference in (target.reference, *used[:MAX_PREVIOUS], *likely):
            with contextlib.suppress(RegistryError):  # no champion, no valid version, or deleted
                version = registry.resolve(reference)
                if version.base == target.base and version.reference not in seen:
                    seen.add(version.reference)
                    yield version

    async def _make_room(self, needed: int) -> None:
        """Closes engines until ``needed`` more bytes fit: the least recently used first, a busy one once it is done.

        One that is larger than all the memory is started alone.
        """
        while self.bytes + needed > self.limits.engine_memory and self.count():
            staying = sum(engine.bytes for engine in self._engines.values())
            if staying + needed > self.limits.engine_memory and self._engines:
                self._leave(min(self._engines.values(), key=lambda engine: engine.used))
                continue
            self._freed.clear()
            await self._freed.wait()

    # ------------------------------------------------------------------------------------------------------------- ends

    async def _watch(self, engine: Engine) -> None:
        """Until the engine is closed: ends it where it is stuck, and lets it go where it is dead, or idle for long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(CHECK_SECONDS, self.stuck))
            if engine.server.alive and not await self._moves(engine):
                self._lost(engine, f"was stuck for {self.stuck:g} s and is ended")
                await asyncio.to_thread(engine.server.close)
                return
            if not engine.server.alive:
                self._lost(engine, f"ended by {engine.server.ending}")
                return
            if not engine.users and loop.time() - engine.used > IDLE_SECONDS:
                self._leave(engine)

    async def _moves(self, engine: Engine) -> bool:
        """Whether it ends its step in time: llama.cpp answers this between two steps, and no other request is as cheap."""
        url, timeout = f"{engine.server.url}/metrics", ClientTimeout(total=self.stuck)
        try:
            async with request("GET", url, headers=engine.server.headers, timeout=timeout) as response:
                await response.read()
        except TimeoutError:
            return False
        except (ClientError, OSError):  # it has died, or this process has too many files open
            pass
        return True

    def _lost(self, engine: Engine, how: str) -> None:
        """Forgets an engine that has died; whoever comes first notices, the next request or the watch."""
        if engine not in self._leaving:
            self._count_crash(engine.base, how, asyncio.get_running_loop().time() - engine.since)
            self._leave(engine)

    def _count_crash(self, base: str, how: str, lived: float) -> None:
        crashes = self._crashes.setdefault(base, Crashes())
        wait = crashes.add(asyncio.get_running_loop().time(), lived)
        when = f"after {crashes.count} crashes in a row not before {wait:g} s" if wait else "at its next request"
        LOG.error("the engine for %s %s; it is started again %s", base, how, when)

    def _check_crashes(self, target: Target) -> None:
        crashes = self._crashes.get(target.base, Crashes())
        wait = crashes.until - asyncio.get_running_loop().time()
        if wait > 0:
            seconds = max(1, round(wait))
            message = f"the engine for {target.reference} has failed {crashes.count} times in a row; try again in {seconds} s"
            raise APIError(503, message, code="engine_failed", headers={"Retry-After": str(seconds)})

    def _leave(self, engine: Engine) -> None:
        """It gets no further requests."""
        if self._engines.get(engine.base) is engine:
            del self._engines[engine.base]
            self._leaving.add(engine)
        self._close_if_done(engine)

    def _close_if_done(self, engine: Engine) -> None:
        if engine in self._leaving and not engine.users:
            task = asyncio.create_task(self._close(engine))  # a task of its own: the last request may be cancelled
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, engine: Engine) -> None:
        if watch := self._watching.pop(engine, None):
            watch.cancel()
        await asyncio.to_thread(engine.server.close)
        self._leaving.discard(engine)
        self._freed.set()


def _adapter_bytes(path: Path) -> int:
    return int(ADAPTER_FACTOR * path.stat().st_size)


def _not_started(target: Target, error: Exception) -> ServeError:
    return ServeError(f"the engine for {target.reference} did not start ({type(error).__name__}: {error})")
