"""A cascade: the smallest student answers, and where it is not sure the next model is asked, at last the teacher.

    answer = await Cascades(engines, client, prompts, endpoints, metrics).answer(plan)
    answer.content, answer.target.reference, answer.asked      # "healthcare-small@2 0.41 < 0.62, teacher"

What is answered is one model's, whole: of a stream nothing is sent before its first tokens have been judged. Steps are asked
one after another, and each gives its engine back before the next one takes its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from factory.errors import RegistryError
from factory.evaluation.confidence import (
    ESCALATED,
    FIRST,
    KEPT,
    TOP,
    Confidence,
    Decision,
    TokenSignal,
    decide,
    token_signal,
)
from factory.evaluation.confidence import FILE as CONFIDENCE
from factory.serve.endpoint import Endpoints
from factory.serve.engine_client import EngineClient
from factory.serve.engines import Engines
from factory.serve.errors import as_api_error
from factory.serve.limits import APIError
from factory.serve.metrics import Metrics
from factory.serve.prompts import Prompts, with_context
from factory.serve.resolver import Target
from factory.serve.responses import MALFORMED, Answer, ChatFormat, appended_notice
from factory.serve.schemas import ChatRequest, JsonObject
from factory.serve.streams import RequestContext

LOG = logging.getLogger("factory.serve")
FAILED, ABSTAINED = "failed", "abstained"  # what else may become of a step
SPARE = 0.5  # seconds of a request's time in which an earlier answer is sent where a later one takes too long
Said = TypeVar("Said")  # a whole answer, or a stream that has begun
MAX_WHY = 200  # characters of a failure in a header


# ------------------------------------------------------------------------------------------------------------ decisions


@dataclass(frozen=True)
class Asked:
    """A step that was asked: ``str(asked)`` → "healthcare-small@2 0.41 < 0.62"."""

    target: Target
    decision: Decision

    def __str__(self) -> str:
        return f"{self.target.reference} {self.decision.judgement}".strip()


# ------------------------------------------------------------------------------------------- what an engine says of tokens


def read(content: JsonObject, top: int | None) -> tuple[list[TokenSignal], JsonObject]:
    """``read(event, None)``: what it says of its tokens, and what the client may see of it.

    top: the log-probabilities that the request asked for, None where it asked for none. Raises: APIError 502 for another shape.
    """
    try:
        signals, choices = [], []
        for choice in content.get("choices") or ():
            told = (choice.get("logprobs") or {}).get("content") or ()
            signals += [token_signal(one["logprob"], [other["logprob"] for other in one["top_logprobs"]]) for one in told]
            cut = [one | {"top_logprobs": one["top_logprobs"][:top]} for one in told]
            choices.append(choice | {"logprobs": None if top is None or not told else {"content": cut}})
    except MALFORMED as error:
        message = f"the engine's log-probabilities are malformed ({type(error).__name__})"
        raise APIError(502, message, code="bad_engine") from None
    return signals, content | ({"choices": choices} if "choices" in content else {})


def confidence_of(target: Target) -> Confidence | None:
    """``confidence_of(target)``: the student's own. The log says where its file is malformed or was changed."""
    if target.version is None:
        return None
    try:
        confidence = Confidence.load(target.version.folder)
        if confidence is not None:
            target.version.read(CONFIDENCE)
        return confidence
    except RegistryError as error:
        LOG.error("%s", error)
        return None


