"""Fields without effect: named in a header, or refused by a strict server."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httpx
from hypothesis import given
from hypothesis import strategies as st
from support.serving import running

from factory.serve.app import header_value
from factory.serve.limits import Limits

PATHS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "completions": {"prompt": "a", "max_tokens": 1},
    "embeddings": {"input": "a"},
}


def post(url: str, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/{path}", json={"model": "plants-mini"} | PATHS[path] | fields, timeout=30)


def test_answers_name_what_they_ignored(built: Any) -> None:
    with running(built) as url:
        for path in PATHS:
            assert post(url, path, top_k=5, **{"möglich\r\n": 1}).headers["x-factory-ignored"] == "m%C3%B6glich%0D%0A, top_k"
            assert "x-factory-ignored" not in post(url, path, temperature=0).headers
        stream = post(url, "completions", stream=True, top_k=5)
        assert stream.headers["x-factory-ignored"] == "top_k"
        echoed = post(url, "completions", echo=True, top_k=5)
        assert echoed.headers["x-factory-ignored"] == "top_k"


def test_any_name_of_a_field_fits_in_the_header(built: Any) -> None:
    names = [
        "a" * 5000,
        r"\ud800",
        " at its beginning",
        "at its end ",
        "   ",
        "a" * 499 + " cut after a space",
        r"\t\u0001\u00a0",
        "",
    ]
    with running(built) as url:
        for name in names:
            body = f'{{"model": "plants-mini", "input": "a", "{name}": 1}}'.encode()
            answer = httpx.post(f"{url}/v1/embeddings", content=body, headers={"content-type": "application/json"}, timeout=30)
            assert answer.status_code == (400 if name == r"\ud800" else 200)
            assert len(answer.headers.get("x-factory-ignored", "")) <= 1500  # each of 500 characters may take three


@given(st.text(max_size=20))
def test_a_header_is_what_http_takes_and_says_all(text: str) -> None:
    value = header_value(text)
    assert value == value.strip() and value.isascii() and value.isprintable()
    assert unquote(value) == text


def test_a_strict_server_refuses_them_by_name(workplace: Any) -> None:
    with running(workplace, limits=Limits(strict=True)) as url:
        for path in PATHS:
            answer = post(url, path, top_k=5)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_k")
            assert post(url, path).status_code == 404  # the student is not there; its fields were accepted
