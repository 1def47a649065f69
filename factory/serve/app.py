"""The app: OpenAI's routes over the registry. What happens to a request, in order:

host, origin, API key and its rate (middleware.py) → place in the queue → model name to version (resolver.py)
    → token count (prompts.py) → a slot of an engine (engines.py) → the engine's answer or events (engine_client.py)
    → OpenAI's shape (responses.py), with headers that say who answered and why

A chat with a cascade goes from its token count on through each step that is asked (cascade.py).

app = gateway(resolver, engines, prompts, scorer, agreements, limits=Limits(), keys=KeyFile(None))
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Set
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from prometheus_client import CONTENT_TYPE_LATEST

from factory import __version__
from factory.serve.agreement import Agreements
from factory.serve.auth import Caller, KeyFile
from factory.serve.cascade import Cascades, Plan
from factory.serve.endpoint import Endpoints
from factory.serve.engine_client import EngineClient
from factory.serve.engines import Engines, Lease
from factory.serve.errors import HANDLERS, RESPONSES, ErrorBody, status_of
from factory.serve.limits import APIError, Limits, Queue
from factory.serve.metrics import NO_DOMAIN, Metrics
from factory.serve.middleware import Guard
from factory.serve.prompts import Prompts
from factory.serve.rates import Rates
from factory.serve.readiness import Readiness
from factory.serve.resolver import AUTO, ModelResolver, Target
from factory.serve.responses import Answer, ChatFormat, CompletionFormat, appended_notice, scored_response
from factory.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, JsonObject, embedding_vector
from factory.serve.scoring import Scorer
from factory.serve.site import site
from factory.serve.streams import EventStream, RequestContext, cancel_on_disconnect

AnyRequest = ChatRequest | CompletionRequest | EmbeddingRequest
MAX_IGNORED = 500  # characters of field names in a header


@dataclass(frozen=True)
class EngineCall:
    """What an engine is asked for one request: a body per prompt, all parts of one answer."""

    target: Target
    answer: Answer
    request: ChatRequest | CompletionRequest
    bodies: list[JsonObject]


class Gateway:
    """What the routes share: who answers, on which engine, within which limits."""

    def __init__(self, resolver: ModelResolver, engines: Engines, prompts: Prompts, scorer: Scorer, limits: Limits) -> None:
        self.resolver, self.engines, self.prompts, self.scorer = resolver, engines, prompts, scorer
        self.limits, self.client, self.queue = limits, EngineClient(), Queue(limits.queue, limits.per_key)
        self.rates = Rates()
        self.metrics = Metrics(lambda: self.queue.length, engines.count)
        self.endpoints = Endpoints(resolver.family, os.environ, self.metrics)
        self.cascades = Cascades(engines, self.client, prompts, self.endpoints, self.metrics)

    async def close(self) -> None:
        await self.engines.close()
        await self.client.close()
        await self.endpoints.close()
        self.resolver.close()
        self.scorer.close()

    # ------------------------------------------------------------------------------------------------------- requests

    async def chat(self, http: Request, caller: Caller, request: ChatRequest) -> Response:
        async with AsyncExitStack() as stack:
            context = stack.enter_context(self._admit("chat/completions", caller))
            async with cancel_on_disconnect(http.receive, context):
                target = await self._resolve(context, caller, request)
                max_tokens = self._max_tokens(request.max_completion_tokens, request.max_tokens)
                if target.cascade:
                    return await self._follow(stack, context, target, request, max_tokens)
                turns = await asyncio.to_thread(self.prompts.turns, target, request.turns())
                self._check_bias(target, request.logit_bias)
                prompt = await asyncio.to_thread(self.prompts.count, target, turns) if caller.has_token_limits else 0
                self._reserve(context, prompt + max_tokens)
                answer = Answer(target, ChatFormat("" if request.wants_json else appended_notice(target)))
                call = EngineCall(target, answer, request, request.bodies(max_tokens, turns))
                return await self._answer(stack, context, call, stream=bool(request.stream))

    async def complete(self, http: Request, caller: Caller, request: CompletionRequest) -> Response:
        async with AsyncExitStack() as stack:
            context = stack.enter_context(self._admit("completions", caller))
            async with cancel_on_disconnect(http.receive, context):
                target = await self._resolve(context, caller, request)
                max_tokens = self._max_tokens(request.max_tokens, least=0 if request.echo else 1)
                prompts = [await asyncio.to_thread(self.prompts.ids, target, one, "prompt") for one in request.prompts]
                self._check_bias(target, request.logit_bias)
                self._reserve(context, sum(max_tokens + len(prompt) for prompt in prompts))
                if request.echo:
                    return await self._score(context, target, request, prompts, max_tokens)
                answer = Answer(target, CompletionFormat(appended_notice(target), request.logprobs))
                call = EngineCall(target, answer, request, request.bodies(max_tokens, prompts))
                return await self._answer(stack, context, call, stream=bool(request.stream))

    async def embed(self, http: Request, caller: Caller, request: EmbeddingRequest) -> Response:
        with self._admit("embeddings", caller) as context:
            async with cancel_on_disconnect(http.receive, context):
                target = await self._resolve(context, caller, request)
                inputs = [await asyncio.to_thread(self.prompts.ids, target, one, "input") for one in request.inputs]
                tokens = sum(map(len, inputs))
                self._reserve(context, tokens)
                vectors = await self.scorer.embed(target, inputs)
                self._count(context, target, {"prompt_tokens": tokens, "completion_tokens": 0})
        data = [
            {"object": "embedding", "index": index, "embedding": embedding_vector(vector, request.encoding_format)}
            for index, vector in enumerate(vectors.tolist())
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        content = {"object": "list", "model": target.reference, "data": data, "usage": usage}
        return JSONResponse(content, headers=answer_headers(target, request))

    async def _follow(
        self, stack: AsyncExitStack, context: RequestContext, target: Target, request: ChatRequest, max_tokens: int
    ) -> Response:
        """A chat with a cascade. A stream takes over ``stack``, as in ``_answer``."""
        if request.logit_bias:
            message = "logit_bias names the token ids of one model, and a cascade has several; name one of its students"
            raise APIError(400, message, code="unsupported_parameter", param="logit_bias")
        settings = self.resolver.family.serve
        self._reserve(context, max_tokens)
        plan = Plan(target.cascade, settings.keep, settings.abstain, request, max_tokens, context)
        reply = await (self.cascades.stream(plan, stack) if request.stream else self.cascades.answer(plan))
        context.model = reply.target.reference
        who = reply.target
        found = replace(target, version=who.version, base=who.base, student=who.student, reason=f"{target.reason}; {reply.why}")
        headers = answer_headers(found, request, reply.asked, context.cost)
        if reply.chunks is None:
            return JSONResponse(reply.content, headers=headers)
        self.metrics.first.observe(asyncio.get_running_loop().time() - context.started)
        return EventStream(reply.chunks, stack.pop_all(), context, headers)

    # ---------------------------------------------------------------------------------------------------- their steps

    @contextmanager
    def _admit(self, route: str, caller: Caller) -> Iterator[RequestContext]:
        """A place in the queue; the request is counted when it is given up.

        Raises: what ``Queue.enter`` and ``Rates.require_tokens`` do.
        """
        clock = asyncio.get_running_loop().time
        context = RequestContext(route, caller, clock(), clock() + self.limits.seconds)
        try:
            self.rates.require_tokens(caller)
            self.queue.enter(self.limits.parallel, caller.key)
        except APIError as error:
            self.metrics.requests.labels(route, "", str(error.status)).inc()
            raise
        try:
            yield context
        except Exception as error:
            context.status = status_of(error)
            raise
        finally:
            seconds = clock() - context.started
            self.queue.leave(seconds, caller.key)
            self.rates.take_tokens(caller, context.tokens - context.reserved)
            self.metrics.requests.labels(route, context.model, str(context.status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)

    def _reserve(self, context: RequestContext, tokens: int) -> None:
        """Takes what the request may need at most of its key's tokens; at its end, what it did not need is given back."""
        context.reserved = tokens
        self.rates.take_tokens(context.caller, tokens)

    def _count(self, context: RequestContext, target: Target, usage: Mapping[str, int]) -> None:
        context.used += usage["prompt_tokens"] + usage["completion_tokens"]
        self.metrics.count_tokens(target.reference, usage)

    async def _resolve(self, context: RequestContext, caller: Caller, request: AnyRequest) -> Target:
        """Raises: what ``ModelResolver.route`` and ``resolve`` do; APIError 400 under ``--strict`` for an ignored field."""
        if self.limits.strict and request.ignored:
            field = request.ignored[0]
            message = f"{field} has no effect here, and this server is strict; leave it out"
            raise APIError(400, message, code="unsupported_parameter", param=field)
        if request.model == AUTO:
            target = await self.resolver.route(request.questions, caller)
            self.metrics.routed.labels(target.domain or NO_DOMAIN, target.name).inc()
        else:
            target = self.resolver.resolve(request.model, caller)
        context.model = target.reference
        return target

    def _max_tokens(self, *given: int | None, least: int = 1) -> int:
        """The first value that was given, else the limit. Raises: APIError 400 for a value beyond the limit."""
        limit = self.limits.output_tokens
        value = next((one for one in given if one is not None), limit)
        if not least <= value <= limit:
            message = f"max_tokens is {value}, but must be between {least} and {limit}"
            raise APIError(400, message, code="invalid_value", param="max_tokens")
        return value

    def _check_bias(self, target: Target, bias: dict[int, float] | None) -> None:
        if bias:
            self.prompts.check_vocabulary(target, list(bias), "logit_bias")

    async def _score(
        self, context: RequestContext, target: Target, request: CompletionRequest, prompts: list[list[int]], max_tokens: int
    ) -> Response:
        """The log-probabilities of prompts, by transformers: llama.cpp has no ``echo``."""
        request.check_echo()
        scored = [
            await self.scorer.score(
                target,
                prompt,
                max_tokens=max_tokens,
                temperature=request.temperature or 0.0,
                seed=request.seed,
                top=request.logprobs or 0,
            )
            for prompt in prompts
        ]
        form = CompletionFormat(top=request.logprobs)
        answer = Answer(target, form)
        content = scored_response(answer, form, scored)
        self._count(context, target, answer.usage)
        return JSONResponse(content, headers=answer_headers(target, request))

    async def _answer(self, stack: AsyncExitStack, context: RequestContext, call: EngineCall, *, stream: bool) -> Response:
        """Runs the call on an engine. A stream takes over ``stack``, and the engine works on after this has returned."""
        target, path, headers = call.target, call.answer.form.path, answer_headers(call.target, call.request)
        lease = await stack.enter_async_context(self.engines.lease(target))
        bodies = [body | {"model": target.reference} for body in call.bodies]
        if not stream:
            content = call.answer.response([await self.client.answer(lease, path, body) for body in bodies])
            self._count(context, target, call.answer.usage)
            return JSONResponse(content, headers=headers)
        first = await stack.enter_async_context(self.client.events(lease, path, bodies[0]))
        chunks = self._chunks(context, call, self._events(first, lease, path, bodies[1:]))
        return EventStream(chunks, stack.pop_all(), context, headers)

    async def _events(
        self, first: AsyncIterator[JsonObject], lease: Lease, path: str, rest: list[JsonObject]
    ) -> AsyncIterator[tuple[int, JsonObject]]:
        """Each event with its prompt's index. ``first`` is open already, so its errors come before the response begins."""
        async for content in first:
            yield 0, content
        for index, body in enumerate(rest, start=1):
            async with self.client.events(lease, path, body) as events:
                async for content in events:
                    yield index, content

    async def _chunks(
        self, context: RequestContext, call: EngineCall, events: AsyncIterator[tuple[int, JsonObject]]
    ) -> AsyncIterator[JsonObject]:
        waiting = True
        async for index, content in events:
            if waiting:
                self.metrics.first.observe(asyncio.get_running_loop().time() - context.started)
                waiting = False
            for chunk in call.answer.chunks(index, content):
                yield chunk
        self._count(context, call.target, call.answer.usage)
        for chunk in call.answer.last_chunks(len(call.bodies), call.request.wants_usage):
            yield chunk


