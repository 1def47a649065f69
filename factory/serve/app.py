"""The app: OpenAI's routes over the registry. One request's way, in order:

key → place in the queue → who answers (names.py) → tokens counted (prompts.py) → an engine's slot (pool.py)
    → the engine's answer, or its events (relay.py) → OpenAI's (answers.py), with headers that say what happened

app = gateway(resolver, engines, prompts, scorer, agreements, limits=Limits(), keys=Keys({}))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from factory import __version__
from factory.errors import FactoryError
from factory.serve.agreement import Agreements
from factory.serve.auth import Caller, Keys
from factory.serve.engine_client import EngineClient
from factory.serve.engines import Engines, Lease
from factory.serve.limits import APIError, Limits, Queue
from factory.serve.metrics import Metrics
from factory.serve.middleware import Guard, refused
from factory.serve.prompts import Prompts
from factory.serve.resolver import AUTO, ModelResolver, Target
from factory.serve.responses import Answer, ChatAnswer, TextAnswer
from factory.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, Json, embedding_vector
from factory.serve.scoring import Scorer
from factory.serve.site import site
from factory.serve.streams import EventStream, RequestContext, as_api_error, cancel_on_disconnect, status_of


class ErrorFacts(BaseModel):
    """As OpenAI has them."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error, of whatever status."""

    error: ErrorFacts


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "The request is wrong, or asks for what is not offered",
        401: "No key, or an unknown one",
        403: "The key does not open this model",
        404: "No such model",
        413: "The body is too large",
        429: "The queue is full",
        502: "The engine failed",
        503: "No engine can answer",
        504: "The time is over",
    }.items()
}


