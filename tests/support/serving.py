"""A running server for tests: uvicorn in a thread, on a free port, over a workplace with published students."""

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
from factory.registry.manifest import StudentManifest
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.server import Options, config, listen, make_app

REGISTRY_FIELDS = {"version", "created", "files", "base_sha256", "manifest_sha256"}


@contextmanager
def running(place: Any, **options: Any) -> Iterator[str]:
    """``with running(place, limits=Limits(parallel=1)) as url:``; at the end open requests are answered and engines closed."""
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
    """``publish_another(place, 2, notice="...")``: ``plants-mini@1`` with noise on its adapter, published."""
    registry = Registry(place.root / "registry")
    first = registry.resolve("plants-mini@1")
    with registry.stage(name) as folder:
        copied = shutil.ignore_patterns("manifest.json", "records.jsonl")
        shutil.copytree(first.folder, folder, dirs_exist_ok=True, ignore=copied)
        weights = folder / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        noisy = {key: value + torch.randn(value.shape, generator=generator) for key, value in load_file(weights).items()}
        weights.unlink()  # published files are read-only
        save_file(noisy, weights)
        manifest = first.manifest.model_dump(exclude=REGISTRY_FIELDS) | {"name": name} | changes
        return registry.publish(StudentManifest.model_validate(manifest), folder)
