"""``factory serve`` and ``factory key``."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.context import choose
from factory.cli.options import DOMAINS, REGISTRY, TEACHER, Device, Domains, Family, RegistryFolder
from factory.cli.terminal import load_libraries
from factory.config.cascades import cascade_domains
from factory.config.quantization import Quantization
from factory.errors import ServeError
from factory.registry.registry import Registry

if TYPE_CHECKING:
    from factory.config.schema import FamilySpec


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 picks a free port.")] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="Another name that clients call this server by; repeatable."),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", metavar="FILE", help="YAML or JSON: API keys or their hashes (`factory key`), and their models."
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", metavar="URL", help="An OpenAI-compatible server that runs the models, such as vLLM."),
    ] = None,
    upstream_key: Annotated[
        Path | None, typer.Option("--upstream-key", metavar="FILE", help="Holds that server's key and nothing else.")
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option("--quantization", help="Of the bases; each one's own grid, else q8_0, if left out.")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Requests per engine at once.")] = 4,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Requests in all; any more get status 429 and Retry-After.")
    ] = 128,
    queue_per_key: Annotated[
        int | None, typer.Option("--queue-per-key", min=1, help="Requests of one API key; half of --queue if left out.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option("--memory", parser=read_bytes, metavar="SIZE", help="Of models: 4GB; half of the machine's if left out."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Per engine; every core if left out.")] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes per request.")] = 1_000_000,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Prompt tokens per request.")] = 1024,
    max_output: Annotated[int, typer.Option("--max-output", min=1, help="Completion tokens per request.")] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds per request.")] = 120.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse request fields that have no effect; else a header names them.")
    ] = False,
    family: Family = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    device: Device = "auto",
) -> None:
    """Serve students over HTTP with OpenAI's API, and a web page to try them on. Ctrl-C stops it."""
    specs, chosen, _ = choose(domains, family=family)
    here, server = Registry(registry), _load_server()
    limits = server.Limits(max_body, max_prompt, max_output, timeout, parallel, queue, queue_per_key, strict, memory=memory)
    hosts = tuple(allowed_host or ())
    options = server.Options(host, port, hosts, api_keys, upstream, upstream_key, quantization, threads, device, limits)
    with server.listen(options) as listening:
        app = server.make_app(here, specs, chosen, options)
        typer.echo(_announcement(here, chosen, f"http://{host}:{listening.getsockname()[1]}"))
        server.run(app, listening, limits)


def read_bytes(text: str) -> int:
    """``read_bytes("4GB")``. Raises: typer.BadParameter, so that the command ends with exit code 2."""
    from factory.config.quantities import BYTES, read_quantity

    found = read_quantity(text, BYTES)
    if found == text and text.isdecimal():
        found = int(text)
    if not isinstance(found, int) or found <= 0:
        raise typer.BadParameter(f"{text!r}: expected 4GB, 600MB or a number of bytes")
    return found


def key(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Students by name, `teacher` and models elsewhere that it may use; all if left out."),
    ] = None,
) -> None:
    """Make a random API key, and the line for the file of `factory serve --api-keys`, which holds its hash instead of it."""
    from factory.serve.auth import new_key

    made, entry = new_key()
    typer.echo(f"key, for who calls the server, and shown only now: {made}")
    typer.echo(f"line for the file of keys: {entry}: {json.dumps(models or '*')}")


def _announcement(registry: Registry, family: FamilySpec, url: str) -> str:
    students = sorted({version.name for version in registry.versions("student")})
    names = [*students, *sorted(cascade_domains(family, students)), TEACHER, "auto"]
    return f"serving {', '.join(names)} at {url}/v1; web page: {url}"


def _load_server() -> ModuleType:
    """Raises: ServeError where the packages of the extra are not installed."""
    load_libraries(shown=True)
    try:
        from factory.serve import server
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed: pip install 'student-factory[serve]'") from error
    return server
