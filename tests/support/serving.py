"""A running server for tests: uvicorn in a thread, on a free port of a workplace whose students are published."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file, save_file

from factory.config.load import load_specs
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.server import Options, config, listen, make_app

OWN = ("kind", "name", "version", "created", "files", "base_sha256", "manifest_sha256", "records")  # the registry writes these


@contextmanager
def running(place: Any, **options: Any) -> Iterator[str]:
    """``with running(place, limits=Limits(parallel=1)) as url:`` until its requests are answered and its engines closed."""
    specs, chosen = load_specs(place.domains), Options(port=0, **{"threads": 1} | options)
    app = make_app(Registry(place.root / "registry"), specs, specs.family("default"), chosen)
    with listen(chosen) as listening:
        server = uvicorn.Server(config(app, chosen.limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def publish_another(place: Any, seed: int, name: str = "plants-mini", **changes: Any) -> Version:
    """A version with another adapter on the same base, of what ``plants-mini@1`` is otherwise."""
    registry = Registry(place.root / "registry")
    first = registry.resolve("plants-mini@1")
    with registry.stage(name) as folder:
        shutil.copytree(
            first.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "records.jsonl")
        )
        weights = folder / "adapter_model.safetensors"
        random = torch.Generator().manual_seed(seed)
        noisy = {key: value + torch.randn(value.shape, generator=random) for key, value in load_file(weights).items()}
        weights.unlink()
        save_file(noisy, weights)
        manifest = {key: value for key, value in first.manifest.items() if key not in OWN}
        return registry.publish("student", name, folder, manifest | changes)
