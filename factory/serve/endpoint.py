"""A model elsewhere as the last step of a cascade: asked within its time, its cap on money, and only while it answers.

endpoints = Endpoints(family, os.environ, metrics)
content = await endpoints.answer(target, body, context)     # an OpenAI-compatible chat completion
context.cost                                                # 0.0042, in the currency of its price
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic

import jsonschema_rs

from factory.config.endpoints import EndpointSpec
from factory.config.schema import FamilySpec
from factory.errors import ServeError
from factory.serve.engine_client import EngineClient, Unreachable
from factory.serve.engines import Lease
from factory.serve.limits import APIError
from factory.serve.metrics import Metrics
from factory.serve.resolver import Target
from factory.serve.responses import Answer, ChatFormat
from factory.serve.schemas import JsonObject
from factory.serve.streams import RequestContext

HOUR = 3600.0
FAILURES, PAUSE, LONGEST_PAUSE = 3, 10.0, 300.0  # in a row; seconds until it is asked again, doubled by each further failure
REFUSALS = ("engine_refused", "context_length_exceeded")  # of one request: they say nothing of others
# Failures after which an answer may have been generated; nobody bills an error's status, or a connection that was refused.
MAY_BE_BILLED = {(504, "timeout"), (503, "engine_failed"), (502, "bad_engine")}


@dataclass
class Breaker:
    """Who failed three times in a row is not asked for a while, then once: its answer ends the pause, a failure doubles it."""

    clock: Callable[[], float] = monotonic
    failures: int = 0  # in a row
    until: float = -math.inf

    def require(self) -> None:
        """Raises: APIError 503 while it pauses. After a pause one request passes; others wait for what becomes of it."""
        wait = self.until - self.clock()
        if wait > 0:
            message = f"it failed {self.failures} times in a row and is asked again in {math.ceil(wait)} s"
            raise APIError(503, message, code="circuit_open")
        if self.failures >= FAILURES:
            self._fail()  # unless it answers

    def note(self, *, failed: bool) -> None:
        """``breaker.note(failed=False)``: how a request ended. Of many that fail together only three count."""
        if not failed:
            self.failures, self.until = 0, -math.inf
        elif self.failures < FAILURES:
            self._fail()

    def _fail(self) -> None:
        self.failures += 1
        if self.failures >= FAILURES:
            self.until = self.clock() + min(LONGEST_PAUSE, PAUSE * 2 ** min(self.failures - FAILURES, 10))


@dataclass
class Entry:
    """Money of one request."""

    at: float
    cost: float  # while it runs: what it may cost at most


@dataclass
class Budget:
    """Money of the last hour, in memory: it begins anew with the server."""

    cap: float
    clock: Callable[[], float] = monotonic
    entries: deque[Entry] = field(default_factory=deque)

    def reserve(self, cost: float) -> Entry:
        """``budget.reserve(0.02).cost = 0.004``: what a request may cost, then what it did cost.

        Raises: APIError 429 if less than that is left.
        """
        now = self.clock()
        while self.entries and self.entries[0].at <= now - HOUR:
            self.entries.popleft()
        if math.fsum(entry.cost for entry in self.entries) + cost > self.cap:
            raise APIError(429, f"its cap of {self.cap:g} an hour would be passed", code="cap_reached")
        self.entries.append(Entry(now, cost))
        return self.entries[-1]


@dataclass
class Endpoint:
    """One model elsewhere."""

    spec: EndpointSpec
    key: str | None = None
    breaker: Breaker = field(default_factory=Breaker)
    budget: Budget = field(default_factory=lambda: Budget(math.inf))

    @classmethod
    def of(cls, name: str, spec: EndpointSpec, environment: Mapping[str, str]) -> Endpoint:
        """``Endpoint.of("giant", spec, os.environ)``. Raises: ServeError if the key's variable is not set."""
        key = spec.key(environment)
        if key == "":
            raise ServeError(f"models.{name}: the environment variable {spec.key_env} is not set; it holds the model's key")
        return cls(spec, key, budget=Budget(spec.max_cost_per_hour or math.inf))

    @property
    def lease(self) -> Lease:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return Lease(self.spec.api.rstrip("/"), headers=headers)


class Endpoints:
    """``Endpoints(family, os.environ, metrics)``: those of the family's models that its cascade ends with.

    Raises: ServeError if the environment variable of one's key is not set.
    """

    def __init__(self, family: FamilySpec, environment: Mapping[str, str], metrics: Metrics) -> None:
        self.client, self.metrics = EngineClient(elsewhere=True), metrics
        asked = {name: spec for name, spec in family.models.items() if name in family.serve.cascade}
        self._endpoints = {name: Endpoint.of(name, spec, environment) for name, spec in asked.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._endpoints

    async def answer(self, target: Target, body: JsonObject, context: RequestContext) -> JsonObject:
        """``await endpoints.answer(target, body, context)``: a whole chat completion. ``context.cost`` grows by its cost.

        Without ``usage`` it counts as what it could have cost at most, and so does one that was broken off.

        Raises: APIError 429 beyond its cap, 503 while it pauses, 504 beyond its time, 502 for no answer or one in another
            format than the request's; never 400, since the request was fit for the steps before.
        """
        endpoint = self._endpoints[target.base]
        spec = endpoint.spec
        sent = spec.request(body)
        endpoint.breaker.require()
        entry = endpoint.budget.reserve(spec.cost(spec.most(sent)))
        try:
            content = await self._post(endpoint, sent)
            answer = Answer(target, ChatFormat())
            response = answer.response([content])
            entry.cost = spec.cost(answer.usage) if any(answer.usage.values()) else entry.cost
        except APIError as error:
            if isinstance(error, Unreachable) or (error.status, error.code) not in MAY_BE_BILLED:
                entry.cost = 0.0
            if error.code not in REFUSALS:
                endpoint.breaker.note(failed=True)
            raise
        finally:  # who is cancelled, since its client left, has said nothing of the endpoint
            context.cost += entry.cost
            self.metrics.cost.labels(target.name).inc(entry.cost)
        endpoint.breaker.note(failed=False)
        check_text(response["choices"][0]["message"], body.get("response_format"))
        return content

    async def close(self) -> None:
        await self.client.close()

    async def _post(self, endpoint: Endpoint, sent: JsonObject) -> JsonObject:
        limit = endpoint.spec.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                return await self.client.answer(endpoint.lease, ChatFormat.path, sent)
        except TimeoutError:
            raise APIError(504, f"it took longer than {limit:g} s", code="timeout") from None
        except APIError as error:
            if error.status != 400:
                raise
            raise APIError(502, "it refused the request", code=error.code) from None  # what it says may quote the prompt


def check_text(message: JsonObject, response_format: JsonObject | None) -> None:
    """``check_text({"content": "{}"}, {"type": "json_object"})``: raises APIError 502 unless it is what was asked for."""
    text = message.get("content") or ""
    if message.get("refusal"):
        return
    if not text:
        raise APIError(502, "it answered with no text", code="bad_engine")
    if response_format and not _is_json(text, response_format):
        raise APIError(502, "it did not answer with the JSON that was asked for", code="bad_engine")


def _is_json(text: str, response_format: JsonObject) -> bool:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if response_format["type"] == "json_object":
        return isinstance(content, dict)
    return bool(jsonschema_rs.is_valid(response_format["json_schema"]["schema"], content, validate_formats=True))
