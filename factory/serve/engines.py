"""Where answers are generated, and the GGUF files that engines on this machine load (pool.py runs them).

async with engines.lease(resolver.resolve("healthcare-small", caller)) as lease:
    ...  # POST to lease.url with lease.extra in the body
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from factory.cache import cache_key, home, replace_file, sha256
from factory.config.quantization import DEFAULT, Quantization
from factory.export.gguf import own_quantization, write_adapter_gguf, write_base_gguf
from factory.inference import load_version
from factory.models.folders import load_config
from factory.pipeline.context import FamilyModels
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.resolver import TEACHER, Target

FORMAT = 3  # raised when the GGUF writers change, so that older files are written again
CACHE_BYTES = 2  # of a number in llama.cpp's cache


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

    def bytes_per_token(self, reference: str) -> int:
        """``files.bytes_per_token("default-small-base@1")``: what an engine's cache takes for each token of its context."""
        teacher = reference == TEACHER
        found = self.load_models().teacher.config if teacher else load_config(self.registry.resolve(reference).folder)
        config = found.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * CACHE_BYTES * config.num_hidden_layers * heads * width)  # keys and values

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
