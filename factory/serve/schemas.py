"""OpenAI's requests: which fields are supported, which are rejected, and what the engine is sent.

    ChatRequest.model_validate(body).bodies(64, turns)   # one body per prompt for the engine

Every field is honoured, refused, or named in ``ignored``, nested ones too: docs/serving.md has the table.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from openai.types.chat.completion_create_params import ResponseFormat
from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.serve.json_schema import engine_schema
from factory.serve.limits import APIError

JsonObject = dict[str, Any]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=100_000)]
Text = Annotated[str, Field(max_length=1_000_000)]
MAX_PROMPTS = 64  # per request
MAX_ROUTED_TURNS = 4  # of a conversation, the newest

# Fields that change the answer in a way no engine here supports: rejected, never silently dropped.
UNSUPPORTED_CHAT = (
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "tool_choice",
    "tools",
    "web_search_options",
)
UNSUPPORTED_MESSAGE = ("audio", "function_call", "tool_calls")
UNSUPPORTED_COMPLETION = ("suffix",)
UNSUPPORTED_EMBEDDING = ("dimensions",)
SET_BY_BEING_THERE = ("web_search_options",)  # even when empty
NEUTRAL = {"stream": False, "stop": [], "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "top_p": 1}
HARMLESS = {"tool_choice": ("none", "auto"), "function_call": ("none", "auto")}  # without tools these ask for nothing


class Part(BaseModel):
    """What a request consists of: fields beyond its own are kept, to be named."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Request(Part):
    """``model`` is a student's name, ``NAME@3``, ``NAME@champion``, ``teacher``, ``auto`` or a domain with a cascade."""

    model: str = Field(min_length=1, max_length=200)

    @property
    def ignored(self) -> list[str]:
        """``request.ignored`` → ["messages.name", "top_k"]: fields that ask for something and change nothing here, sorted."""
        return ignored_fields(self)


class StreamOptions(Part):
    """What a stream ends with."""

    include_usage: bool | None = None


class Generation(Request):
    """What chat and text completions share. Without a temperature decoding is greedy."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=0)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: int | None = Field(None, ge=1, description="Only 1.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self, max_tokens: int) -> JsonObject:
        """The sampling fields of the engine's body, under OpenAI's names."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        fields = {
            "temperature": self.temperature or 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "stop": [stop for stop in stops if stop],
            "seed": None if self.seed is None else self.seed % (2**32 - 1),  # 2**32 - 1 is llama.cpp's "random"
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": {str(token): bias for token, bias in self.logit_bias.items()} if self.logit_bias else None,
            "max_tokens": max_tokens,
            "stream": bool(self.stream),
            "stream_options": {"include_usage": True} if self.stream else None,
        }
        return {key: value for key, value in fields.items() if value is not None}


class TextPart(Part):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Part):
    """One message; its content is a string or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, content: Any) -> Any:
        return reject_unsupported(content, UNSUPPORTED_MESSAGE, "messages.")

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, content: Any) -> Any:
        return reject_unsupported(content, UNSUPPORTED_CHAT)

    @model_validator(mode="after")
    def check_top_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs `logprobs: true`")
        return self

    @model_validator(mode="after")
    def check_response_format(self) -> ChatRequest:
        _ = self.engine_format
        return self

    @property
    def ignored(self) -> list[str]:
        """As of every request. An engine holds a schema to the letter, and is not told what it is for."""
        wanted = self.response_format or {"type": "text"}
        described = wanted["type"] == "json_schema" and wanted["json_schema"].get("description")
        return sorted([*ignored_fields(self), *(["response_format.json_schema.description"] if described else [])])

    @property
    def questions(self) -> list[str]:
        """What the router reads: the user's last turn, and it with the turns before it; without a user the last message.

        The newest turn comes first, since encoders cut the end of long texts.
        """
        turns = [message.text for message in self.messages if message.role == "user"] or [self.messages[-1].text]
        recent = turns[: -MAX_ROUTED_TURNS - 1 : -1]
        return recent if len(recent) == 1 else [recent[0], "\n".join(recent)]

    @property
    def wants_json(self) -> bool:
        return self.response_format is not None and self.response_format["type"] != "text"

    @cached_property
    def engine_format(self) -> JsonObject | None:
        """What the engine is to hold, if anything. Raises: APIError 400 for a schema that it cannot hold."""
        wanted = self.response_format
        if wanted is None or wanted["type"] == "text":
            return None
        if wanted["type"] == "json_object":
            return {"type": "json_object"}
        schema = engine_schema(wanted["json_schema"].get("schema", {}))
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    def turns(self) -> list[dict[str, str]]:
        """Messages as chat templates take them: plain text, with a developer as the system."""
        return [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in self.messages]

    def bodies(self, max_tokens: int, turns: list[dict[str, str]]) -> list[JsonObject]:
        """The one body for the engine's ``/v1/chat/completions``."""
        body = {"messages": turns, **self.settings(max_tokens)}
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.engine_format:
            body["response_format"] = self.engine_format
        return [body]


