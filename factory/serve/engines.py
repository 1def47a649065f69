"""llama.cpp engines: one per base, started at its first request, replaced when a request needs an adapter that it lacks.

    pool = Pool(GgufFiles(registry, load_models, "q8_0"), limits)
    async with pool.lease(resolver.resolve("healthcare-small", caller)) as lease:
        ...  # POST to lease.url with lease.extra in the body
    await pool.close()

A running llama.cpp cannot load another adapter. So a request for a version that the engine lacks starts a second engine for
the same base with more adapters. New requests go to the new engine, and the old one is closed once its own are answered.
Meanwhile the old engine goes on answering requests for the adapters that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from factory.cache import cache_key, home, replace_file, sha256
from factory.config.quantization import DEFAULT, Quantization
from factory.errors import RegistryError, ServeError
from factory.export.gguf import own_quantization, write_adapter_gguf, write_base_gguf
from factory.inference import load_version
from factory.models.folders import load_config
from factory.models.llama_server import LlamaServer, lora_choice
from factory.pipeline.context import FamilyModels
from factory.registry.references import CHAMPION
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.limits import Limits
from factory.serve.resolver import TEACHER, Target
from factory.serve.scheduler import AdapterScheduler

FORMAT = 3  # raised when the GGUF writers change, so that older files are written again
MAX_PREVIOUS = 8  # adapters that a new engine takes over because they were requested by number


@dataclass(frozen=True)
class Lease:
    """Where to send one request, and what to add to it."""

    url: str  # up to and without /chat/completions
    extra: dict[str, Any] = field(default_factory=dict)  # fields of the body
    headers: dict[str, str] = field(default_factory=dict)


class Engines(Protocol):
    """Where answers are generated: a ``Pool`` of llama.cpp engines on this machine, or an ``Upstream`` server."""

    def lease(self, target: Target) -> contextlib.AbstractAsyncContextManager[Lease]: ...

    def count(self) -> int: ...

    async def close(self) -> None: ...


class Upstream:
    """``Upstream("http://127.0.0.1:8001/v1", key)``: a server whose model names are references, as vLLM's LoRA modules."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.headers = url.rstrip("/"), {"Authorization": f"Bearer {key}"} if key else {}

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        yield Lease(self.url, headers=self.headers)

    def count(self) -> int:
        return 1

    async def close(self) -> None:
        """Does nothing: the upstream server is not ours."""


# --------------------------------------------------------------------------------------------------------------- files


class GgufFiles:
    """GGUF files of published versions: each written at its first use and kept under ``home() / "serve"``.

    Every use reads the file and compares it with the checksum of what was written; a file that differs is written again. None
    is made of a damaged version: it would outlast the repair.
    """

    def __init__(self, registry: Registry, load_models: Callable[[], FamilyModels], quantization: Quantization | None) -> None:
        self.registry, self.load_models, self.quantization = registry, load_models, quantization

    def base(self, reference: str) -> Path:
        """``files.base("default-small-base@1")`` or ``files.base("teacher")``."""
        return self._teacher() if reference == TEACHER else self._base(self.registry.resolve(reference))

    def adapter(self, version: Version) -> Path:
        """``files.adapter(registry.resolve("healthcare-small"))``."""
        path = _folder(version.manifest.manifest_sha256) / "adapter.gguf"

        def write(new: Path) -> None:
            base = self.registry.require_intact(self.registry.resolve(version.base or ""))
            write_adapter_gguf(self.registry.require_intact(version).folder, load_config(base.folder), new)

        return _write_once(path, write)

    def _base(self, version: Version) -> Path:
        kind = self.quantization or own_quantization(version)

        def write(path: Path) -> None:
            base = load_version(version, self.registry, torch.device("cpu"), torch.float32).base
            license = version.manifest.teacher.license
            write_base_gguf(base.model, base.tokenizer, path, kind, name=version.reference, license=license)

        return _write_once(_folder(version.manifest.manifest_sha256) / f"{kind}.gguf", write)

    def _teacher(self) -> Path:
        models = self.load_models()
        spec, teacher, kind = models.family.teacher, models.teacher, self.quantization or DEFAULT

        def write(path: Path) -> None:
            write_base_gguf(teacher.model, teacher.tokenizer, path, kind, name=TEACHER, license=spec.license)
            teacher.release()

        key = cache_key(models.teacher_files.sha256, *spec.template_parts)
        return _write_once(_folder(key) / f"{kind}.gguf", write)


def _folder(key: str) -> Path:
    return home() / "serve" / f"{key}-{FORMAT}"