async def admitted_caller(request: Request) -> Caller:
    """The FastAPI dependency of every route that needs a key: whom the guard admitted, before the body was read."""
    caller: Caller = request.state.caller
    return caller


def answer_headers(target: Target, request: AnyRequest, asked: str | None = None, cost: float = 0.0) -> dict[str, str]:
    """Who answered and why, the domain's notice, and what was ignored.

    asked: the steps of a cascade, as ``Reply.asked`` says them. cost: of a model elsewhere.
    """
    values = {
        "x-factory-version": target.reference,
        "x-factory-domain": target.domain,
        "x-factory-score": target.score,
        "x-factory-threshold": target.threshold,
        "x-factory-language": target.language,
        "x-factory-cascade": asked,
        "x-factory-cost": f"{cost:.6g}" if cost else None,
        "x-factory-why": target.reason,
        "x-factory-notice": target.notice or None,
        "x-factory-ignored": ", ".join(request.ignored)[:MAX_IGNORED] or None,
        "server-timing": f"route;dur={target.routing_ms}" if target.routing_ms is not None else None,
    }
    return {name: header_value(str(value)) for name, value in values.items() if value is not None}


def header_value(text: str) -> str:
    """``header_value("nötig")`` → "n%C3%B6tig": as HTTP takes it, which is without spaces at an end."""
    space = " " if text == text.strip() else ""
    return quote(text, safe=f"{space},.;:!?'()/@-=<>", errors="replace")


