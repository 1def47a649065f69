"""Who may call the server: by which names, and from which pages. No model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.serving import running
from support.workplace import Workplace

from factory.errors import ServeError
from factory.serve.hosts import check_host, check_origin, host_name, is_loopback
from factory.serve.limits import APIError
from factory.serve.server import Options, host_names

PATHS = ("/", "/static/app.js", "/health", "/metrics", "/openapi.json", "/v1/models", "/factory/catalogue", "/nothing")


def scope(host: str, origin: str | None = None, address: str = "127.0.0.1") -> dict[str, Any]:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "server": (address, 8000), "headers": encoded}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.8.8.8", "factory.example:443"]
)
def test_loopback_and_allowed_names_are_ours(host: str) -> None:
    check_host(scope(host), {"factory.example"})


def test_the_address_that_a_client_connected_to_is_ours() -> None:
    check_host(scope("192.0.2.7:8000", address="192.0.2.7"), {"0.0.0.0"})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.0.2.7", "localhost.", "[::1", "", "é"]
)
def test_any_other_host_is_403_and_named(host: str) -> None:
    with pytest.raises(APIError, match="--allowed-host") as error:
        check_host(scope(host), {"factory.example"})
    assert (error.value.status, error.value.code) == (403, "host_not_allowed")
    assert repr(host) in error.value.message


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:8000", "https://127.0.0.1:8000", "HTTP://127.0.0.1:8000"])
def test_programs_and_the_own_page_may_call(origin: str | None) -> None:
    check_origin(scope("127.0.0.1:8000", origin))


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:3000", "http://localhost:8000", "null", "", "http://["]
)
def test_pages_of_other_origins_are_403(origin: str) -> None:
    with pytest.raises(APIError, match="origin") as error:
        check_origin(scope("127.0.0.1:8000", origin))
    assert (error.value.status, error.value.code) == (403, "origin_not_allowed")


def test_a_long_header_is_cut_in_the_message() -> None:
    with pytest.raises(APIError) as error:
        check_host(scope("a" * 5000), set())
    assert len(error.value.message) < 250


@pytest.mark.parametrize(
    ("authority", "name"), [("A.example:80", "a.example"), ("[::1]:80", "::1"), ("::1", ""), (":80", ""), ("[", "")]
)
def test_a_host_name_has_no_port_and_no_brackets(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(("host", "inside"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.0.2.7", False)])
def test_loopback_is_this_machine_only(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


@pytest.mark.parametrize("host", ["http://factory.example", "factory.example:8000", "factory.example/v1", ""])
def test_an_allowed_host_is_a_bare_name(host: str) -> None:
    with pytest.raises(ServeError, match="expected a name without scheme"):
        host_names(Options(allowed_hosts=(host,)))


# ------------------------------------------------------------------------------------------------------------ every route


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = Workplace(tmp_path_factory.mktemp("hosts"))
    place.write_all()
    with running(place, allowed_hosts=("Factory.example",)) as address:
        yield address


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
def test_every_route_refuses_strangers_in_openais_format(url: str, path: str, headers: dict[str, str]) -> None:
    answer = httpx.get(url + path, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] in ("host_not_allowed", "origin_not_allowed")


def test_an_allowed_host_and_its_own_page_are_answered(url: str) -> None:
    headers = {"host": "factory.example", "origin": "https://factory.example"}
    assert httpx.get(f"{url}/health", headers=headers).json() == {"status": "ok"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/factory/agreement"])
def test_json_under_a_type_that_any_page_may_send_is_400(url: str, path: str, content_type: str | None) -> None:
    """A form or a script may post these types to any site without asking it first."""
    headers = {"content-type": content_type} if content_type else {}
    body = b'{"model": "auto", "prompt": "a", "input": "a", "messages": [{"role": "user", "content": "a"}]}'
    answer = httpx.post(url + path, content=body, headers=headers)
    assert answer.status_code == 400
    assert "valid dictionary" in answer.json()["error"]["message"]