def _write_once(path: Path, write: Callable[[Path], object]) -> Path:
    """The file, written unless it is there as it was written; the writers rename it into place once it is complete."""
    note = path.with_name(f"{path.name}.sha256")
    if not (path.is_file() and note.is_file() and note.read_bytes() == _content(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        replace_file(note, _content(path))
    return path


def _content(path: Path) -> bytes:
    return f"{path.stat().st_size} {sha256(path)}\n".encode()


# ------------------------------------------------------------------------------------------------------------- engines


class Engine:
    """One llama.cpp server, the adapters that it was started with, and the number of requests that it answers."""

    def __init__(self, server: LlamaServer, adapters: tuple[str, ...], slots: int) -> None:
        self.server, self.adapters, self.scheduler = server, adapters, AdapterScheduler(slots)
        self.users, self.retired = 0, False

    def has(self, target: Target) -> bool:
        return target.version is None or target.reference in self.adapters

    def lease(self, target: Target) -> Lease:
        chosen = self.adapters.index(target.reference) if target.version else None
        # Sample from the whole distribution unless the request says otherwise: llama.cpp's own defaults would cut it.
        extra = {"lora": lora_choice(len(self.adapters), chosen), "top_k": 0, "min_p": 0.0}
        return Lease(f"{self.server.url}/v1", extra, self.server.headers)


class Pool:
    """``async with pool.lease(target) as lease:`` an engine that has the target's adapter, and one of its slots."""

    def __init__(self, files: GgufFiles, limits: Limits, threads: int | None = None) -> None:
        self.files, self.limits, self.threads = files, limits, threads
        self._engines: dict[str, Engine] = {}  # by base: those that get new requests
        self._draining: set[Engine] = set()  # replaced, and still answering
        self._closing: set[asyncio.Task[None]] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}  # by base

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        """Raises: ServeError if no engine can be started."""
        engine = await self._engine_for(target)
        engine.users += 1  # nothing is awaited in between, so the engine cannot have been closed
        try:
            async with engine.scheduler.slot(target.reference):
                yield engine.lease(target)
        finally:
            engine.users -= 1
            self._close_if_done(engine)

    def count(self) -> int:
        """Engines in memory."""
        return len(self._engines) + len(self._draining)

    async def close(self) -> None:
        """Closes every engine, also one that is still starting."""
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        self._draining.update(self._engines.values())
        self._engines.clear()
        await asyncio.gather(*self._closing, *map(self._close, list(self._draining)))

    async def _engine_for(self, target: Target) -> Engine:
        while True:
            engine = self._engines.get(target.base)
            if engine is not None and engine.has(target):
                return engine
            task, ours = self._starting.get(target.base), False
            if task is None:
                task, ours = asyncio.create_task(self._replace(target)), True
                self._starting[target.base] = task
                task.add_done_callback(lambda _: self._starting.pop(target.base))
            try:
                await asyncio.shield(task)  # a cancelled request leaves the engine to the next one
            except ServeError:
                if ours:  # a start for another request may have failed because of that request's version
                    raise

    async def _replace(self, target: Target) -> None:
        """Starts an engine of the target's base that gets all new requests; the previous one, if any, drains."""
        previous = self._engines.get(target.base)
        engine = await asyncio.to_thread(self._start, target, previous.adapters if previous else ())
        self._engines[target.base] = engine
        if previous is not None:
            previous.retired = True
            self._draining.add(previous)
            self._close_if_done(previous)

    def _start(self, target: Target, previous: tuple[str, ...]) -> Engine:
        """Raises: ServeError, whatever fails."""
        try:
            adapters = self._adapter_files(target, previous) if target.version else {}
            server = LlamaServer(
                self.files.base(target.base),
                adapters=list(adapters.values()),
                parallel=self.limits.parallel,
                context=self.limits.context,
                threads=self.threads,
            )
        except Exception as error:  # torch, gguf or the disk: this request fails, the server goes on
            raise ServeError(f"the engine for {target.reference} did not start ({type(error).__name__}: {error})") from error
        return Engine(server, tuple(adapters), self.limits.parallel)

    def _adapter_files(self, target: Target, previous: tuple[str, ...]) -> dict[str, Path]:
        """GGUF files by reference, without those of other versions that cannot be written: only their requests fail."""
        files = {}
        for version in self._wanted_versions(target, previous):
            try:
                files[version.reference] = self.files.adapter(version)
            except Exception:
                if version.reference == target.reference:
                    raise
        return files

    def _wanted_versions(self, target: Target, previous: tuple[str, ...]) -> Iterator[Version]:
        """The target, what the students' names and champions on this base mean, and some of the previous adapters."""
        registry, seen = self.files.registry, set()
        names = dict.fromkeys(summary.name for summary in registry.versions("student") if summary.base == target.base)
        likely = [reference for name in names for reference in (name, f"{name}@{CHAMPION}")]
        for reference in (target.reference, *likely, *previous[:MAX_PREVIOUS]):
            with contextlib.suppress(RegistryError):  # no champion, no valid version, or deleted
                version = registry.resolve(reference)
                if version.base == target.base and version.reference not in seen:
                    seen.add(version.reference)
                    yield version

    def _close_if_done(self, engine: Engine) -> None:
        if engine.retired and not engine.users:
            task = asyncio.create_task(self._close(engine))  # a task of its own: the last request may be cancelled
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, engine: Engine) -> None:
        await asyncio.to_thread(engine.server.close)
        self._draining.discard(engine)
