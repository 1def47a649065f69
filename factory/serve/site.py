"""The pages ``/`` and ``/docs``, their files, and the JSON behind them: catalogue, card, where student and teacher agree.

    app.include_router(site(registry, Agreements(registry, specs, device), guard=caller))

    GET  /, /docs                     index.html, docs.html; /static/* are their scripts, style sheet and icon
    GET  /factory/catalogue           the students that the key gives access to: versions, aliases, verdicts, sizes, metrics
    GET  /factory/card/{reference}    one version: the same facts, and its card as HTML
    POST /factory/agreement           {"model", "prompt", "text": an answer or null, "by": "student" or "teacher"}

The pages' own files need no key, since a browser asks for them without one. The page chats through the app's ``/v1/models`` and
``/v1/chat/completions``. Errors are APIErrors, which the app answers in OpenAI's shape.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from factory.errors import RegistryError, ServeError
from factory.registry.registry import Registry
from factory.serve.auth import Caller
from factory.serve.catalogue import card, catalogue
from factory.serve.limits import APIError
from factory.serve.resolver import TEACHER, find_version

if TYPE_CHECKING:
    from factory.serve.agreement import Agreements

STATIC = Path(__file__).parent / "web"
# Nothing from other origins and nothing inline: what a card or a model writes can neither run nor load anything.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated, so that an update is seen at once
}


class AgreementRequest(BaseModel):
    """An answer to compare, or who writes it first."""

    model: str = Field(max_length=200, description="A student: NAME, NAME@3 or NAME@champion.")
    prompt: str = Field(max_length=20_000, description="The question.")
    text: str | None = Field(default=None, max_length=20_000, description="The answer. Without it, `by` writes one.")
    by: Literal["student", "teacher"] = Field(default="student", description="Who wrote, or writes, the answer.")


def site(registry: Registry, agreements: Agreements, guard: Callable[..., Any] = lambda: Caller()) -> APIRouter:
    """``app.include_router(site(registry, agreements, guard=caller))``: everything that the page needs except the chat.

    ``guard`` is a FastAPI dependency that returns the Caller of a request or raises APIError; by default all is open.
    """
    router, allowed = APIRouter(), Depends(guard)
    files = {path.name: path for path in STATIC.iterdir() if path.is_file()}

    @router.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return _file(files["index.html"])

    @router.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return _file(files["docs.html"])

    @router.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> FileResponse:
        if name not in files:
            raise APIError(404, f"no file {name!r}", code="not_found")
        return _file(files[name])

    @router.get("/factory/catalogue", summary="Students, their versions and metrics")
    def catalogue_(caller: Caller = allowed) -> dict[str, Any]:
        with _api_errors():
            return catalogue(registry, caller.may)

    @router.get("/factory/card/{reference}", summary="One version and its card")
    def card_(reference: str, caller: Caller = allowed) -> dict[str, Any]:
        find_version(registry, reference, caller)
        with _api_errors():
            return card(registry, reference)

    @router.post("/factory/agreement", summary="Where student and teacher agree")
    async def agreement(request: AgreementRequest, caller: Caller = allowed) -> dict[str, Any]:
        find_version(registry, request.model, caller)
        caller.require(TEACHER)
        with _api_errors():
            return asdict(await agreements.compare(request.model, request.prompt, request.text, request.by))

    return router


def _file(path: Path) -> FileResponse:
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=media_type, headers=HEADERS)


@contextmanager
def _api_errors() -> Iterator[None]:
    """What a client can mend has a status of its own; any other FactoryError is a 503."""
    try:
        yield
    except RegistryError as error:
        raise APIError(404, str(error), code="model_not_found", param="model") from None
    except ServeError as error:
        raise APIError(400, str(error), code="invalid_value", param="prompt") from None
