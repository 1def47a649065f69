"""llama.cpp engines: one of each base, started when first needed, replaced when a version comes that it does not have.

    pool = Pool(GgufFiles(registry, materials, "q8_0"), limits)
    async with pool.lease(names.named("healthcare-small")) as lease:
        ...  # POST lease.url with lease.extra in the body
    await pool.close()

A running llama.cpp takes no new adapter. So a version that an engine lacks starts another one beside it, for the same base
with more adapters; from then on that one gets the requests, and the older is closed when those that it has are answered.
Whoever asks for what the older one has is not kept waiting.
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
from transformers import AutoConfig

from factory.cache import cache_key, home
from factory.errors import RegistryError, ServeError
from factory.export.gguf import write_adapter_gguf, write_base_gguf
from factory.models.base import load_base
from factory.models.llama_server import LlamaServer, lora_choice
from factory.registry.references import CHAMPION
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.limits import AdapterScheduler, Limits
from factory.serve.resolver import TEACHER, Target

FORMAT = 1  # raised when the GGUF writers change, so that old files are made again
KEPT = 8  # further versions of a base that were asked for by number and stay on its next engine


@dataclass(frozen=True)
class Lease:
    """Where one request is sent, and what its body says besides."""

    url: str  # ends before /chat/completions
    extra: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class Engines(Protocol):
    """Whoever does the work: a Pool of llama.cpp engines here, or an Upstream."""

    def lease(self, target: Target) -> contextlib.AbstractAsyncContextManager[Lease]: ...

    def count(self) -> int: ...

    async def close(self) -> None: ...


class Upstream:
    """``Upstream("http://127.0.0.1:8001/v1", key)``: a server that knows students by their references, as vLLM LoRA modules."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.headers = url.rstrip("/"), {"Authorization": f"Bearer {key}"} if key else {}

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        yield Lease(self.url, headers=self.headers)

    def count(self) -> int:
        return 1

    async def close(self) -> None:
        """Nothing here is its."""


# --------------------------------------------------------------------------------------------------------------- files


class GgufFiles:
    """What llama.cpp reads: made once of each published folder and kept under ``home() / "serve"``."""

    def __init__(self, registry: Registry, materials: Any, quantization: str) -> None:
        self.registry, self.materials, self.quantization = registry, materials, quantization

    def base(self, reference: str) -> Path:
        """``files.base("default-small-base@1")``, or the word ``teacher``."""
        return self._teacher() if reference == TEACHER else self._base(self.registry.resolve(reference))

    def adapter(self, version: Version) -> Path:
        """``files.adapter(registry.resolve("healthcare-small"))``."""
        config = AutoConfig.from_pretrained(self.registry.resolve(version.base or "").folder)
        path = _home(str(version.raw["manifest_sha256"])) / "adapter.gguf"
        return _once(path, lambda new: write_adapter_gguf(version.folder, config, new))

    def _base(self, version: Version) -> Path:
        def write(path: Path) -> None:
            base = load_base(version.folder, torch.device("cpu"), torch.float32)
            license = str(version.raw.get("license") or "")
            write_base_gguf(base.model, base.tokenizer, path, self.quantization, name=version.reference, license=license)

        return _once(_home(str(version.raw["manifest_sha256"])) / f"{self.quantization}.gguf", write)

    def _teacher(self) -> Path:
        files, license = self.materials.teacher_files, self.materials.family.teacher.license

        def write(path: Path) -> None:
            teacher = self.materials.teacher
            write_base_gguf(teacher.model, teacher.tokenizer, path, self.quantization, name=TEACHER, license=license)
            teacher.release()

        key = cache_key(files.sha256, self.materials.family.teacher.chat_template)
        return _once(_home(key) / f"{self.quantization}.gguf", write)


def _home(key: str) -> Path:
    return home() / "serve" / f"{key}-{FORMAT}"


