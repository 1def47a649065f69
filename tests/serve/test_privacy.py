"""What clients send is in no log: marked prompts, schemas, names, bodies and headers, whatever becomes of their requests.

Every logger of the process is at DEBUG, and what the process writes on stdout and stderr counts, llama.cpp's own lines too.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.fake_http import QuietHandler, served
from support.serving import running

from factory.models.chat import stop_tokens
from factory.models.folders import load_tokenizer
from factory.registry.registry import Registry
from factory.serve.agreement import Agreements
from factory.serve.limits import Limits
from factory.serve.prompts import Prompts
from factory.serve.scoring import Scorer

MARK = "xylophone7351"
STUDENT, DOMAIN = "plants-mini", "plants"
CHAT, COMPLETIONS, EMBEDDINGS, AGREEMENT = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/factory/agreement"
SAID = [{"role": "user", "content": f"what is {MARK} ?"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": STUDENT, "messages": SAID, "max_tokens": 2},
    COMPLETIONS: {"model": STUDENT, "prompt": MARK, "max_tokens": 2},
    EMBEDDINGS: {"model": STUDENT, "input": MARK},
    AGREEMENT: {"model": STUDENT, "prompt": MARK, "text": MARK},
}


class Records(logging.Handler):
    """All that is logged: the message, its arguments, and what a traceback would show."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        self.seen.append(f"{record.name} {record.getMessage()} {record.__dict__} {trace}")


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """``log()``: everything that this process has logged and written since the test began."""
    records = Records()
    loggers = [
        logging.getLogger(),
        *filter(lambda one: isinstance(one, logging.Logger), logging.root.manager.loggerDict.values()),
    ]
    before = [(one, one.level) for one in loggers if isinstance(one, logging.Logger)]
    for one, _ in before:
        one.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(records)

    def everything() -> str:
        gc.collect()  # asyncio logs the exception of a lost task as it is collected
        return "\n".join([*records.seen, *capfd.readouterr()])

    yield everything
    logging.getLogger().removeHandler(records)
    for one, level in before:
        one.setLevel(level)


def send(url: str, path: str, body: Any = None, headers: dict[str, str] | None = None, seconds: float = 60) -> tuple[int, str]:
    """Status and text; 0 if the client left after ``seconds``. Not httpx, which logs addresses itself."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=seconds)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(
            "GET" if data is None else "POST", path, data, {"content-type": "application/json"} | (headers or {})
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except TimeoutError:
        return 0, ""
    finally:
        connection.close()


def metrics_are_clean(url: str) -> bool:
    status, text = send(url, "/metrics")
    return status == 200 and "factory_requests" in text and MARK not in text


@contextmanager
def with_cascade(built: Any) -> Iterator[None]:
    built.write("default.family.yaml", built.family | {"serve": {"cascade": ["mini", "teacher"]}})
    try:
        yield
    finally:
        built.write("default.family.yaml", built.family)


def answered() -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that get an answer."""
    for path in (CHAT, COMPLETIONS):
        for more in ({}, {"stream": True}, {"model": "auto"}, {"model": "teacher"}, {"stop": MARK}, {"user": MARK}):
            yield path, BODIES[path] | more
        yield path, BODIES[path] | {MARK: MARK, "metadata": {MARK: MARK}}
    for stream in (False, True):
        yield CHAT, BODIES[CHAT] | {"model": DOMAIN, "stream": stream}
    yield COMPLETIONS, BODIES[COMPLETIONS] | {"echo": True, "logprobs": 1, "max_tokens": 0}
    yield CHAT, BODIES[CHAT] | {"messages": [{"role": "user", "content": "a", "name": MARK}]}
    yield EMBEDDINGS, BODIES[EMBEDDINGS] | {"user": MARK}
    yield AGREEMENT, BODIES[AGREEMENT]
    for schema in (
        {"type": "object", "title": MARK, "description": MARK, "properties": {MARK: {"enum": [MARK]}}, "required": [MARK]},
        {"type": "string", "pattern": f"^{MARK}$"},
        {"$ref": f"#/$defs/{MARK}", "$defs": {MARK: {"const": MARK}}},
    ):
        form = {"type": "json_schema", "json_schema": {"name": MARK, "description": MARK, "schema": schema}}
        yield CHAT, BODIES[CHAT] | {"response_format": form}