class Gateway:
    """What the routes share: who answers, with which engine, within which limits."""

    def __init__(
        self, resolver: ModelResolver, engines: Engines, prompts: Prompts, scorer: Scorer, limits: Limits, keys: Keys
    ) -> None:
        self.resolver, self.engines, self.prompts, self.scorer = resolver, engines, prompts, scorer
        self.limits, self.keys = limits, keys
        self.relay, self.queue = EngineClient(), Queue(limits.queue)
        self.metrics = Metrics(lambda: self.queue.length, engines.count)

    def caller(self, request: Request) -> Caller:
        """The dependency of every route that needs a key. Raises: APIError 401."""
        return self.keys.caller(request.headers.get("authorization"))

    async def close(self) -> None:
        await self.engines.close()
        await self.relay.close()
        self.resolver.close()
        self.scorer.close()

    # ------------------------------------------------------------------------------------------------------- requests

    async def chat(self, http: Request, caller: Caller, asked: ChatRequest) -> Response:
        async with AsyncExitStack() as stack:
            visit = stack.enter_context(self._visit("chat/completions"))
            async with cancel_on_disconnect(http.receive, visit):
                target = await self._target(visit, caller, asked)
                most = self._most(asked.max_tokens, asked.max_completion_tokens)
                await asyncio.to_thread(self.prompts.chat_tokens, target, asked.turns())
                self._check_bias(target, asked.logit_bias)
                return await self._answer(stack, visit, target, ChatAnswer(asked, target), asked, asked.bodies(most))

    async def complete(self, http: Request, caller: Caller, asked: CompletionRequest) -> Response:
        async with AsyncExitStack() as stack:
            visit = stack.enter_context(self._visit("completions"))
            async with cancel_on_disconnect(http.receive, visit):
                target = await self._target(visit, caller, asked)
                most = self._most(asked.max_tokens, None, least=0 if asked.echo else 1)
                ids = [await asyncio.to_thread(self.prompts.ids, target, prompt, "prompt") for prompt in asked.prompts]
                self._check_bias(target, asked.logit_bias)
                answer = TextAnswer(asked, target)
                if not asked.echo:
                    return await self._answer(stack, visit, target, answer, asked, asked.bodies(most))
                asked.check_echo()
                scored = [
                    await self.scorer.score(
                        target,
                        one,
                        max_tokens=most,
                        temperature=asked.temperature or 0.0,
                        seed=asked.seed,
                        top=asked.logprobs or 0,
                    )
                    for one in ids
                ]
                content = answer.scored(scored)
                self._count(target, answer)
                return JSONResponse(content, headers=headers_of(target))

    async def embed(self, http: Request, caller: Caller, asked: EmbeddingRequest) -> Response:
        with self._visit("embeddings") as visit:
            async with cancel_on_disconnect(http.receive, visit):
                target = await self._target(visit, caller, asked)
                ids = [await asyncio.to_thread(self.prompts.ids, target, one, "input") for one in asked.inputs]
                vectors = await self.scorer.embed(target, ids)
        count = sum(map(len, ids))
        self.metrics.tokens.labels(target.reference, "prompt").inc(count)
        data = [
            {"object": "embedding", "index": index, "embedding": embedding_vector(vector, asked.encoding_format)}
            for index, vector in enumerate(vectors.tolist())
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        content = {"object": "list", "model": target.reference, "data": data, "usage": usage}
        return JSONResponse(content, headers=headers_of(target))

    # ---------------------------------------------------------------------------------------------------- their steps

    @contextmanager
    def _visit(self, route: str) -> Iterator[RequestContext]:
        """A place in the queue, counted when it is left. Raises: APIError 429."""
        now = asyncio.get_running_loop().time()
        visit = RequestContext(route, now, now + self.limits.seconds)
        try:
            self.queue.enter(self.limits.parallel)
        except APIError as refusal:
            self.metrics.requests.labels(route, "", str(refusal.status)).inc()
            raise
        try:
            yield visit
        except Exception as error:
            visit.status = status_of(error)
            raise
        finally:
            seconds = asyncio.get_running_loop().time() - now
            self.queue.leave(seconds)
            self.metrics.requests.labels(route, visit.model, str(visit.status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)

    async def _target(
        self, visit: RequestContext, caller: Caller, asked: ChatRequest | CompletionRequest | EmbeddingRequest
    ) -> Target:
        """Raises: APIError 403 for a model that the key does not open, asked for or picked by the router."""
        model = asked.model
        if model == AUTO:
            target = await self.resolver.route(asked.question)
            self.metrics.routed.labels(target.domain or "none", target.name).inc()
        elif not caller.may(name := model.partition("@")[0]):
            raise not_allowed(name)
        else:
            target = self.resolver.resolve(model)
        if not caller.may(target.name):
            raise not_allowed(target.name)
        visit.model = target.reference
        return target

    def _most(self, *given: int | None, least: int = 1) -> int:
        """How many tokens may be written. Raises: APIError 400 outside the limit."""
        asked = next((one for one in reversed(given) if one is not None), self.limits.output_tokens)
        if not least <= asked <= self.limits.output_tokens:
            message = f"max_tokens is {asked}; from {least} to {self.limits.output_tokens} may be asked for here"
            raise APIError(400, message, code="invalid_value", param="max_tokens")
        return asked

    def _check_bias(self, target: Target, bias: dict[int, float] | None) -> None:
        if bias:
            self.prompts.check_vocabulary(target, list(bias), "logit_bias")

    async def _answer(
        self,
        stack: AsyncExitStack,
        visit: RequestContext,
        target: Target,
        answer: Answer,
        asked: Generation,
        bodies: list[Json],
    ) -> Response:
        """From here on an engine works; of a stream it goes on working after this has returned."""
        lease = await stack.enter_async_context(self.engines.lease(target))
        bodies = [body | {"model": target.reference} for body in bodies]
        if not asked.stream:
            content = answer.whole([await self.relay.answer(lease, answer.path, body) for body in bodies])
            self._count(target, answer)
            return JSONResponse(content, headers=headers_of(target))
        first = await stack.enter_async_context(self.relay.events(lease, answer.path, bodies[0]))
        events = self._events(first, lease, answer.path, bodies[1:])
        chunks = self._chunks(visit, target, answer, events, len(bodies), asked.wants_usage)
        return EventStream(chunks, stack.pop_all(), visit, headers_of(target))

    async def _events(
        self, first: AsyncIterator[Json], lease: Lease, path: str, further: list[Json]
    ) -> AsyncIterator[tuple[int, Json]]:
        """Each event and its prompt's number: what the engine refuses of the first prompt is known before a byte is sent."""
        async for content in first:
            yield 0, content
        for index, body in enumerate(further, start=1):
            async with self.relay.events(lease, path, body) as events:
                async for content in events:
                    yield index, content

    async def _chunks(
        self,
        visit: RequestContext,
        target: Target,
        answer: Answer,
        events: AsyncIterator[tuple[int, Json]],
        prompts: int,
        wants_usage: bool,
    ) -> AsyncIterator[Json]:
        waiting = True
        async for index, content in events:
            if waiting:
                self.metrics.first.observe(asyncio.get_running_loop().time() - visit.begun)
                waiting = False
            for chunk in answer.chunks(index, content):
                yield chunk
        self._count(target, answer)
        for chunk in answer.last(prompts, wants_usage):
            yield chunk

    def _count(self, target: Target, answer: Answer) -> None:
        for kind in ("prompt", "completion"):
            self.metrics.tokens.labels(target.reference, kind).inc(answer.usage[f"{kind}_tokens"])


def not_allowed(name: str) -> APIError:
    return APIError(403, f"this API key does not open {name}", code="model_not_allowed", param="model")


def headers_of(target: Target) -> dict[str, str]:
    """What happened: who answered, why, and what must be said beside the answer; in ASCII, the notice percent-encoded."""
    facts = {
        "x-factory-version": target.reference,
        "x-factory-domain": target.domain,
        "x-factory-score": target.score,
        "x-factory-threshold": target.threshold,
        "x-factory-why": target.reason,
        "x-factory-notice": target.notice or None,
        "server-timing": f"route;dur={target.routing_ms}" if target.routing_ms is not None else None,
    }
    return {name: quote(str(value), safe=" ,.;:!?'()/@-=") for name, value in facts.items() if value is not None}


# --------------------------------------------------------------------------------------------------------------- routes


def gateway(
    resolver: ModelResolver,
    engines: Engines,
    prompts: Prompts,
    scorer: Scorer,
    agreements: Agreements,
    *,
    limits: Limits,
    keys: Keys,
) -> FastAPI:
    """``gateway(resolver, engines, prompts, scorer, agreements, limits=..., keys=...)``: engines are closed when it stops."""
    shared = Gateway(resolver, engines, prompts, scorer, limits, keys)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await shared.close()

    app = FastAPI(title="Student factory", version=__version__, lifespan=lifespan, responses=ERRORS)
    app.add_middleware(Guard, body_bytes=limits.body_bytes)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.include_router(openai_routes(shared))
    app.include_router(own_routes(shared))
    app.include_router(site(resolver.registry, agreements, guard=shared.caller))
    return app


def openai_routes(shared: Gateway) -> APIRouter:
    """``/v1``, as the ``openai`` package asks it."""
    router, allowed = APIRouter(prefix="/v1", tags=["OpenAI"]), Depends(shared.caller)

    @router.get("/models", summary="What may be asked")
    def models(caller: Caller = allowed) -> dict[str, Any]:
        return {"object": "list", "data": shared.resolver.list_models(caller)}

    @router.get("/models/{model:path}", summary="What a name means now")
    def model(model: str, caller: Caller = allowed) -> dict[str, Any]:
        if model != AUTO and not caller.may(name := model.partition("@")[0]):
            raise not_allowed(name)
        return shared.resolver.describe(model)

    @router.post("/chat/completions", summary="An answer", response_model=None, responses={200: {"model": ChatCompletion}})
    async def chat(asked: ChatRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.chat(http, caller, asked)

    @router.post("/completions", summary="A text's continuation", response_model=None, responses={200: {"model": Completion}})
    async def completions(asked: CompletionRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.complete(http, caller, asked)

    @router.post(
        "/embeddings", summary="Texts as vectors", response_model=None, responses={200: {"model": CreateEmbeddingResponse}}
    )
    async def embeddings(asked: EmbeddingRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.embed(http, caller, asked)

    return router


def own_routes(shared: Gateway) -> APIRouter:
    """Whether it runs, open to all; and how it runs, to those with a key."""
    router, allowed = APIRouter(tags=["Server"]), Depends(shared.caller)

    @router.get("/health", summary="Whether it runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics(caller: Caller = allowed) -> Response:
        return Response(shared.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


# --------------------------------------------------------------------------------------------------------------- errors


async def _refused(_: Request, error: Exception) -> Response:
    return refused(as_api_error(error))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if isinstance(part, str) and part != "body"]
    message = f"{'.'.join(place) or 'the body'}: {str(first['msg']).removeprefix('Value error, ')}"
    return refused(APIError(400, message, code=str(first["type"]), param=place[0] if place else None))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code, "invalid_request")
    return refused(APIError(error.status_code, message, code=code, headers=error.headers))


HANDLERS = {APIError: _refused, FactoryError: _refused, RequestValidationError: _invalid, HTTPException: _http}
