"""``factory serve``: builds the app and runs it with uvicorn.

with listen(options) as listening:
    run(make_app(Registry("registry"), specs, specs.family("default"), options), listening, options.limits)
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from torch import nn

from factory.config.quantization import Quantization
from factory.config.schema import FamilySpec, Specs
from factory.data.router import DomainRouter
from factory.errors import ServeError
from factory.models.device import compute_dtype
from factory.models.references import is_cached
from factory.pipeline.context import BuildContext, FamilyModels, make_context, resolve_models
from factory.pipeline.dataset import load_router
from factory.registry.registry import Registry
from factory.serve.agreement import Agreements
from factory.serve.app import gateway
from factory.serve.auth import KeyFile
from factory.serve.connections import BoundedConnection
from factory.serve.engines import Engines, GgufFiles, Upstream
from factory.serve.hosts import host_name, is_loopback
from factory.serve.limits import Limits
from factory.serve.pool import Pool
from factory.serve.prompts import Prompts
from factory.serve.readiness import Readiness
from factory.serve.request_ids import handler_with_ids
from factory.serve.resolver import ModelResolver
from factory.serve.scoring import Scorer


@dataclass(frozen=True)
class Options:
    """The options of ``factory serve``."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    api_keys: Path | None = None
    upstream: str | None = None
    upstream_key: Path | None = None  # a file with the key and nothing else
    quantization: Quantization | None = None  # of every model; None: a base's own grid, q8_0 without one
    threads: int | None = None
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)


def make_app(registry: Registry, specs: Specs, family: FamilySpec, options: Options) -> FastAPI:
    """``make_app(registry, specs, family, Options())``: loads keys and code; models and router follow at their first use.

    Raises: ServeError if the file of API keys, or of the upstream's key, cannot be read, the key of a model elsewhere is not
        set, or a host is not a name.
    """
    context = make_context(specs, family, registry=registry, device=options.device)

    load_models = cache(partial(resolve_models, family, specs.root, context.device))
    load_fast_router = cache(lambda: _load_fast_router(context, load_models()))
    engines = _engines(GgufFiles(registry, load_models, options.quantization), options)
    return gateway(
        ModelResolver(registry, family, load_fast_router, [spec.name for spec in specs.domains.values() if spec.private]),
        engines,
        Prompts(registry, load_models, options.limits.prompt_tokens),
        Scorer(registry, load_models, context.device, options.limits.model_memory),
        Agreements(registry, specs, context.device),
        limits=options.limits,
        keys=KeyFile(options.api_keys),
        readiness=Readiness(registry, partial(is_cached, family.files, specs.root), engines),
        hosts=host_names(options),
    )


def _load_fast_router(context: BuildContext, models: FamilyModels) -> DomainRouter:
    """The family's router. In bfloat16 the encoder takes half as long; 300 real prompts went where they go in float32."""
    router = load_router(context, models)
    if isinstance(models.encoder, nn.Module):
        models.encoder.to(compute_dtype(models.device))
    return router


def run(app: FastAPI, listening: socket.socket, limits: Limits) -> None:
    """``run(app, listen(options), options.limits)``: until SIGINT or SIGTERM; open requests are answered first."""
    logging.basicConfig(handlers=[handler_with_ids()], level=logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a client that has left
    uvicorn.Server(config(app, limits)).run(sockets=[listening])


def config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """``uvicorn.Server(config(app, limits))``: without an access log, because a query string may hold private text."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        http=BoundedConnection,
        timeout_keep_alive=limits.transfer_seconds,
        limit_concurrency=limits.connections + 1,  # uvicorn refuses at this number, not above it
    )


def listen(options: Options) -> socket.socket:
    """``listen(Options(port=0))``: a listening socket; port 0 is any free port.

    Raises: ServeError if the address is taken or not of this machine, or if other machines could connect without a key.
    """
    if options.api_keys is None and not is_loopback(options.host):
        raise ServeError(f"--host {options.host} lets other machines connect: add --api-keys FILE, or use 127.0.0.1")
    listening = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(256)  # clients that connect before uvicorn is ready wait
    except OSError as error:
        listening.close()
        address = f"{options.host} port {options.port}"
        raise ServeError(f"cannot listen on {address}: {error.strerror or error}; choose another --port or --host") from None
    return listening


def host_names(options: Options) -> frozenset[str]:
    """``host_names(Options(allowed_hosts=("factory.example",)))``: what a request's ``Host`` may be, in lower case.

    Raises: ServeError for an ``--allowed-host`` that is not a bare name.
    """
    for host in options.allowed_hosts:
        if not host or host_name(host) != host.lower():
            raise ServeError(f"--allowed-host {host}: expected a name without scheme and port, as in factory.example")
    return frozenset(host.lower() for host in (options.host, *options.allowed_hosts))


def _engines(files: GgufFiles, options: Options) -> Engines:
    if options.upstream is None:
        return Pool(files, options.limits, options.threads)
    try:
        key = options.upstream_key.read_text(encoding="utf-8").strip() if options.upstream_key else None
    except (OSError, UnicodeDecodeError):
        raise ServeError(f"--upstream-key {options.upstream_key} cannot be read") from None
    if not options.upstream.startswith(("http://", "https://")):
        raise ServeError(f"--upstream {options.upstream}: expected a URL, as in http://127.0.0.1:8001/v1")
    return Upstream(options.upstream, key)