# --------------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Plan:
    """One request to a cascade."""

    steps: tuple[Target, ...]
    keep: float
    abstain: str  # what is answered where the last step is not sure; "": its own answer
    request: ChatRequest
    max_tokens: int
    context: RequestContext

    @property
    def top(self) -> int | None:
        """The log-probabilities that the client asked for."""
        return self.request.top_logprobs or 0 if self.request.logprobs else None

    def judges(self, step: Target) -> bool:
        """Whether the step's answer is kept only if it is sure."""
        return bool(self.abstain) or step is not self.steps[-1]

    def decide(self, step: Target, tokens: Sequence[TokenSignal], *, beginning: bool) -> Decision:
        """As ``decide``; where the last step is not sure, the family's text is the answer."""
        if not self.judges(step):
            return Decision(KEPT)
        decision = decide(confidence_of(step), tokens, self.keep, beginning=beginning)
        abstains = decision.outcome == ESCALATED and step is self.steps[-1]
        return replace(decision, outcome=ABSTAINED) if abstains else decision

    def why_kept(self, step: Target) -> str:
        """``plan.why_kept(step)`` → "healthcare-small@2 was sure enough"."""
        return f"{step.reference} " + ("was sure enough" if self.judges(step) else "is the last step")

    def body(self, step: Target, turns: list[dict[str, str]], *, judged: bool) -> JsonObject:
        """What its engine is asked."""
        body = self.request.bodies(self.max_tokens, turns)[0] | {"model": step.reference}
        return body | ({"logprobs": True, "top_logprobs": max(TOP, self.top or 0)} if judged else {})

    def new_answer(self, step: Target) -> Answer:
        return Answer(step, ChatFormat("" if self.request.wants_json else appended_notice(step)))

    def abstention(self) -> JsonObject:
        """As an engine would say it. Where JSON was asked for it is a refusal, as OpenAI's models refuse."""
        message = {"refusal" if self.request.wants_json else "content": self.abstain}
        choice: dict[str, Any] = {"message": message, "delta": {"role": "assistant", **message}, "finish_reason": "stop"}
        return {"choices": [choice]}


@dataclass(frozen=True)
class Reply:
    """What a cascade answers: a whole response, or a stream that has begun."""

    target: Target
    steps: Sequence[Asked]
    why: str
    content: JsonObject = field(default_factory=dict)
    chunks: AsyncIterator[JsonObject] | None = None

    @property
    def asked(self) -> str:
        """``healthcare-small@2 0.41 < 0.62, teacher``."""
        return ", ".join(map(str, self.steps))


@dataclass
class Stream:
    """A step's stream, read up to where it can be judged."""

    answer: Answer
    events: AsyncIterator[JsonObject]
    turns: list[dict[str, str]]
    held: list[JsonObject] = field(default_factory=list)  # chunks that the client has not seen
    tokens: list[TokenSignal] = field(default_factory=list)
    written: bool = False  # whether any text has come
    engine: AsyncExitStack = field(default_factory=AsyncExitStack)  # of a stream that goes on: closing it gives the engine back

    def is_enough(self, judged: bool) -> bool:
        """Whether what is held says whether to go on."""
        return bool(self.answer.finished) or (len(self.tokens) >= FIRST if judged else self.written)


@dataclass
class Course(Generic[Said]):
    """How far a request has come: the steps asked, and the answers of two of them."""

    asked: list[Asked] = field(default_factory=list)
    kept: tuple[Target, Said] | None = None
    unsure: tuple[Target, Said] | None = None  # the last one that was not kept
    failure: APIError | None = None  # the last one

    @property
    def why(self) -> str:
        """Why the answer that was not sure stands after all."""
        assert self.unsure is not None and self.failure is not None
        failed, answered = self.asked[-1].target.reference, self.unsure[0].reference
        return f"{failed} failed ({self.failure.message[:MAX_WHY]}), so the answer of {answered} stands"


