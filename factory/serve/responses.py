"""An engine's answer in OpenAI's shape, whole or in chunks, with the domain's notice at its end.

answer = Answer(target, ChatFormat(notice))
answer.response([content])           # without streaming; completions have one content per prompt
answer.chunks(0, content)            # streaming: an event of the first prompt
answer.last_chunks(1, with_usage)    # after the last event
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from factory.serve.limits import APIError
from factory.serve.resolver import Target
from factory.serve.schemas import JsonObject
from factory.serve.scoring import Scored

USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
# What reading another shape raises; pydantic's ValidationError is a ValueError.
MALFORMED = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)


class Format(Protocol):
    """Where chat and text completions differ. A choice is the engine's; what is returned is OpenAI's."""

    path: ClassVar[str]  # of the engine's endpoint
    id_prefix: ClassVar[str]
    schema: ClassVar[type[BaseModel]]  # of a whole response
    response_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def choice(self, index: int, choice: JsonObject) -> JsonObject:
        """The choice of a whole response."""
        ...

    def chunk_choices(self, index: int, choice: JsonObject) -> Iterator[JsonObject]:
        """The choices of the chunks that one event becomes."""
        ...


class Answer:
    """One answer in progress: who gives it, and what it has cost so far."""

    def __init__(self, target: Target, form: Format) -> None:
        self.form = form
        self.frame = {"id": f"{form.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": target.reference}
        self.usage = dict.fromkeys(USAGE, 0)
        self.finished = 0  # choices with a finish_reason

    def response(self, contents: Sequence[JsonObject]) -> JsonObject:
        """``answer.response([content])``: the whole response. Raises: APIError 502 for an answer of another shape."""
        try:
            for content in contents:
                self.add_usage(content.get("usage"))
            choices = [self.form.choice(index, content["choices"][0]) for index, content in enumerate(contents)]
            return self.form.schema.model_validate(self.with_choices(choices)).model_dump(exclude_unset=True)
        except MALFORMED as error:
            raise self._malformed(error) from None

    def chunks(self, index: int, content: JsonObject) -> Iterator[JsonObject]:
        """``answer.chunks(0, event)``: the chunks that one event of one prompt becomes.

        Raises: APIError 502 for an engine's error, or an event of another shape.
        """
        if "error" in content:
            raise APIError(502, str((content["error"] or {}).get("message") or "the engine failed"), code="engine_failed")
        try:
            self.add_usage(content.get("usage"))
            for choice in content.get("choices") or ():
                for made in self.form.chunk_choices(index, choice):
                    yield self._chunk(made)
                self.finished += bool(choice.get("finish_reason"))
        except MALFORMED as error:
            raise self._malformed(error) from None

    def last_chunks(self, prompts: int, with_usage: bool) -> Iterator[JsonObject]:
        """The usage, where it was asked for. Raises: APIError 502 if a prompt's answer has no finish_reason."""
        if self.finished < prompts:
            raise APIError(502, "the engine stopped before its answer was complete", code="engine_failed")
        if with_usage:
            yield self._chunk() | {"usage": self.usage}

    def add_usage(self, usage: JsonObject | None) -> None:
        """Adds what an engine reports with a prompt's last event, or after it."""
        for name in USAGE:
            self.usage[name] += max(0, int((usage or {}).get(name) or 0))

    def with_choices(self, choices: Sequence[JsonObject]) -> JsonObject:
        """A whole response that is not validated."""
        return {**self.frame, "object": self.form.response_object, "choices": choices, "usage": self.usage}

    def _chunk(self, *choices: JsonObject) -> JsonObject:
        return {**self.frame, "object": self.form.chunk_object, "choices": list(choices)}

    def _malformed(self, error: Exception) -> APIError:
        message = f"the engine's answer is not a valid {self.form.response_object} ({type(error).__name__})"
        return APIError(502, message, code="bad_engine")


# ---------------------------------------------------------------------------------------------------------------- chat