class CompletionRequest(Generation):
    """``POST /v1/completions``: the prompt is a text, token ids, or a list of either."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, description="Only 1.")

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, content: Any) -> Any:
        return reject_unsupported(content, UNSUPPORTED_COMPLETION)

    @property
    def prompts(self) -> list[str | list[int]]:
        return as_list(self.prompt)

    @property
    def questions(self) -> list[str]:
        """What the router reads. Raises: APIError 400 for token ids."""
        return [routable(self.prompts[0], "prompt")]

    def check_echo(self) -> None:
        """Raises: APIError 400 for fields that scoring a prompt does not support: only temperature and seed apply."""
        for field, neutral in NEUTRAL.items():
            if (getattr(self, field) or neutral) != neutral:
                message = f"{field} is not supported together with echo; leave it out"
                raise APIError(400, message, code="unsupported_parameter", param=field)

    def bodies(self, max_tokens: int, prompts: Sequence[list[int]]) -> list[JsonObject]:
        """Bodies for the engine's ``/v1/completions``, one per prompt: llama.cpp reports only the first prompt's usage.

        The prompts go as ids, so that the engine reads what was counted: begin-of-text too, where the tokenizer adds it.
        """
        settings = self.settings(max_tokens)
        if self.logprobs is not None:
            settings["logprobs"] = max(1, self.logprobs)  # llama.cpp takes 0 for none
        return [{"prompt": prompt, **settings} for prompt in prompts]


class EmbeddingRequest(Request):
    """``POST /v1/embeddings``."""

    input: (
        Annotated[str, Field(min_length=1, max_length=1_000_000)]
        | Tokens
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, content: Any) -> Any:
        return reject_unsupported(content, UNSUPPORTED_EMBEDDING)

    @property
    def inputs(self) -> list[str | list[int]]:
        return as_list(self.input)

    @property
    def questions(self) -> list[str]:
        """What the router reads. Raises: APIError 400 for token ids."""
        return [routable(self.inputs[0], "input")]


def reject_unsupported(content: Any, fields: Sequence[str], where: str = "") -> Any:
    """``reject_unsupported(body, ["suffix"])``: the body. Raises: APIError 400 for a field that is set but unsupported."""
    body: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    for field in fields:
        value = body.get(field)
        if (value or (field in SET_BY_BEING_THERE and value is not None)) and value not in HARMLESS.get(field, ()):
            message = f"{where}{field} is not supported; leave it out"
            raise APIError(400, message, code="unsupported_parameter", param=f"{where}{field}")
    for field in ("n", "best_of"):
        if body.get(field) not in (None, 1):
            raise APIError(400, f"{field} must be 1; send several requests instead", code="unsupported_value", param=field)
    return content


def ignored_fields(part: BaseModel) -> list[str]:
    """``ignored_fields(request)``: what it and its parts have beyond their fields, without what asks for nothing, sorted."""
    given = part.model_extra or {}
    found = {name for name, value in given.items() if value not in (None, False, "", [], {}, *HARMLESS.get(name, ()))}
    for name in type(part).model_fields:
        value = getattr(part, name)
        parts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, BaseModel)]
        found |= {f"{name}.{inner}" for one in parts for inner in ignored_fields(one)}
    return sorted(found)


def routable(value: str | list[int], param: str) -> str:
    """``routable("What is gout?", "prompt")``: the text. Raises: APIError 400 for token ids of an unknown tokenizer."""
    if not isinstance(value, str):
        message = f"model auto routes text, but {param} is a list of token ids; send text or name a model"
        raise APIError(400, message, code="invalid", param=param)
    return value


def as_list(value: Any) -> list[str | list[int]]:
    """``as_list("a")`` → ["a"], ``as_list([1, 2])`` → [[1, 2]]; a list of prompts stays as it is."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)


# ----------------------------------------------------------------------------------------------------------- responses


def event(content: JsonObject) -> bytes:
    """``event({"choices": []})``: one server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def embedding_vector(vector: Sequence[float], encoding: str | None) -> list[float] | str:
    """``embedding_vector([0.5], "base64")``: base64 of little-endian float32, as the official client asks for; else floats."""
    if encoding != "base64":
        return list(vector)
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
