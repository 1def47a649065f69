"""A model elsewhere that fails in the way a test tells it: an HTTP server in a thread, in the shape of OpenAI's API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from support.fake_http import QuietHandler, served

USAGE = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}


def completion(text: str | None = "from afar", **more: Any) -> dict[str, Any]:
    """``completion("from afar", usage={})``: a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "big", "choices": [choice], "usage": USAGE} | more


@dataclass
class FakeEndpoint:
    """What it answers next, and what it was asked."""

    api: str
    says: Any = field(default_factory=completion)  # JSON, bytes as they are, or a function of the request's body
    status: int = 200
    seconds: float = 0.0  # before it says anything
    cut: int = 0  # bytes at the end that never come
    headers: dict[str, str] = field(default_factory=dict)
    script: list[dict[str, Any]] = field(default_factory=list)  # what the next requests get instead: {"status": 500}
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return len(self.bodies)


@contextmanager
def fake_endpoint() -> Iterator[FakeEndpoint]:
    """``with fake_endpoint() as giant: giant.status = 500``"""
    giant = FakeEndpoint("")

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            giant.bodies.append(body | {"path": self.path})
            giant.keys.append(self.headers["authorization"])
            now = replace(giant, **giant.script.pop(0)) if giant.script else giant
            time.sleep(now.seconds)
            says = now.says(body) if callable(now.says) else now.says
            data = says if isinstance(says, bytes) else json.dumps(says).encode()
            self.send_response(now.status)
            for name, value in now.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with suppress(OSError):  # who asked has left
                self.wfile.write(data[: len(data) - now.cut])

    with served(Handler) as url:
        giant.api = f"{url}/v1"
        yield giant
