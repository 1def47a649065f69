"""An engine's answer as OpenAI's: its names, the notice at its end, and the order of a stream's chunks.

answer = ChatAnswer(asked, target)
answer.whole([content])     # of a request without a stream; of completions one content a prompt
answer.chunks(0, content)   # of each event of the first prompt's stream; answer.last(...) at the end
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from factory.serve.limits import APIError
from factory.serve.resolver import Target
from factory.serve.schemas import ChatRequest, CompletionRequest, Json
from factory.serve.scoring import Scored

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


class Answer:
    """What chat and completions share: who answers, since when, and what it cost."""

    path: ClassVar[str]
    kind: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self, target: Target, notice: str) -> None:
        self.frame = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": target.reference}
        self.notice = f"\n\n{notice}" if notice else ""
        self.usage = dict.fromkeys(TOKENS, 0)
        self.finished = 0  # choices that said why they ended

    def whole(self, contents: Sequence[Json]) -> Json:
        """Raises: APIError 502 for an answer of another shape."""
        try:
            for content in contents:
                self.count(content.get("usage"))
            return self._whole([content["choices"][0] for content in contents])
        except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
            raise APIError(502, f"the engine's answer is no {self.kind} ({type(error).__name__})", code="bad_engine") from None

    def chunks(self, index: int, content: Json) -> Iterator[Json]:
        """The chunks that one event on one prompt becomes. Raises: APIError for an error, or an event of another shape."""
        if "error" in content:
            raise APIError(502, str((content["error"] or {}).get("message") or "the engine failed"), code="engine_failed")
        self.count(content.get("usage"))
        try:
            for choice in content.get("choices") or ():
                yield from map(self._chunk, self._choices(index, choice))
                self.finished += bool(choice.get("finish_reason"))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise APIError(502, f"the engine's event is no {self.kind} ({type(error).__name__})", code="bad_engine") from None

    def last(self, prompts: int, wants_usage: bool) -> Iterator[Json]:
        """What comes after every choice's end: the usage, where it was asked for. Raises: APIError where an end is missing."""
        if self.finished < prompts:
            raise APIError(502, "the engine ended before its answer did", code="engine_failed")
        if wants_usage:
            yield self._chunk() | {"usage": self.usage}

    def count(self, usage: Json | None) -> None:
        """Adds what an engine says, at each prompt's end or after it."""
        for name in TOKENS:
            self.usage[name] += int((usage or {}).get(name) or 0)

    def _chunk(self, *choices: Json) -> Json:
        return {**self.frame, "object": self.kind, "choices": list(choices)}

    def _whole(self, choices: Sequence[Json]) -> Json:
        raise NotImplementedError

    def _choices(self, index: int, choice: Json) -> Iterator[Json]:
        raise NotImplementedError


class ChatAnswer(Answer):
    """``POST /v1/chat/completions``."""

    path, kind, prefix = "/chat/completions", "chat.completion.chunk", "chatcmpl"

    def __init__(self, asked: ChatRequest, target: Target) -> None:
        super().__init__(target, target.notice if target.appends_notice and not asked.wants_json else "")

    def _whole(self, choices: Sequence[Json]) -> Json:
        (choice,) = choices
        message = {"role": "assistant", "content": (choice["message"].get("content") or "") + self.notice, "refusal": None}
        facts = {"index": 0, "message": message, "finish_reason": choice["finish_reason"]}
        found = {**self.frame, "object": "chat.completion", "choices": [facts | _chat_logprobs(choice)], "usage": self.usage}
        return ChatCompletion.model_validate(found).model_dump(exclude_unset=True)

    def _choices(self, index: int, choice: Json) -> Iterator[Json]:
        delta, ends = choice.get("delta") or {}, choice.get("finish_reason")
        if "role" in delta:
            yield {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        if delta.get("content"):
            yield {"index": 0, "delta": {"content": delta["content"]}, "finish_reason": None} | _chat_logprobs(choice)
        if ends and self.notice:
            yield {"index": 0, "delta": {"content": self.notice}, "finish_reason": None}
        if ends:
            yield {"index": 0, "delta": {}, "finish_reason": ends}


class TextAnswer(Answer):
    """``POST /v1/completions``."""

    path, kind, prefix = "/completions", "text_completion", "cmpl"

    def __init__(self, asked: CompletionRequest, target: Target) -> None:
        super().__init__(target, target.notice if target.appends_notice and not asked.echo else "")
        self.top = asked.logprobs
        self._length = dict.fromkeys(range(len(asked.prompts)), 0)  # of each choice's text so far

    def _whole(self, choices: Sequence[Json]) -> Json:
        own = [
            {
                "index": index,
                "text": choice["text"] + self.notice,
                "finish_reason": choice["finish_reason"],
                "logprobs": self._logprobs(index, choice),
            }
            for index, choice in enumerate(choices)
        ]
        found = {**self.frame, "object": self.kind, "choices": own, "usage": self.usage}
        return Completion.model_validate(found).model_dump(exclude_unset=True)

    def scored(self, scored: Sequence[Scored]) -> Json:
        """What transformers found, of a request with ``echo``."""
        for one in scored:
            prompt, every = one.prompt_tokens, len(one.tokens)
            self.count({"prompt_tokens": prompt, "completion_tokens": every - prompt, "total_tokens": every})
        choices = [
            {
                "index": index,
                "text": one.text,
                "finish_reason": "stop" if one.ended else "length",
                "logprobs": None
                if self.top is None
                else {
                    "tokens": one.tokens,
                    "token_logprobs": one.token_logprobs,
                    "top_logprobs": one.top_logprobs if self.top else None,
                    "text_offset": one.offsets,
                },
            }
            for index, one in enumerate(scored)
        ]
        # Of the first token nothing is known: OpenAI answers null there, which its own types leave out.
        return {**self.frame, "object": self.kind, "choices": choices, "usage": self.usage}

    def _choices(self, index: int, choice: Json) -> Iterator[Json]:
        ends = choice.get("finish_reason")
        if choice.get("text"):
            text = choice["text"]
            yield {"index": index, "text": text, "finish_reason": None, "logprobs": self._logprobs(index, choice)}
        if ends and self.notice:
            yield {"index": index, "text": self.notice, "finish_reason": None, "logprobs": None}
        if ends:
            yield {"index": index, "text": "", "finish_reason": ends, "logprobs": None}

    def _logprobs(self, index: int, choice: Json) -> Json | None:
        """llama.cpp gives the chat's shape; whoever gives the completions' own keeps it."""
        given = choice.get("logprobs")
        if self.top is None or given is None:
            return None
        if "content" not in given:
            return dict(given)
        found = completion_logprobs(given["content"], self._length[index], self.top)
        self._length[index] += sum(len(token) for token in found["tokens"])
        return found


def completion_logprobs(content: Sequence[Json], offset: int, top: int) -> Json:
    """``completion_logprobs(choice["logprobs"]["content"], 0, 2)``: the chat's shape as completions have it."""
    tokens = [str(token["token"]) for token in content]
    offsets = [offset + sum(map(len, tokens[:index])) for index in range(len(tokens))]
    tops = [{one["token"]: one["logprob"] for one in (*token["top_logprobs"][:top], token)} for token in content]
    return {
        "tokens": tokens,
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _chat_logprobs(choice: Json) -> dict[str, Any]:
    given = choice.get("logprobs")
    if not given:
        return {"logprobs": None}
    keys = ("token", "bytes", "logprob", "top_logprobs")
    content = [{key: token.get(key) for key in keys} for token in given.get("content") or ()]
    return {"logprobs": {"content": content, "refusal": None}}
