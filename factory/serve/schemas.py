"""OpenAI's requests and answers: what is honoured, what is refused, and how an engine's answer becomes OpenAI's.

Requests are checked here, with the ``openai`` package's own types for their parts; fields that it does not know are ignored.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import ResponseFormat
from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.serve.limits import APIError

Json = dict[str, Any]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=100_000)]
Text = Annotated[str, Field(max_length=1_000_000)]
MAX_PROMPTS = 64  # of one request

# Fields of OpenAI's that change an answer in a way that no engine here can: refused, never dropped in silence.
REFUSED_CHAT = ("audio", "function_call", "functions", "moderation", "prediction", "tool_choice", "tools", "web_search_options")
REFUSED_COMPLETION = ("suffix",)
REFUSED_EMBEDDING = ("dimensions",)
# And those that change nothing about the answer, or only ask for it to be kept, cached or billed elsewhere.
IGNORED_CHAT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
NEUTRAL = {"stream": False, "stop": [], "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "top_p": 1}
HARMLESS = {"tool_choice": ("none", "auto"), "function_call": ("none", "auto")}  # these ask for nothing


class Request(BaseModel):
    """``model`` is a student's name, ``NAME@3``, ``NAME@champion``, ``teacher`` or ``auto``."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)


class Generation(Request):
    """What both kinds of generation have. Without a temperature answers are greedy, the same each time."""

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
    stream_options: ChatCompletionStreamOptionsParam | None = None

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.get("include_usage"))

    def settings(self, max_tokens: int) -> Json:
        """What the engine is told, in OpenAI's names."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        asked = {
            "temperature": self.temperature or 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "stop": [stop for stop in stops if stop],
            "seed": None if self.seed is None else self.seed % (2**32 - 1),  # what is left is llama.cpp's "any"
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": {str(token): bias for token, bias in self.logit_bias.items()} if self.logit_bias else None,
            "max_tokens": max_tokens,
            "stream": bool(self.stream),
            "stream_options": {"include_usage": True} if self.stream else None,
        }
        return {key: value for key, value in asked.items() if value is not None}


class Message(BaseModel):
    """One turn; its content as a string or as text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ChatCompletionContentPartTextParam], Field(max_length=1000)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part["text"] for part in self.content)


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
    def refuse(cls, content: Any) -> Any:
        return refuse(content, REFUSED_CHAT)

    @model_validator(mode="after")
    def logprobs_with_their_top(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def question(self) -> str:
        """What the router reads: the user's last words, else the last message's."""
        users = [message.text for message in self.messages if message.role == "user"]
        return users[-1] if users else self.messages[-1].text

    @property
    def wants_json(self) -> bool:
        return self.response_format is not None and self.response_format["type"] != "text"

    def turns(self) -> list[dict[str, str]]:
        """Plain text by role, as chat templates know it."""
        return [{"role": "system" if one.role == "developer" else one.role, "content": one.text} for one in self.messages]

    def bodies(self, max_tokens: int) -> list[Json]:
        """For an engine's ``/v1/chat/completions``: one."""
        found = {"messages": self.turns(), **self.settings(max_tokens)}
        if self.logprobs:
            found |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.wants_json:
            found["response_format"] = self.response_format
        return [found]


class CompletionRequest(Generation):
    """``POST /v1/completions``: a text, token ids, or a list of either."""

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
    def refuse(cls, content: Any) -> Any:
        return refuse(content, REFUSED_COMPLETION)

    @property
    def prompts(self) -> list[str | list[int]]:
        return as_list(self.prompt)

    @property
    def question(self) -> str:
        """What the router reads. Raises: APIError for token ids, whose vocabulary depends on who shall read them."""
        first = self.prompts[0]
        if not isinstance(first, str):
            raise APIError(400, "model auto needs a text to route, not token ids; name a model", code="invalid", param="prompt")
        return first

    def check_echo(self) -> None:
        """Raises: APIError for what is not offered where a prompt is scored, which is greedy or plain sampling."""
        for field, neutral in NEUTRAL.items():
            if (getattr(self, field) or neutral) != neutral:
                raise APIError(400, f"{field} is not offered with echo", code="unsupported_parameter", param=field)

    def bodies(self, max_tokens: int) -> list[Json]:
        """For an engine's ``/v1/completions``, one a prompt: of several together llama.cpp counts the first one's tokens."""
        found = self.settings(max_tokens)
        if self.logprobs is not None:
            found["logprobs"] = max(1, self.logprobs)  # llama.cpp takes 0 for none
        return [{"prompt": prompt, **found} for prompt in self.prompts]


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
    def refuse(cls, content: Any) -> Any:
        return refuse(content, REFUSED_EMBEDDING)

    @property
    def inputs(self) -> list[str | list[int]]:
        return as_list(self.input)

    @property
    def question(self) -> str:
        """What the router reads."""
        first = self.inputs[0]
        if not isinstance(first, str):
            raise APIError(400, "model auto needs a text to route, not token ids; name a model", code="invalid", param="input")
        return first


def refuse(content: Any, fields: Sequence[str]) -> Any:
    """Raises: APIError for a field that is asked for and that nothing here can honour."""
    asked: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    for field in fields:
        if asked.get(field) and asked[field] not in HARMLESS.get(field, ()):
            raise APIError(400, f"{field} is not offered here", code="unsupported_parameter", param=field)
    for field in ("n", "best_of"):
        if asked.get(field) not in (None, 1):
            raise APIError(400, f"{field} is 1 here: ask as often as you like", code="unsupported_value", param=field)
    return content


def as_list(value: Any) -> list[str | list[int]]:
    """A text or one prompt's ids as a list of one."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)


# ------------------------------------------------------------------------------------------------------------- answers


def event(content: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def embedding_vector(vector: Sequence[float], encoding: str | None) -> list[float] | str:
    """Floats, or base64 of little-endian float32, which the official client asks for."""
    if encoding != "base64":
        return list(vector)
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
