"""Every answer names its request, and so does every line that is logged for it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import running

from factory.serve.prompts import Prompts
from factory.serve.request_ids import handler_with_ids, request_id

NEW = re.compile("[0-9a-f]{32}")
CHAT = {"model": "plants-mini", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


@given(st.text(max_size=80) | st.from_regex("[A-Za-z0-9._-]{1,70}", fullmatch=True))
def test_an_id_is_the_clients_own_where_that_is_a_short_token(given_id: str) -> None:
    own = re.fullmatch("[A-Za-z0-9._-]{1,64}", given_id) is not None
    assert request_id(given_id) == given_id if own else NEW.fullmatch(request_id(given_id))
    assert NEW.fullmatch(request_id(None)) and request_id(None) != request_id(None)


@contextmanager
def server_log() -> Iterator[io.StringIO]:
    """What ``factory serve`` writes on stderr."""
    handler = handler_with_ids()
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(log := io.StringIO())
    logging.getLogger().addHandler(handler)
    try:
        yield log
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def url(built: Any) -> Iterator[str]:
    keys = built.root / "keys.yaml"
    keys.write_text("all: '*'\nfew: {models: '*', requests_per_minute: 1}\n")
    with running(built, api_keys=keys) as address:
        yield address


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/", None, 200),
        ("GET", "/static/none.js", None, 404),
        ("GET", "/v1/models", None, 200),
        ("GET", "/metrics", None, 200),
        ("POST", "/v1/chat/completions", CHAT, 200),
        ("POST", "/v1/chat/completions", CHAT | {"stream": True}, 200),
        ("POST", "/v1/completions", {"model": "plants-mini", "prompt": "a", "max_tokens": 0, "echo": True}, 200),
        ("POST", "/v1/embeddings", {"model": "plants-mini", "input": "a"}, 200),
        ("POST", "/v1/chat/completions", {}, 400),
        ("POST", "/v1/chat/completions", CHAT | {"model": "nobody"}, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/chat/completions", CHAT | {"user": "a" * 1_000_001}, 413),
    ],
)
def test_every_answer_has_an_id(url: str, method: str, path: str, body: Any, status: int) -> None:
    for given_id, expected in ((None, NEW), ("my-id_1.2", re.compile("my-id_1.2")), ("two words\u00e9", NEW), ("a" * 65, NEW)):
        headers = {"authorization": "Bearer all"} | ({"x-request-id": given_id.encode()} if given_id else {})  # type: ignore[dict-item]
        answer = httpx.request(method, url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code == status
        assert expected.fullmatch(answer.headers["x-request-id"])
        assert len(answer.headers.get_list("x-request-id")) == 1


def test_refusals_before_the_body_have_an_id(url: str) -> None:
    for headers, status in (
        ({}, 401),
        ({"host": "evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"authorization": "Bearer few"}, 404),
        ({"authorization": "Bearer few"}, 429),
    ):
        answer = httpx.get(f"{url}/nothing", headers=headers | {"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")


@pytest.mark.parametrize("error", [RuntimeError, "factory"])
def test_a_failure_and_its_line_in_the_log_have_the_same_id(url: str, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    from factory.errors import RegistryError

    kind = RegistryError if error == "factory" else error

    def fail(*_: Any) -> Any:
        logging.getLogger("some.library").warning("a line of a library, in a thread")
        raise kind("why")

    monkeypatch.setattr(Prompts, "turns", fail)
    with server_log() as log:
        asked: Any = {"json": CHAT, "headers": {"authorization": "Bearer all"}}
        answers = [httpx.post(f"{url}/v1/chat/completions", **asked) for _ in range(2)]
    lines = log.getvalue().splitlines()
    for answer in answers:
        assert answer.status_code == (503 if error == "factory" else 500)
        current = answer.headers["x-request-id"]
        assert f"(request {current})" in json.loads(answer.text)["error"]["message"]
        its = [line for line in lines if f" [request {current}]: " in line]
        assert [line.split(" [")[0] for line in its] == ["WARNING some.library", "ERROR factory.serve"]
    assert len([line for line in lines if " factory.serve" in line or "some.library" in line]) == 4


def test_a_line_of_no_request_names_none() -> None:
    with server_log() as log:
        logging.getLogger("factory.serve").error("started")
    assert log.getvalue() == "ERROR factory.serve: started\n"