# --------------------------------------------------------------------------------------------------------------- routes


def gateway(
    resolver: ModelResolver,
    engines: Engines,
    prompts: Prompts,
    scorer: Scorer,
    agreements: Agreements,
    *,
    limits: Limits,
    keys: KeyFile,
    readiness: Readiness,
    hosts: Set[str] = frozenset(),
) -> FastAPI:
    """``gateway(resolver, engines, prompts, scorer, agreements, limits=..., keys=...)``: closes its engines when it stops.

    hosts: names of this server besides those of loopback and the address that a client connects to, in lower case.
    """
    shared = Gateway(resolver, engines, prompts, scorer, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await shared.close()

    app = FastAPI(
        title="Student factory",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from another site; /docs is our own (site.py)
        redoc_url=None,
        responses=RESPONSES,
        exception_handlers=HANDLERS,
    )
    app.add_middleware(Guard, body_bytes=limits.body_bytes, hosts=hosts, keys=keys, rates=shared.rates)
    app.include_router(openai_routes(shared))
    app.include_router(server_routes(shared, readiness))
    app.include_router(site(resolver.registry, agreements, guard=admitted_caller))
    return app


def openai_routes(shared: Gateway) -> APIRouter:
    """``/v1``, as the ``openai`` package calls it."""
    router, allowed = APIRouter(prefix="/v1", tags=["OpenAI"]), Depends(admitted_caller)

    @router.get("/models", summary="Models that the key gives access to")
    def models(caller: Caller = allowed) -> dict[str, Any]:
        return {"object": "list", "data": shared.resolver.list_models(caller)}

    @router.get("/models/{model:path}", summary="The version behind a model name")
    def model(model: str, caller: Caller = allowed) -> dict[str, Any]:
        return shared.resolver.describe(model, caller)

    @router.post("/chat/completions", summary="Answer a chat", response_model=None, responses={200: {"model": ChatCompletion}})
    async def chat(request: ChatRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.chat(http, caller, request)

    @router.post("/completions", summary="Continue a text", response_model=None, responses={200: {"model": Completion}})
    async def completions(request: CompletionRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.complete(http, caller, request)

    @router.post("/embeddings", summary="Embed texts", response_model=None, responses={200: {"model": CreateEmbeddingResponse}})
    async def embeddings(request: EmbeddingRequest, http: Request, caller: Caller = allowed) -> Response:
        return await shared.embed(http, caller, request)

    return router


def server_routes(shared: Gateway, readiness: Readiness) -> APIRouter:
    """``/health`` and ``/ready``, open to all, and ``/metrics``, for those with a key."""
    router, allowed = APIRouter(tags=["Server"]), Depends(admitted_caller)

    @router.get("/health", summary="Whether the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Whether a request could be answered now", responses={503: {"model": ErrorBody}})
    async def ready() -> dict[str, str]:
        if problem := await readiness.problem():
            raise APIError(503, problem, code="not_ready")
        return {"status": "ready"}

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics(caller: Caller = allowed) -> Response:
        return Response(shared.metrics.text(caller), media_type=CONTENT_TYPE_LATEST)

    return router
