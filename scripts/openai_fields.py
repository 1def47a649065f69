"""Which of OpenAI's request fields the server honours, refuses or ignores: ``python scripts/openai_fields.py`` asks it.

``scripts/docs.py`` writes the answers into docs/serving.md.

The fields are those of the installed ``openai`` package's types. A field that has no example below is an error: a newer package
has brought it, and somebody has to decide what becomes of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionMessageParam, ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared_params.response_format_json_schema import JSONSchema

from factory.config.load import load_specs
from factory.registry.registry import Registry
from factory.serve.limits import Limits
from factory.serve.server import Options, make_app

CHAT, COMPLETIONS, EMBEDDINGS = ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
HONOURED, REFUSED, IGNORED = "honoured", "refused", "ignored"
DOMAINS = Path(__file__).parents[1] / "domains"
NOBODY = "nobody"  # a model that is not there: who gets that far had its fields accepted
SAID = [{"role": "user", "content": "a"}]
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"model": NOBODY, "messages": SAID},
    COMPLETIONS: {"model": NOBODY, "prompt": "a"},
    EMBEDDINGS: {"model": NOBODY, "input": "a"},
}


@dataclass(frozen=True)
class Example:
    """A value that asks for something: the fields that it is sent in, and its label where a field has several."""

    fields: Mapping[str, Any]
    label: str = ""


def one(field: str, value: Any, **with_it: Any) -> list[Example]:
    return [Example({field: value, **with_it})]


def message(role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"messages": [*SAID, {"role": role, "content": "a"} | fields]}


def schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}} | fields}}


TOOL = {"type": "function", "function": {"name": "f"}}
EXAMPLES: dict[str, list[Example]] = {
    "model": one("model", NOBODY),
    "messages": one("messages", SAID),
    "messages.role": [
        *(Example(message(role), f"`{role}`") for role in ("system", "developer", "user", "assistant")),
        *(Example(message(role, tool_call_id="a", name="f"), f"`{role}`") for role in ("tool", "function")),
    ],
    "messages.content": [
        Example(message(), "text"),
        Example(message(content=[{"type": "text", "text": "a"}]), "text parts"),
        Example(message("user", content=[{"type": "image_url", "image_url": {"url": "data:,"}}]), "other parts"),
    ],
    "messages.content.prompt_cache_breakpoint": [
        Example(message(content=[{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]))
    ],
    "messages.name": [Example(message(name="ann"))],
    "messages.audio": [Example(message(audio={"id": "a"}))],
    "messages.function_call": [Example(message(function_call={"name": "f", "arguments": "{}"}))],
    "messages.refusal": [Example(message(refusal="no"))],
    "messages.tool_call_id": [Example(message("tool", tool_call_id="a"))],
    "messages.tool_calls": [Example(message(tool_calls=[TOOL | {"id": "a"}]))],
    "prompt": one("prompt", "a"),
    "input": one("input", "a"),
    "audio": one("audio", {"voice": "alloy", "format": "mp3"}),
    "best_of": [Example({"best_of": 1}, "1"), Example({"best_of": 2}, "more")],
    "dimensions": one("dimensions", 3),
    "echo": one("echo", True),
    "encoding_format": one("encoding_format", "base64"),
    "frequency_penalty": one("frequency_penalty", 1),
    "function_call": [
        Example({"function_call": "none"}, '`"none"`, `"auto"`'),
        Example({"function_call": {"name": "f"}}, "others"),
    ],
    "functions": one("functions", [{"name": "f"}]),
    "logit_bias": one("logit_bias", {"1": 1}),
    "logprobs": one("logprobs", 1),
    "max_completion_tokens": one("max_completion_tokens", 5),
    "max_tokens": one("max_tokens", 5),
    "metadata": one("metadata", {"a": "b"}),
    "modalities": [Example({"modalities": ["text"]}, '`["text"]`'), Example({"modalities": ["text", "audio"]}, "others")],
    "moderation": one("moderation", {"model": "omni-moderation-latest"}),
    "n": [Example({"n": 1}, "1"), Example({"n": 2}, "more")],
    "parallel_tool_calls": one("parallel_tool_calls", True),
    "prediction": one("prediction", {"type": "content", "content": "a"}),
    "presence_penalty": one("presence_penalty", 1),
    "prompt_cache_key": one("prompt_cache_key", "a"),
    "prompt_cache_options": one("prompt_cache_options", {"mode": "explicit"}),
    "prompt_cache_retention": one("prompt_cache_retention", "24h"),
    "reasoning_effort": one("reasoning_effort", "low"),
    "response_format": [
        Example({"response_format": {"type": "text"}}, "`text`"),
        Example({"response_format": {"type": "json_object"}}, "`json_object`"),
        Example(schema(), "a schema that an [engine can hold](#answers-in-json)"),
        Example(schema(schema={"type": "integer", "multipleOf": 2}), "any other schema"),
    ],
    "response_format.json_schema.name": [Example(schema())],
    "response_format.json_schema.description": [Example(schema(description="a"))],
    "response_format.json_schema.schema": [Example(schema())],
    "response_format.json_schema.strict": [Example(schema(strict=True))],
    "safety_identifier": one("safety_identifier", "a"),
    "seed": one("seed", 1),
    "service_tier": one("service_tier", "flex"),
    "stop": one("stop", "a"),
    "store": one("store", True),
    "stream": one("stream", True),
    "stream_options": one("stream_options", {"include_usage": True}, stream=True),
    "stream_options.include_usage": one("stream_options", {"include_usage": True}, stream=True),
    "stream_options.include_obfuscation": one("stream_options", {"include_obfuscation": True}, stream=True),
    "suffix": one("suffix", "a"),
    "temperature": one("temperature", 1),
    "tool_choice": [Example({"tool_choice": "auto"}, '`"none"`, `"auto"`'), Example({"tool_choice": "required"}, "others")],
    "tools": one("tools", [TOOL]),
    "top_logprobs": one("top_logprobs", 2, logprobs=True),
    "top_p": one("top_p", 0.5),
    "user": one("user", "a"),
    "verbosity": one("verbosity", "low"),
    "web_search_options": one("web_search_options", {}),
}


def fields(endpoint: str) -> list[str]:
    """``fields("/v1/embeddings")``: as the ``openai`` package's types have them, nested ones with their place, sorted."""
    if endpoint == EMBEDDINGS:
        return sorted(embedding_create_params.EmbeddingCreateParams.__annotations__)
    options = nested("stream_options", [ChatCompletionStreamOptionsParam])
    if endpoint == COMPLETIONS:
        return sorted([*completion_create_params.CompletionCreateParamsNonStreaming.__annotations__, *options])
    return sorted(
        {
            *chat_create_params.CompletionCreateParamsNonStreaming.__annotations__,
            *options,
            *nested("messages", get_args(ChatCompletionMessageParam)),
            *nested("messages.content", [ChatCompletionContentPartTextParam], leave_out=("type", "text")),
            *nested("response_format.json_schema", [JSONSchema]),
        }
    )