WRONG: list[Any] = [
    MARK,
    [MARK],
    {MARK: MARK},
    {"type": MARK},
    [{"type": MARK, "role": MARK, "content": MARK}],
    -1,
    None,
    10**30,
]
FIELDS = {
    CHAT: "model messages temperature stop seed logit_bias response_format stream_options tools tool_choice functions n",
    COMPLETIONS: "model prompt temperature stop logprobs suffix best_of echo stream",
    EMBEDDINGS: "model input encoding_format dimensions",
    AGREEMENT: "model prompt text by",
}
SCHEMAS: list[Any] = [
    {"allOf": [{MARK: 1}]},
    {"type": MARK},
    {"type": "string", "pattern": f"({MARK}"},
    {"type": "string", "pattern": f"^({MARK}?){{500}}$"},
    {"$ref": f"#/$defs/{MARK}"},
    {"enum": [MARK] * 300},
    {MARK: {MARK: MARK}},
    MARK,
]


def refused() -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Requests that are wrong in some way, and some that a field does not harm."""
    for path, fields in FIELDS.items():
        for field in (*fields.split(), MARK):
            for value in WRONG:
                yield path, BODIES[path] | {field: value}, {}
        for body in (f'{{"{MARK}": ', f'"{MARK}"', f'{{"model": {MARK}}}', f'[{{"{MARK}": {"[" * 5000}', f'{{"{MARK}": NaN}}'):
            yield path, body.encode(), {}
        yield path, f'"\ud800 {MARK}"'.encode("utf-8", "surrogatepass"), {}
        yield path, BODIES[path] | {"user": MARK * 100_000}, {}  # more than a body may be
        yield path, f"model={MARK}".encode(), {"content-type": "application/x-www-form-urlencoded"}
        yield path, BODIES[path], {"host": f"{MARK}.example"}
        yield path, BODIES[path], {"origin": f"http://{MARK}.example"}
        yield path, BODIES[path], {"x-request-id": f"not short {MARK}"}
    for schema in SCHEMAS:
        form = {"type": "json_schema", "json_schema": {"name": MARK, "schema": schema}}
        yield CHAT, BODIES[CHAT] | {"response_format": form}, {}
    tool = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {MARK: MARK}}}
    yield CHAT, BODIES[CHAT] | {"tools": [tool]}, {}
    yield CHAT, BODIES[CHAT] | {"messages": [*SAID, {"role": "assistant", "content": "a", "tool_calls": [tool]}]}, {}
    yield CHAT, BODIES[CHAT] | {"messages": [{"role": "user", "content": f"{MARK} " * 5000}]}, {}  # too long a prompt
    yield COMPLETIONS, BODIES[COMPLETIONS] | {"echo": True, "stop": MARK}, {}
    for path in (f"/v1/models/{MARK}", f"/static/{MARK}", f"/factory/card/{MARK}", f"/{MARK}", f"/health?prompt={MARK}"):
        yield path, None, {}


def test_requests_that_are_answered(built: Any, log: Callable[[], str]) -> None:
    with with_cascade(built), running(built) as url:
        for path, body in answered():
            status, text = send(url, path, body)
            assert status == 200, (path, body, text)
        assert metrics_are_clean(url)
    assert MARK not in log()


def test_requests_that_are_refused(built: Any, log: Callable[[], str]) -> None:
    seen: dict[int, int] = {}
    with running(built, limits=Limits(prompt_tokens=64, output_tokens=8)) as url:
        for path, body, headers in refused():
            status, text = send(url, path, body, headers)
            assert status < 500, (path, body, text)
            seen[status] = seen.get(status, 0) + 1
        assert metrics_are_clean(url)
    assert sum(seen.values()) > 300 and {200, 400, 403, 404, 413} <= set(seen)
    assert MARK not in log()


def test_unknown_and_exhausted_keys(built: Any, log: Callable[[], str]) -> None:
    keys = built.root / "keys.yaml"
    keys.write_text(f"{MARK}: {{models: '*', requests_per_minute: 2}}\nold{MARK}: {{models: '*', expires: 2020-01-31}}\n")
    with running(built, api_keys=keys) as url:
        found = [
            send(url, EMBEDDINGS, BODIES[EMBEDDINGS], {"authorization": f"Bearer {key}"})[0]
            for key in (MARK, MARK, MARK, f"old{MARK}", f"other{MARK}")
        ]
        keys.write_text(f"{MARK}: {{{MARK}: 1}}\n")
        found.append(send(url, "/v1/models", None, {"authorization": f"Bearer {MARK}"})[0])
    assert found == [200, 200, 429, 401, 401, 429]
    said = log()
    assert "unknown setting" in said and MARK not in said


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ValueError, UnicodeDecodeError])
def test_bugs(built: Any, log: Callable[[], str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise kind("utf-8", MARK.encode(), 0, 1, MARK) if kind is UnicodeDecodeError else kind(MARK)

    async def fail_later(*_: Any, **__: Any) -> Any:
        fail()

    for owner, name, function in (
        (Prompts, "turns", fail),
        (Prompts, "ids", fail),
        (Scorer, "embed", fail_later),
        (Scorer, "score", fail_later),
        (Agreements, "compare", fail_later),
    ):
        with monkeypatch.context() as patched, running(built) as url:
            patched.setattr(owner, name, function)
            found = [send(url, path, body | {"echo": True} if path == COMPLETIONS else body) for path, body in BODIES.items()]
            assert metrics_are_clean(url)
        assert 500 in [status for status, _ in found]
        assert not any(MARK in text for status, text in found if status == 500)
    said = log()
    assert f"request failed: {kind.__name__}" in said and MARK not in said


@contextmanager
def broken_upstream(kind: str) -> Iterator[str]:
    """A server that repeats what it was sent wherever it can."""

    class Broken(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            error = json.dumps({"error": {"message": body.decode(), "type": MARK}}).encode()
            streamed = {"status": body, "shape": b"data: " + body, "error": b"data: " + error, "cut": b"data: {" + body}[kind]
            self.send_response({"status": 500, "error": 400}.get(kind, 200) if b'"stream": true' not in body else 200)
            self.send_header("content-length", str(len(streamed) + 50 * (kind == "cut")))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(streamed + b"\n\n" if kind != "cut" else streamed)

    with served(Broken) as url:
        yield f"{url}/v1"


@pytest.mark.parametrize("kind", ["status", "shape", "error", "cut"])
def test_engines_that_break_and_repeat_what_they_were_asked(built: Any, log: Callable[[], str], kind: str) -> None:
    with broken_upstream(kind) as upstream, with_cascade(built), running(built, upstream=upstream) as url:
        for path in (CHAT, COMPLETIONS):
            for more in (
                {},
                {"stream": True},
                *([{"model": DOMAIN}, {"model": DOMAIN, "stream": True}] if path == CHAT else []),
            ):
                status, text = send(url, path, BODIES[path] | more)
                assert status in (400, 500, 502) or '"error"' in text, text
        assert metrics_are_clean(url)
    assert MARK not in log()


def endless(built: Any) -> dict[str, int]:
    base = Registry(built.root / "registry").resolve("default-mini-base")
    return {str(token): -100 for token in stop_tokens(load_tokenizer(base.folder))}


def too_long(built: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    more = {"logit_bias": endless(built), "max_tokens": 400}
    for stream in (False, True):
        yield CHAT, BODIES[CHAT] | more | {"stream": stream}
        yield COMPLETIONS, BODIES[COMPLETIONS] | more | {"stream": stream, "prompt": [MARK] * 64}
    yield COMPLETIONS, BODIES[COMPLETIONS] | {"echo": True, "max_tokens": 400, "prompt": [MARK] * 64}
    yield EMBEDDINGS, BODIES[EMBEDDINGS] | {"input": [f"{MARK} " * 40] * 500}


@pytest.mark.parametrize("leaves", [False, True], ids=["the time is up", "the client leaves"])
def test_work_that_is_broken_off(built: Any, log: Callable[[], str], leaves: bool) -> None:
    ended = []
    with running(built, limits=Limits(seconds=60 if leaves else 0.3, parallel=1, output_tokens=400)) as url:
        send(url, COMPLETIONS, BODIES[COMPLETIONS])  # starts the engine
        for path, body in too_long(built):
            status, text = send(url, path, body, seconds=0.2 if leaves else 60)
            ended.append(status == 0 if leaves else status == 504 or '"code":"timeout"' in text)
        with socket.create_connection(urlsplit(url).netloc.split(":")) as half:  # type: ignore[arg-type]
            half.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{MARK}".encode())
        time.sleep(0.2)
        assert metrics_are_clean(url)
    assert sum(ended) >= 3
    assert MARK not in log()


def test_a_mark_that_is_logged_is_found(log: Callable[[], str]) -> None:
    logging.getLogger("factory.serve").debug("%s", MARK)
    assert MARK in log()