@dataclass(frozen=True)
class ChatFormat:
    """``POST /v1/chat/completions``; ``notice`` is appended to the answer."""

    path: ClassVar[str] = "/chat/completions"
    id_prefix: ClassVar[str] = "chatcmpl"
    schema: ClassVar[type[BaseModel]] = ChatCompletion
    response_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    notice: str = ""

    def choice(self, index: int, choice: JsonObject) -> JsonObject:
        text = (choice["message"].get("content") or "") + _appended(self.notice)
        message = {"role": "assistant", "content": text, "refusal": choice["message"].get("refusal")}
        return {"index": index, "message": message, "finish_reason": choice["finish_reason"], "logprobs": _logprobs(choice)}

    def chunk_choices(self, index: int, choice: JsonObject) -> Iterator[JsonObject]:
        delta, finish_reason = choice.get("delta") or {}, choice.get("finish_reason")
        if "role" in delta:
            yield _delta(index, {"role": "assistant", "content": ""})
        if delta.get("content"):
            yield _delta(index, {"content": delta["content"]}) | {"logprobs": _logprobs(choice)}
        if delta.get("refusal"):
            yield _delta(index, {"refusal": delta["refusal"]})
        if finish_reason and self.notice:
            yield _delta(index, {"content": _appended(self.notice)})
        if finish_reason:
            yield _delta(index, {}) | {"finish_reason": finish_reason}


def _delta(index: int, delta: JsonObject) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None}


def _logprobs(choice: JsonObject) -> JsonObject | None:
    given = choice.get("logprobs")
    if not given:
        return None
    keys = ("token", "bytes", "logprob", "top_logprobs")
    return {"content": [{key: token.get(key) for key in keys} for token in given.get("content") or ()], "refusal": None}


# --------------------------------------------------------------------------------------------------------- completions


@dataclass(frozen=True)
class CompletionFormat:
    """``POST /v1/completions``; ``top`` is the request's ``logprobs``."""

    path: ClassVar[str] = "/completions"
    id_prefix: ClassVar[str] = "cmpl"
    schema: ClassVar[type[BaseModel]] = Completion
    response_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    notice: str = ""
    top: int | None = None
    offsets: Counter[int] = field(default_factory=Counter)  # index → characters of that choice so far

    def choice(self, index: int, choice: JsonObject) -> JsonObject:
        return self._choice(index, choice["text"] + _appended(self.notice), choice["finish_reason"], choice)

    def chunk_choices(self, index: int, choice: JsonObject) -> Iterator[JsonObject]:
        finish_reason = choice.get("finish_reason")
        if choice.get("text"):
            yield self._choice(index, choice["text"], None, choice)
        if finish_reason and self.notice:
            yield self._choice(index, _appended(self.notice))
        if finish_reason:
            yield self._choice(index, "", finish_reason)

    def scored_choice(self, index: int, scored: Scored) -> JsonObject:
        """The choice of a request with ``echo``, which transformers answered."""
        logprobs = {
            "tokens": scored.tokens,
            "token_logprobs": scored.token_logprobs,
            "top_logprobs": scored.top_logprobs if self.top else None,
            "text_offset": scored.offsets,
        }
        return self._choice(index, scored.text, "stop" if scored.ended else "length") | {
            "logprobs": None if self.top is None else logprobs
        }

    def _choice(self, index: int, text: str, finish_reason: str | None = None, choice: JsonObject | None = None) -> JsonObject:
        logprobs = self._logprobs(index, choice) if choice else None
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}

    def _logprobs(self, index: int, choice: JsonObject) -> JsonObject | None:
        """llama.cpp gives log-probabilities in the shape of chats; an engine that gives that of completions is left alone."""
        given = choice.get("logprobs")
        if self.top is None or given is None:
            return None
        if "content" not in given:
            return dict(given)
        found = completion_logprobs(given["content"], self.offsets[index], self.top)
        self.offsets[index] += sum(map(len, found["tokens"]))
        return found


def scored_response(answer: Answer, form: CompletionFormat, scored: Sequence[Scored]) -> JsonObject:
    """``scored_response(answer, form, [scored])``: the response to a request with ``echo``.

    Not validated: of the first token nothing is known, and OpenAI's API says null there, which its own types do not allow.
    """
    for one in scored:
        prompt, total = one.prompt_tokens, len(one.tokens)
        answer.add_usage({"prompt_tokens": prompt, "completion_tokens": total - prompt, "total_tokens": total})
    return answer.with_choices([form.scored_choice(index, one) for index, one in enumerate(scored)])


def completion_logprobs(content: Sequence[JsonObject], offset: int, top: int) -> JsonObject:
    """``completion_logprobs(choice["logprobs"]["content"], 0, 2)``: from the shape of chats to that of completions."""
    tokens = [str(token["token"]) for token in content]
    offsets = [offset + sum(map(len, tokens[:index])) for index in range(len(tokens))]
    tops = [{one["token"]: one["logprob"] for one in (*token["top_logprobs"][:top], token)} for token in content]
    return {
        "tokens": tokens,
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def appended_notice(target: Target) -> str:
    """What ``append_notice: true`` in a domain's YAML adds to every answer."""
    return target.notice if target.appends_notice else ""


def _appended(notice: str) -> str:
    return f"\n\n{notice}" if notice else ""
