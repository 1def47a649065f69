"""Each request field of OpenAI's API is honoured, refused, or named in a header: a running server is asked for every one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import running

from factory.serve.schemas import ChatRequest, CompletionRequest

SCRIPTS = Path(__file__).parents[2] / "scripts"
STUDENT = "plants-mini"
# What these honoured fields change is not what the engine is asked: who answers, how it is sent, or nothing else is allowed.
NOT_FOR_THE_ENGINE = {"model", "n", "best_of", "echo", "modalities", "stream_options", "tool_choice", "function_call"}


@pytest.fixture(scope="module")
def ours() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(SCRIPTS)
        yield importlib.import_module("openai_fields")


@pytest.fixture(scope="module")
def coverage(ours: Any) -> Any:
    return ours.coverage(ours.strict_app())


@pytest.fixture(scope="module")
def url(built: Any) -> Iterator[str]:
    with running(built) as address:
        yield address


def cases(ours: Any, coverage: Any) -> Iterator[tuple[str, str, Any, str]]:
    for field, by_endpoint in coverage.items():
        for endpoint, said in by_endpoint.items():
            for example in ours.examples(field):
                yield endpoint, field, example, said[example.label]


def test_a_server_that_answers_does_what_the_table_says(url: str, ours: Any, coverage: Any) -> None:
    tried = 0
    for endpoint, field, example, said in cases(ours, coverage):
        few = {} if endpoint == ours.EMBEDDINGS else {"max_tokens": 2}
        body = ours.BASE[endpoint] | few | dict(example.fields) | {"model": STUDENT}
        answer = httpx.post(url + endpoint, json=body, timeout=60)
        where = (endpoint, field, example.label, answer.text)
        if said == ours.REFUSED:
            assert answer.status_code == 400, where
            assert field.split(".")[0] in answer.json()["error"]["message"], where
        else:
            assert answer.status_code == 200, where
            assert answer.headers.get("x-factory-ignored") == (field if said == ours.IGNORED else None), where
        tried += 1
    assert tried > 80


def test_no_field_is_missing(ours: Any, coverage: Any) -> None:
    from openai.types.chat import completion_create_params

    assert set(completion_create_params.CompletionCreateParamsBase.__annotations__) < set(coverage)
    assert set(ours.EXAMPLES) == set(coverage)  # nor is an example of a field that is gone


def test_an_honoured_field_changes_what_the_engine_is_asked(ours: Any, coverage: Any) -> None:
    changed = set()
    for endpoint, field, example, said in cases(ours, coverage):
        if said != ours.HONOURED or endpoint == ours.EMBEDDINGS or "." in field:
            continue
        bodies = []
        for fields in ({}, dict(example.fields)):
            body = ours.BASE[endpoint] | fields
            if endpoint == ours.CHAT:
                chat = ChatRequest.model_validate(body)
                tokens = chat.max_completion_tokens or chat.max_tokens or 9
                bodies.append(chat.bodies(tokens, chat.turns()))
            else:
                text = CompletionRequest.model_validate(body)
                bodies.append(text.bodies(text.max_tokens or 9, [[1]]))
        same = bodies[0] == bodies[1]
        if not same:
            changed.add(field)
        is_base = example.fields.items() <= ours.BASE[endpoint].items() or example.label == "`text`"
        assert not same or is_base or field in NOT_FOR_THE_ENGINE, (endpoint, field)
    assert changed >= {"temperature", "top_p", "seed", "stop", "logit_bias", "response_format", "top_logprobs", "max_tokens"}


def test_a_field_that_a_newer_openai_package_brings_has_to_be_decided_on(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from openai.types.embedding_create_params import EmbeddingCreateParams

    monkeypatch.setattr(EmbeddingCreateParams, "__annotations__", EmbeddingCreateParams.__annotations__ | {"brand_new": str})
    assert "brand_new" in ours.fields(ours.EMBEDDINGS)
    with pytest.raises(SystemExit, match=r"has a field brand_new, and scripts/openai_fields\.py no example"):
        ours.coverage(ours.strict_app())


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/responses"), ("GET", "/v1/responses/resp_1"), ("POST", "/v1/audio/speech"), ("GET", "/v1/files")],
)
def test_other_endpoints_of_openai_say_what_there_is(url: str, method: str, path: str) -> None:
    answer = httpx.request(method, url + path, json={"model": STUDENT, "input": "a"} if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    message = answer.json()["error"]["message"]
    assert f"{method} {path}" in message and "/v1/chat/completions" in message and "/v1/embeddings" in message
