"""Engines that say what a test tells them: an HTTP server in a thread, in the shape of llama.cpp's chat completions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from factory.serve.engines import Lease
from factory.serve.resolver import Target
from support.fake_http import QuietHandler, served


@dataclass(frozen=True)
class Says:
    """``Says("gout is an illness", nats=0.01)``: one token a word; ``status``: what it fails with instead."""

    text: str
    nats: float | Sequence[float] = 0.01  # of every token, or of each
    status: int = 200
    seconds: float = 0.0  # before it says anything
    breaks: bool = False  # in the middle of its stream

    @property
    def tokens(self) -> list[dict[str, Any]]:
        words = [word if not place else f" {word}" for place, word in enumerate(self.text.split())]
        each = self.nats if not isinstance(self.nats, float) else [self.nats] * len(words)
        return [_token(word, nats) for word, nats in zip(words, each, strict=True)]


def _token(word: str, nats: float) -> dict[str, Any]:
    rest = math.log(max(1e-9, 1 - math.exp(-nats)) / 10)
    top = [
        {"token": word, "bytes": None, "logprob": -nats},
        *({"token": "x", "bytes": None, "logprob": rest} for _ in range(9)),
    ]
    return {"token": word, "bytes": None, "logprob": -nats, "top_logprobs": top}


@dataclass
class FakeEngines:
    """``FakeEngines(url, says)``, as ``Engines``: one request at a time, like an engine with one slot."""

    url: str
    says: dict[str, Says]  # by reference
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of every request, in order
    open: int = 0  # leases that were not given back
    most: int = 0  # of them at once

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[Lease]:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            yield Lease(self.url)
        finally:
            self.open -= 1

    def count(self) -> int:
        return 1

    async def close(self) -> None:
        pass

    @property
    def asked(self) -> list[str]:
        """``healthcare-small@1``, ``teacher``: who was asked, in order."""
        return [body["model"] for body in self.bodies]


@contextmanager
def fake_engines(**says: Says) -> Iterator[FakeEngines]:
    """``with fake_engines(teacher=Says("gout")) as engines:``; for references: ``engines.says["healthcare-small@1"] = ...``"""
    engines = FakeEngines("", dict(says))

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            engines.bodies.append(body)
            said = engines.says[body["model"]]
            time.sleep(said.seconds)
            self.send_response(said.status)
            self.end_headers()
            try:
                for part in _parts(said, body):
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:  # the gateway has closed the stream
                pass

    with served(Handler) as url:
        engines.url = url
        yield engines


def _parts(said: Says, body: dict[str, Any]) -> Iterator[bytes]:
    if said.status != 200:
        yield b'{"error": {"message": "it does not want to"}}'
        return
    tokens = [token | {"top_logprobs": token["top_logprobs"][: body.get("top_logprobs", 0)]} for token in said.tokens]
    shown = {"content": tokens} if body.get("logprobs") else None
    usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}
    if not body["stream"]:
        message = {"role": "assistant", "content": said.text}
        choice = {"index": 0, "message": message, "text": said.text, "finish_reason": "stop"} | (
            {"logprobs": shown} if shown else {}
        )
        yield json.dumps({"choices": [choice], "usage": usage}).encode()
        return
    for place, token in enumerate(tokens):
        if said.breaks and place == len(tokens) // 2:
            yield b'data: {"error": {"message": "it broke"}}\n\n'
            return
        delta = ({"role": "assistant"} if not place else {}) | {"content": token["token"]}
        choice = {"delta": delta, "finish_reason": None} | ({"logprobs": {"content": [token]}} if shown else {})
        yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    yield b"data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}).encode() + b"\n\n"
    yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
