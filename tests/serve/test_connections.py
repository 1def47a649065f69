"""Clients that stall, over real sockets on loopback: each is cut off, and meanwhile others are answered."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from support.serving import running
from support.workplace import Workplace

from factory.serve.limits import Limits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
STALLED = {
    "nothing": b"",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "a body that is not waited for": GET + b"Content-Length: 100\r\n\r\n{",
    "a second request, half a body": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    + HEAD
    + b"Content-Length: 100\r\n\r\n{",
}
DEADLINE = 1  # second


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = Workplace(tmp_path_factory.mktemp("connections"))
    place.write_all()
    with running(place, limits=Limits(connections=8, transfer_seconds=DEADLINE)) as address:
        yield address


def connect(url: str, data: bytes) -> socket.socket:
    where = urlsplit(url)
    client = socket.create_connection((where.hostname or "", where.port or 0), timeout=10)
    client.sendall(data)
    return client


def closes(client: socket.socket) -> float:
    """Seconds until the server has closed the connection; what it sends before that is read."""
    start = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return time.monotonic() - start


@pytest.mark.parametrize("sent", STALLED.values(), ids=STALLED)
def test_a_request_that_stalls_is_cut_off_at_the_deadline(url: str, sent: bytes) -> None:
    with connect(url, sent) as client:
        assert 0.5 * DEADLINE < closes(client) < 5 * DEADLINE


def test_a_client_that_drips_has_no_more_time(url: str) -> None:
    start = time.monotonic()
    with connect(url, HEAD + b"Content-Length: 1000\r\n\r\n") as client, contextlib.suppress(ConnectionError):
        while time.monotonic() - start < 5 * DEADLINE:
            client.sendall(b" ")
            time.sleep(0.05)
    assert time.monotonic() - start < 4 * DEADLINE


def test_an_answer_that_nobody_reads_is_cut_off(url: str) -> None:
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    with connect(url, b"") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5 * DEADLINE)
        with pytest.raises(ConnectionError):  # not a timeout: the server no longer reads, and then it has gone
            for _ in range(100):
                client.sendall(requests)


def test_others_are_answered_beside_more_stalled_clients_than_connections(url: str) -> None:
    with contextlib.ExitStack() as stack:
        for sent in [*STALLED.values()] * 8:
            stack.enter_context(connect(url, sent))
        for _ in range(3):
            assert httpx.get(f"{url}/health", timeout=5).json() == {"status": "ok"}


def test_a_request_in_time_is_answered_and_its_connection_used_again(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for _ in range(4):
            assert client.get("/health").status_code == 200
            time.sleep(DEADLINE / 2)  # all together longer than one deadline


def test_answering_may_take_longer_than_the_deadline(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> list[dict[str, object]]:
        time.sleep(2 * DEADLINE)
        return []

    monkeypatch.setattr("factory.serve.resolver.ModelResolver.list_models", slow)
    with running(workplace, limits=Limits(transfer_seconds=DEADLINE)) as address:
        assert httpx.get(f"{address}/v1/models", timeout=10).json()["data"] == []
