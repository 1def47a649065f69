"""Which of OpenAI's request fields are supported, rejected or ignored."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from factory.serve.limits import APIError
from factory.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, embedding_vector

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "a", "messages": HI} | fields)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({}, []),
        ({"top_k": 5, "reasoning_effort": "low", "user": "me"}, ["reasoning_effort", "top_k", "user"]),
        ({"top_k": None, "store": False, "metadata": {}, "tools": [], "tool_choice": "auto", "top_p": 0.5}, []),
        ({"messages": [{"role": "user", "content": "hi", "name": "ann"}]}, ["messages.name"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]}, ["messages.content.b"]),
        ({"stream_options": {"include_usage": True, "include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"stream_options": {"include_obfuscation": False}}, []),
        ({"messages": [{"role": "assistant", "content": "hi", "refusal": None, "tool_calls": []}]}, []),
    ],
)
def test_fields_that_change_nothing_are_named(fields: dict[str, Any], ignored: list[str]) -> None:
    assert chat(**fields).ignored == ignored


def test_the_other_requests_name_ignored_fields_too() -> None:
    assert CompletionRequest.model_validate({"model": "a", "prompt": "x", "top_k": 3}).ignored == ["top_k"]
    assert EmbeddingRequest.model_validate({"model": "a", "input": "x", "user": "me"}).ignored == ["user"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("audio", {"voice": "a"}),
        ("functions", [{}]),
        ("web_search_options", {}),  # empty, and yet asked for
    ],
)
def test_unsupported_fields_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(APIError) as error:
        chat(**{field: value})
    assert (error.value.status, error.value.param) == (400, field)


@pytest.mark.parametrize("field", ["tool_calls", "function_call", "audio"])
def test_messages_of_tools_are_refused(field: str) -> None:
    with pytest.raises(APIError, match=f"messages.{field} is not supported; leave it out") as error:
        chat(messages=[*HI, {"role": "assistant", "content": "a", field: [{"id": "a"}]}])
    assert (error.value.status, error.value.param) == (400, f"messages.{field}")


def test_unsupported_fields_that_ask_for_nothing_are_accepted() -> None:
    request = chat(n=1, tools=[], tool_choice="none", functions=None, unknown_field={"a": 1}, user="me", modalities=["text"])
    assert "tools" not in request.bodies(5, HI)[0]


def test_content_is_a_string_or_text_parts() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "gout?"}]
    request = chat(messages=[{"role": "developer", "content": "brief"}, {"role": "user", "content": parts}])
    assert request.turns() == [{"role": "system", "content": "brief"}, {"role": "user", "content": "What is gout?"}]
    assert request.questions == ["What is gout?"]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("u", ["0"]),
        ("su", ["1"]),
        ("sa", ["1"]),
        ("uau", ["2", "2\n0"]),
        ("suauau", ["5", "5\n3\n1"]),
        ("uauauauau", ["8", "8\n6\n4\n2"]),
    ],
)
def test_the_router_reads_the_last_turn_and_the_last_four_of_the_user(roles: str, expected: list[str]) -> None:
    names = {"u": "user", "s": "system", "a": "assistant"}
    messages = [{"role": names[role], "content": str(number)} for number, role in enumerate(roles)]
    assert chat(messages=messages).questions == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"temperature": float("nan")},
        {"temperature": 3},
        {"top_p": 0},
        {"max_completion_tokens": 0},
        {"top_logprobs": 2},
        {"top_logprobs": 21, "logprobs": True},
        {"response_format": {"type": "xml"}},
        {"modalities": ["audio"]},
        {"logit_bias": {"a": 1}},
        {"model": ""},
    ],
)
def test_invalid_fields_are_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)


def test_decoding_is_greedy_unless_asked_otherwise() -> None:
    assert chat().bodies(7, HI)[0] == {
        "messages": HI, "temperature": 0.0, "top_p": 1.0, "stop": [], "max_tokens": 7, "stream": False
    }  # fmt: skip
    body = chat(temperature=0.5, stop="x", seed=-1, logit_bias={"5": -1}, stream=True, logprobs=True).bodies(7, HI)[0]
    assert (body["temperature"], body["stop"], body["logit_bias"]) == (0.5, ["x"], {"5": -1.0})
    assert 0 <= body["seed"] < 2**32 - 1
    assert body["stream_options"] == {"include_usage": True}  # always requested, since tokens are counted
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2]], [[1], [2]])],
)
def test_a_prompt_is_a_text_token_ids_or_a_list_of_either(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest.model_validate({"model": "a", "prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [[]], None, [-1], [1.5], ["a", 1], {"a": 1}, ["a"] * 65])
def test_other_prompts_are_rejected(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "a", "prompt": prompt})


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"best_of": 3}, {"n": 3}])
def test_completions_reject_unsupported_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(APIError):
        CompletionRequest.model_validate({"model": "a", "prompt": "x"} | fields)


@pytest.mark.parametrize(
    "fields", [{"stream": True}, {"stop": "x"}, {"top_p": 0.5}, {"logit_bias": {1: 1}}, {"presence_penalty": 1}]
)
def test_echo_rejects_fields_that_scoring_ignores(fields: dict[str, Any]) -> None:
    request = CompletionRequest.model_validate({"model": "a", "prompt": "x", "echo": True} | fields)
    with pytest.raises(APIError) as error:
        request.check_echo()
    assert error.value.param == next(iter(fields))


def test_token_ids_cannot_be_routed() -> None:
    for request in (
        CompletionRequest.model_validate({"model": "auto", "prompt": [1]}),
        EmbeddingRequest.model_validate({"model": "auto", "input": [1]}),
    ):
        with pytest.raises(APIError, match="token ids"):
            _ = request.questions


def test_base64_embeddings_are_little_endian_float32() -> None:
    encoded = embedding_vector([0.5, -2.0], "base64")
    assert isinstance(encoded, str)
    assert np.frombuffer(base64.b64decode(encoded), dtype="<f4").tolist() == [0.5, -2.0]
    assert embedding_vector([0.5], None) == [0.5]


def test_dimensions_of_embeddings_are_rejected() -> None:
    with pytest.raises(APIError, match="dimensions"):
        EmbeddingRequest.model_validate({"model": "a", "input": "x", "dimensions": 5})