def _once(path: Path, write: Callable[[Path], object]) -> Path:
    """The file, written where it is missing; its writer renames it into place when it is whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    return path


# ------------------------------------------------------------------------------------------------------------- engines


class Engine:
    """One llama.cpp server with the adapters that it was started with, and how many requests it answers."""

    def __init__(self, server: LlamaServer, adapters: tuple[str, ...], slots: int) -> None:
        self.server, self.adapters, self.turns = server, adapters, AdapterScheduler(slots)
        self.users, self.retired = 0, False

    def has(self, target: Target) -> bool:
        return target.version is None or target.reference in self.adapters

    def lease(self, target: Target) -> Lease:
        chosen = self.adapters.index(target.reference) if target.version else None
        # Only the likelihoods that a request names: no limits of llama.cpp's own on what may be sampled.
        extra = {"lora": lora_choice(len(self.adapters), chosen), "top_k": 0, "min_p": 0.0}
        return Lease(f"{self.server.url}/v1", extra, self.server.headers)


class Pool:
    """``async with pool.lease(target) as lease:`` an engine that has the target, and one of its slots."""

    def __init__(self, files: GgufFiles, limits: Limits, threads: int | None = None) -> None:
        self.files, self.limits, self.threads = files, limits, threads
        self._engines: dict[str, Engine] = {}  # by base: those that get requests
        self._draining: set[Engine] = set()  # older ones, while they still answer
        self._closing: set[asyncio.Task[None]] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        """Raises: ServeError where no engine can be started."""
        engine = await self._engine_of(target)
        engine.users += 1  # nothing is awaited between, so it cannot have been closed
        try:
            async with engine.turns.slot(target.reference):
                yield engine.lease(target)
        finally:
            engine.users -= 1
            self._close_if_done(engine)

    def count(self) -> int:
        """Engines in memory."""
        return len(self._engines) + len(self._draining)

    async def close(self) -> None:
        """Every engine, also one that is only just starting."""
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        self._draining.update(self._engines.values())
        self._engines.clear()
        await asyncio.gather(*self._closing, *map(self._close, list(self._draining)))

    async def _engine_of(self, target: Target) -> Engine:
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
                await asyncio.shield(task)  # whoever leaves now leaves the engine to the next
            except ServeError:
                if ours:  # another's may have failed over its own version
                    raise

    async def _replace(self, target: Target) -> None:
        """A new engine of a base takes the requests of the one before, which drains."""
        before = self._engines.get(target.base)
        engine = await asyncio.to_thread(self._start, target, before.adapters if before else ())
        self._engines[target.base] = engine
        if before is not None:
            before.retired = True
            self._draining.add(before)
            self._close_if_done(before)

    def _start(self, target: Target, asked: tuple[str, ...]) -> Engine:
        """Raises: ServeError, whatever the files or llama.cpp say."""
        try:
            adapters = self._adapters(target, asked) if target.version else {}
            server = LlamaServer(
                self.files.base(target.base),
                adapters=list(adapters.values()),
                parallel=self.limits.parallel,
                context=self.limits.context,
                threads=self.threads,
            )
        except Exception as error:  # of torch, gguf, the disk: the request fails, the server goes on
            raise ServeError(f"no engine for {target.reference} could be started ({type(error).__name__}: {error})") from error
        return Engine(server, tuple(adapters), self.limits.parallel)

    def _adapters(self, target: Target, asked: tuple[str, ...]) -> dict[str, Path]:
        """Files by reference; another version's that cannot be made is left out, and fails who asks for it."""
        found = {}
        for version in self._wanted(target, asked):
            try:
                found[version.reference] = self.files.adapter(version)
            except Exception:
                if version.reference == target.reference:
                    raise
        return found

    def _wanted(self, target: Target, asked: tuple[str, ...]) -> Iterator[Version]:
        """What may be asked for by name on this base, what was lately, and the target."""
        registry, seen = self.files.registry, set()
        names = dict.fromkeys(one.name for one in registry.versions("student") if one.base == target.base)
        likely = [reference for name in names for reference in (name, f"{name}@{CHAMPION}")]
        for reference in (target.reference, *likely, *asked[:KEPT]):
            with contextlib.suppress(RegistryError):  # no champion, no sound version, or gone meanwhile
                version = registry.resolve(reference)
                if version.base == target.base and version.reference not in seen:
                    seen.add(version.reference)
                    yield version

    def _close_if_done(self, engine: Engine) -> None:
        if engine.retired and not engine.users:
            task = asyncio.create_task(self._close(engine))  # of its own: whoever left last may be cancelled
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, engine: Engine) -> None:
        await asyncio.to_thread(engine.server.close)
        self._draining.discard(engine)