class Cascades:
    """``await Cascades(engines, client, prompts, endpoints, metrics).answer(plan)``: asks a plan's steps one after another."""

    def __init__(
        self, engines: Engines, client: EngineClient, prompts: Prompts, endpoints: Endpoints, metrics: Metrics
    ) -> None:
        self.engines, self.client, self.prompts, self.endpoints = engines, client, prompts, endpoints
        self.metrics = metrics

    async def answer(self, plan: Plan) -> Reply:
        """``(await cascades.answer(plan)).content``: the first answer that is sure, else the last step's.

        A step that fails is passed over. Where no later one answers, the last answer that there is stands.

        Raises: what a step raises for a request that is at fault itself (400) before anything was answered, and what the last
            one does where none answered.
        """
        course = await self._course(plan, self._ask, lambda: plan.context.deadline - SPARE)
        if course.kept:
            step, content = course.kept
            return Reply(step, course.asked, plan.why_kept(step), content)
        step, content = self._unsure(course)
        return self._abstained(plan, course.asked, step) if plan.abstain else Reply(step, course.asked, course.why, content)

    async def stream(self, plan: Plan, stack: AsyncExitStack) -> Reply:
        """``await cascades.stream(plan, stack)``: ``stack`` takes over the engine of the step whose stream goes on.

        A later step has half of what is left of the time to begin. Where none does, the last step that had begun is asked
        again, and its answer is kept: its engine was given back. Raises: what ``answer`` raises.
        """
        course = await self._course(plan, self._ask_stream, lambda: _half_way(plan.context.deadline))
        if course.kept:
            step, begun = course.kept
            why = plan.why_kept(step)
        else:
            step, _ = self._unsure(course)
            if plan.abstain:
                return self._abstained(plan, course.asked, step)
            why = course.why
            began = _now()
            async with AsyncExitStack() as own:
                begun = await self._begin(plan, step, own, judged=False)
                begun.engine = own.pop_all()
            course.asked.append(self._counted(step, Decision(KEPT), began))
        stack.push_async_exit(begun.engine)
        return Reply(step, course.asked, why, chunks=self._chunks(plan, step, begun))

    async def _course(
        self, plan: Plan, ask: Callable[[Plan, Target], Awaitable[tuple[Decision, Said]]], until: Callable[[], float]
    ) -> Course[Said]:
        """Asks step by step until an answer is kept. ``until``: when a step must be done, where an earlier answer waits."""
        course: Course[Said] = Course()
        for step in plan.steps:
            began = _now()
            try:
                async with asyncio.timeout_at(until() if course.unsure else None):
                    decision, said = await ask(plan, step)
            except Exception as error:
                late = isinstance(error, TimeoutError)
                course.failure = APIError(504, "it took too long", code="timeout") if late else as_api_error(error)
                course.asked.append(self._counted(step, Decision(FAILED, "failed"), began))
                if course.failure.status == 400 and not course.unsure:
                    raise course.failure from None
                continue
            course.asked.append(self._counted(step, decision, began))
            if decision.outcome == KEPT:
                course.kept = step, said
                return course
            course.unsure = step, said
        return course

    def _unsure(self, course: Course[Said]) -> tuple[Target, Said]:
        """The last answer there is. Raises: the last failure where there is none."""
        if course.unsure is None:
            assert course.failure is not None, "a cascade has steps"
            raise course.failure
        return course.unsure

    # ------------------------------------------------------------------------------------------------------------- steps

    async def _ask(self, plan: Plan, step: Target) -> tuple[Decision, JsonObject]:
        """A whole answer. The engine is given back before it is judged."""
        body = plan.body(step, await self._turns(plan, step), judged=plan.judges(step))
        if step.base in self.endpoints:
            said = await self.endpoints.answer(step, body, plan.context)
        else:
            async with self.engines.lease(step) as lease:
                said = await self.client.answer(lease, ChatFormat.path, body)
        answer = plan.new_answer(step)
        tokens, visible = read(said, plan.top)
        content = answer.response([visible])
        self._count(plan, step, answer.usage)
        return plan.decide(step, tokens, beginning=False), content

    async def _ask_stream(self, plan: Plan, step: Target) -> tuple[Decision, Stream]:
        """A stream that has begun. Unless it is kept it is closed, and its engine given back."""
        async with AsyncExitStack() as own:
            begun = await self._begin(plan, step, own, judged=plan.judges(step))
            decision = plan.decide(step, begun.tokens, beginning=True)
            if decision.outcome == KEPT:
                begun.engine = own.pop_all()
                return decision, begun
        # Engines tell the usage at a stream's end, which this one does not reach.
        prompt = await asyncio.to_thread(self.prompts.count, step, begun.turns)
        self._count(plan, step, {"prompt_tokens": prompt, "completion_tokens": len(begun.tokens)})
        return decision, begun

    async def _begin(self, plan: Plan, step: Target, stack: AsyncExitStack, *, judged: bool) -> Stream:
        """A stream up to where it can be judged. Raises: APIError 502 if it ends before its answer does, or fails."""
        turns = await self._turns(plan, step)
        events = await stack.enter_async_context(self._events(plan, step, plan.body(step, turns, judged=judged)))
        begun = Stream(plan.new_answer(step), events, turns)
        async for event in events:
            tokens, visible = read(event, plan.top)
            begun.tokens += tokens
            chunks = list(begun.answer.chunks(0, visible))
            begun.held += chunks
            begun.written |= any(choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"])
            if begun.is_enough(judged):
                return begun
        list(begun.answer.last_chunks(1, False))
        return begun

    async def _turns(self, plan: Plan, step: Target) -> list[dict[str, str]]:
        """What the step is shown. Tokens of a model elsewhere are not ours to count."""
        if step.base in self.endpoints:
            return with_context(plan.request.turns(), step.context)
        return await asyncio.to_thread(self.prompts.turns, step, plan.request.turns())

    @asynccontextmanager
    async def _events(self, plan: Plan, step: Target, body: JsonObject) -> AsyncIterator[AsyncIterator[JsonObject]]:
        """A model elsewhere is asked for a whole answer: one that breaks off then leaves the student's to be sent."""
        if step.base in self.endpoints:
            yield _one_event(await self.endpoints.answer(step, body, plan.context))
            return
        async with self.engines.lease(step) as lease, self.client.events(lease, ChatFormat.path, body) as events:
            yield events

    async def _chunks(self, plan: Plan, step: Target, begun: Stream) -> AsyncIterator[JsonObject]:
        for chunk in begun.held:
            yield chunk
        async for event in begun.events:
            for chunk in begun.answer.chunks(0, read(event, plan.top)[1]):
                yield chunk
        self._count(plan, step, begun.answer.usage)
        for chunk in begun.answer.last_chunks(1, plan.request.wants_usage):
            yield chunk

    def _count(self, plan: Plan, step: Target, usage: Mapping[str, int]) -> None:
        """Tokens of every step that was asked, kept or not: the API key has had them."""
        plan.context.used += usage["prompt_tokens"] + usage["completion_tokens"]
        self.metrics.count_tokens(step.reference, usage)

    def _counted(self, step: Target, decision: Decision, began: float) -> Asked:
        self.metrics.steps.labels(step.reference, decision.outcome).inc()
        self.metrics.step_seconds.labels(step.reference).observe(_now() - began)
        return Asked(step, decision)

    def _abstained(self, plan: Plan, asked: Sequence[Asked], last: Target) -> Reply:
        """The family's text in place of an answer. It has no usage: nobody generated it."""
        answer, said = plan.new_answer(last), plan.abstention()
        why = f"{last.reference}, the last step that answered, was not sure enough, so the family abstains"
        if not plan.request.stream:
            return Reply(last, asked, why, answer.response([said]))

        async def chunks() -> AsyncIterator[JsonObject]:
            for chunk in (*answer.chunks(0, said), *answer.last_chunks(1, plan.request.wants_usage)):
                yield chunk

        return Reply(last, asked, why, chunks=chunks())


async def _one_event(content: JsonObject) -> AsyncIterator[JsonObject]:
    """A whole answer as the only event of a stream."""
    [choice] = content["choices"][:1]
    yield content | {"choices": [choice | {"delta": {"role": "assistant"} | choice["message"]}]}


def _half_way(deadline: float) -> float:
    return (_now() + deadline) / 2


def _now() -> float:
    return asyncio.get_running_loop().time()
