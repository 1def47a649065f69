"""``factory serve``: the app with all that it needs, and uvicorn around it.

run(Registry("registry"), specs, specs.family("default"), Options(port=8000))
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from factory.config.schema import FamilySpec, Specs
from factory.data.router import DomainRouter
from factory.errors import ServeError
from factory.pipeline.context import FamilyModels, make_context, resolve_models
from factory.pipeline.dataset import load_router
from factory.registry.registry import Registry
from factory.serve.agreement import Agreements
from factory.serve.app import gateway
from factory.serve.engines import Engines, GgufFiles, Pool, Upstream
from factory.serve.limits import Keys, Limits
from factory.serve.resolver import ModelResolver
from factory.serve.scoring import Scorer

Quantization = Literal["f16", "q8_0", "q4"]


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Path | None = None
    upstream: str | None = None
    upstream_key: Path | None = None  # a file that holds nothing else
    quantization: Quantization = "q8_0"
    threads: int | None = None
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)


def make_app(registry: Registry, specs: Specs, family: FamilySpec, options: Options) -> FastAPI:
    """``make_app(registry, specs, family, Options())``: nothing is loaded yet but keys and code.

    Raises: ServeError for a keys file, or a file of the upstream's key, that cannot be read.
    """
    materials = _Models(registry, specs, family, options.device)
    files = GgufFiles(registry, materials, options.quantization)
    return gateway(
        ModelResolver(registry, materials),
        _engines(files, options),
        Scorer(registry, materials),
        Agreements(registry, specs, materials.device),
        limits=options.limits,
        keys=Keys.load(options.api_keys),
    )


class _Models:
    """The family's models and router, loaded when they are first used."""

    def __init__(self, registry: Registry, specs: Specs, family: FamilySpec, device: str) -> None:
        self.family, self.context = family, make_context(specs, family, registry=registry, device=device)
        self.device = self.context.device

    @cached_property
    def models(self) -> FamilyModels:
        return resolve_models(self.family, self.context.specs.root, self.device)

    @cached_property
    def router(self) -> DomainRouter:
        return load_router(self.context, self.models)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.models, name)


def run(app: FastAPI, listening: socket.socket, limits: Limits) -> None:
    """``run(app, listen("127.0.0.1", 8000), limits)``: until a signal; what is being answered then is answered first."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    uvicorn.Server(config(app, limits)).run(sockets=[listening])


def config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """What uvicorn is told. It logs no requests: a query may hold what is nobody's business."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        timeout_keep_alive=30,
    )


def listen(options: Options) -> socket.socket:
    """``listen(Options(port=0))``: an open socket, on any free port where it is 0.

    Raises: ServeError where the address is taken or none of this machine's, or would open the server to all without keys.
    """
    if options.api_keys is None and not is_loopback(options.host):
        raise ServeError(f"--host {options.host} opens the server to other machines: give --api-keys FILE as well")
    listening = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(256)  # whoever comes before uvicorn accepts is kept
    except OSError as error:
        listening.close()
        where = f"{options.host} port {options.port}"
        raise ServeError(f"cannot listen on {where}: {error.strerror or error}; choose another --port or --host") from None
    return listening


def is_loopback(host: str) -> bool:
    """``is_loopback("127.0.0.1")``: only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _engines(files: GgufFiles, options: Options) -> Engines:
    if options.upstream is None:
        return Pool(files, options.limits, options.threads)
    try:
        key = options.upstream_key.read_text(encoding="utf-8").strip() if options.upstream_key else None
    except (OSError, UnicodeDecodeError):
        raise ServeError(f"--upstream-key {options.upstream_key} cannot be read") from None
    if not options.upstream.startswith(("http://", "https://")):
        raise ServeError(f"--upstream {options.upstream}: expected an address, as in http://127.0.0.1:8001/v1")
    return Upstream(options.upstream, key)
