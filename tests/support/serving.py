"""A running server for tests: uvicorn in a thread, on a free port, over the students of a workplace."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from safetensors.torch import load_file, save_file

from factory.config.load import load_specs
from factory.evaluation.confidence import Confidence
from factory.models.embedding_head import EmbeddingHead
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.server import Options, config, listen, make_app
from support import specs


@contextmanager
def running(workplace: Any, **options: Any) -> Iterator[str]:
    """``with running(workplace, limits=Limits(parallel=1)) as url:``; at its end requests are answered and engines closed."""
    specs, chosen = load_specs(workplace.domains), Options(port=0, **{"threads": 1} | options)
    with listening_app(make_app(Registry(workplace.root / "registry"), specs, specs.family("default"), chosen), chosen) as url:
        yield url


@contextmanager
def running_students(registry: Registry, **options: Any) -> Iterator[str]:
    """``with running_students(registry) as url:`` the same over a registry alone; nobody can ask its teacher or `auto`."""
    domains = specs.load(registry.root.parent)
    chosen = Options(port=0, **{"threads": 1} | options)
    with listening_app(make_app(registry, domains, domains.family("small"), chosen), chosen) as url:
        yield url


@contextmanager
def listening_app(app: FastAPI, chosen: Options) -> Iterator[str]:
    """``with listening_app(app, Options(port=0)) as url:``"""
    with listen(chosen) as listening:
        server = uvicorn.Server(config(app, chosen.limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def publish_again(
    registry: Registry,
    name: str = "plants-mini",
    *,
    seed: int | None = None,
    card: str | None = None,
    head: EmbeddingHead | None = None,
    confidence: Confidence | None = None,
    **changes: Any,
) -> Version:
    """``publish_again(registry, verdict=...)``: a copy of ``plants-mini@1``; a seed adds noise to its adapter."""
    first = registry.resolve("plants-mini@1")
    ours = shutil.ignore_patterns("manifest.json", "records.jsonl")
    with registry.stage(name) as folder:
        shutil.copytree(first.folder, folder, dirs_exist_ok=True, ignore=ours, copy_function=shutil.copyfile)
        if seed is not None:
            add_noise(folder / "adapter_model.safetensors", seed)
        if head is not None:
            head.save(folder)
        if confidence is not None:
            confidence.save(folder)
        if card is not None:
            (folder / "README.md").write_text(card)
        return registry.publish(first.manifest.model_copy(update={"name": name} | changes), folder)


def publish_another(workplace: Any, seed: int, name: str = "plants-mini", **changes: Any) -> Version:
    """``publish_another(workplace, seed=2)``: a version with another adapter on the same base."""
    return publish_again(Registry(workplace.root / "registry"), name, seed=seed, **changes)


def add_noise(weights: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    noisy = {key: value + torch.randn(value.shape, generator=random) for key, value in load_file(weights).items()}
    weights.unlink()
    save_file(noisy, weights)
