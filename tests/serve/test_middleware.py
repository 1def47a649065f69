"""What is refused before a body is read: requests without a key. No model is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from support.serving import running
from support.workplace import Workplace

KEY = "clé"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = Workplace(tmp_path_factory.mktemp("middleware"))
    place.write_all()
    keys = place.root / "keys.yaml"
    keys.write_text(f"{KEY}: '*'\nfew: {{models: '*', requests_per_minute: 2}}\n", encoding="utf-8")
    with running(place, api_keys=keys) as address:
        yield address


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/factory/agreement"])
@pytest.mark.parametrize("body", [b"{x", b"{}", b"", b"x" * 2_000_000])
def test_without_a_key_a_request_is_401_whatever_its_body(url: str, path: str, body: bytes) -> None:
    answer = httpx.post(url + path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")


def test_the_refusal_does_not_wait_for_the_body(url: str) -> None:
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 401")


def test_with_a_key_the_body_counts(url: str) -> None:
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}".encode()}
    answer = httpx.post(f"{url}/v1/completions", content=b"{x", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "json_invalid")


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/factory/catalogue", "/nothing", "/redoc", "/static", "/docs/"])
def test_what_is_not_open_needs_a_key(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/static/docs.js", "/health", "/openapi.json"])
def test_the_page_its_files_and_the_description_are_open(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200


def test_no_page_of_fastapi_is_there(url: str) -> None:
    """They load scripts of another site."""
    headers = {"authorization": f"Bearer {KEY}".encode()}
    assert httpx.get(f"{url}/redoc", headers=headers).status_code == 404
    assert "swagger" not in httpx.get(f"{url}/docs").text


def test_a_key_has_its_rate_before_the_body_is_read_and_open_paths_have_none(url: str) -> None:
    where, head = urlsplit(url), "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer few\r\n"
    for expected in (b"HTTP/1.1 400", b"HTTP/1.1 400", b"HTTP/1.1 429"):
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as client:
            length = 1000 if expected.endswith(b"429") else 0  # of which nothing is sent
            client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert client.recv(1000).startswith(expected)
    refused = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer few"})
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"{url}/health", headers={"authorization": "Bearer few"}).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}".encode()}).status_code == 200