def nested(where: str, types: Iterable[Any], leave_out: Iterable[str] = ()) -> Iterator[str]:
    yield from (f"{where}.{name}" for kind in types for name in kind.__annotations__ if name not in leave_out)


def coverage(app: FastAPI) -> dict[str, dict[str, dict[str, str]]]:
    """``coverage(strict_app())["n"]["/v1/completions"]`` → {"1": "honoured", "more": "refused"}. The app must be strict."""
    with TestClient(app, base_url="http://localhost") as client:
        found: dict[str, dict[str, dict[str, str]]] = {}
        for endpoint in ENDPOINTS:
            for field in fields(endpoint):
                said = found.setdefault(field, {}).setdefault(endpoint, {})
                for example in examples(field):
                    said[example.label] = outcome(client, endpoint, field, example)
    return dict(sorted(found.items()))


def examples(field: str) -> list[Example]:
    """``examples("n")``. Raises: SystemExit for a field that has none."""
    if field not in EXAMPLES:
        raise SystemExit(f"error: the openai package has a field {field}, and scripts/openai_fields.py no example; add one")
    return EXAMPLES[field]


def outcome(client: TestClient, endpoint: str, field: str, example: Example) -> str:
    answer = client.post(endpoint, json=BASE[endpoint] | dict(example.fields))
    error = answer.json()["error"]
    if answer.status_code == 404 and error["code"] == "model_not_found":
        return HONOURED
    assert answer.status_code == 400, (field, answer.text)
    return IGNORED if error["param"] == field and "has no effect here" in error["message"] else REFUSED


def strict_app(domains: Path = DOMAINS) -> FastAPI:
    """``strict_app()``: the server without a student, which refuses what it would ignore."""
    specs = load_specs(domains)
    none = Registry(domains / "no-registry")
    return make_app(none, specs, specs.family("default"), Options(limits=Limits(strict=True)))


def rows(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Iterator[tuple[str, ...]]:
    """A row for each field: its name, and what each endpoint makes of it; "-" where it is not a field of OpenAI's."""
    for field, by_endpoint in found.items():
        yield f"`{field}`", *(cell(by_endpoint.get(endpoint, {})) for endpoint in ENDPOINTS)


HEAD = ("field", *(f"`{endpoint}`" for endpoint in ENDPOINTS))


def cell(said: Mapping[str, str]) -> str:
    """``cell({"1": "honoured", "more": "refused"})`` → "honoured: 1; refused: more"."""
    if len(set(said.values())) < 2:
        return next(iter(said.values()), "-")
    by_outcome = {kind: [label for label, found in said.items() if found == kind] for kind in (HONOURED, IGNORED, REFUSED)}
    return "; ".join(f"{kind}: {', '.join(labels)}" for kind, labels in by_outcome.items() if labels)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for row in (HEAD, *rows(coverage(strict_app()))):
        print(" | ".join(row))


if __name__ == "__main__":
    main()
