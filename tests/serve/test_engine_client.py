"""What clients see of an engine's refusals and failures."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from support.fake_http import QuietHandler, served

from factory.serve.engine_client import EngineClient
from factory.serve.engines import Lease
from factory.serve.limits import APIError


class Engine(QuietHandler):
    """Answers with the status that the path names, and with the body that it was sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/events/breaks":  # as one that dies: it has promised more
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'data: {"a": 1}\n\ndata: {"a"')
            return
        if self.path == "/events/endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has seen enough
                while True:
                    self.wfile.write(b"x" * 100_000)
            return
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Engine) as one:
        yield one


def ask(url: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        client = EngineClient()
        try:
            return await client.answer(Lease(url), f"/{status}", body)
        finally:
            await client.close()

    return asyncio.run(run())


def test_an_answer_is_the_engines_json(url: str) -> None:
    assert ask(url, 200, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"message": "no such grammar"}, (400, "engine_refused", "no such grammar")),
        (400, {"type": "exceed_context_size_error", "message": "long"}, (400, "context_length_exceeded", "long")),
        (503, {"message": "secret"}, (429, "queue_full", "the engine is busy; try again in 1 s")),
        (500, {"message": "secret"}, (502, "engine_failed", "the engine failed with status 500")),
    ],
)
def test_a_refusal_says_why_and_a_failure_only_that(
    url: str, status: int, error: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    with pytest.raises(APIError) as found:
        ask(url, status, {"error": error})
    assert (found.value.status, found.value.code, found.value.message) == expected
    assert json.dumps(found.value.body())


@pytest.mark.parametrize(
    ("path", "seen", "expected"),
    [("/events/breaks", [{"a": 1}], (503, "engine_failed")), ("/events/endless", [], (502, "bad_engine"))],
)
def test_a_stream_that_breaks_or_never_ends_a_line_is_one_error(
    url: str, path: str, seen: list[Any], expected: tuple[int, str]
) -> None:
    found = []

    async def run() -> None:
        client = EngineClient()
        try:
            async with client.events(Lease(url), path, {}) as events:
                async for event in events:
                    found.append(event)
        finally:
            await client.close()

    with pytest.raises(APIError) as error:
        asyncio.run(run())
    assert (found, (error.value.status, error.value.code)) == (seen, expected)


def test_an_engine_that_is_gone_may_be_asked_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(APIError, match="ended or cannot be reached") as error:
            ask(f"http://127.0.0.1:{free.getsockname()[1]}", 200, {})
    assert (error.value.status, error.value.headers) == (503, {"Retry-After": "1"})


@pytest.mark.parametrize(("closed", "answered"), [(1, True), (2, False)])
def test_a_connection_that_is_closed_without_a_word_is_opened_once_more(closed: int, answered: bool) -> None:
    left = closed

    class Closing(Engine):
        def do_POST(self) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                self.rfile.read(int(self.headers["content-length"]))
                self.close_connection = True
                return
            super().do_POST()

    with served(Closing) as address:
        if answered:
            assert ask(address, 200, {"a": 1}) == {"a": 1}
        else:
            with pytest.raises(APIError, match="ended or cannot be reached"):
                ask(address, 200, {"a": 1})
