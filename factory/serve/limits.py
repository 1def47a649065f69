"""What a client may do: its key and the students it opens, how much it may send, ask for and wait for.

keys = Keys.load(Path("keys.yaml"))          # {key: [healthcare-small, teacher], other-key: "*"}
keys.caller("Bearer k1").may("healthcare-small")
"""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factory.errors import ServeError

EVERY = "*"


class APIError(Exception):
    """``raise APIError(429, "...", code="queue_full")``: an answer in OpenAI's shape of errors, before or amid a stream."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """Of one request, and of how many there may be at once."""

    body_bytes: int = 1_000_000
    prompt_tokens: int = 1024
    output_tokens: int = 1024
    seconds: float = 120.0
    parallel: int = 4  # answered by one engine at the same time
    queue: int = 128  # admitted in all, those that are answered included; the next one is told to come later

    @property
    def context(self) -> int:
        """Tokens that a request may have in all."""
        return self.prompt_tokens + self.output_tokens


# ---------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class Caller:
    """Who asks: the students that its key opens, or everything."""

    students: frozenset[str] = frozenset({EVERY})

    def may(self, name: str) -> bool:
        """``caller.may("healthcare-small")``: a student's bare name, or the word ``teacher``."""
        return EVERY in self.students or name in self.students


@dataclass(frozen=True)
class Keys:
    """Keys by what they open; without any, everyone on this machine may use everything."""

    opens: Mapping[str, Caller]

    @classmethod
    def load(cls, path: Path | None) -> Keys:
        """``Keys.load(Path("keys.yaml"))``: YAML or JSON, a mapping of key to a list of students, ``"*"`` for all.

        Raises: ServeError for a file that cannot be read or says something else.
        """
        if path is None:
            return cls({})
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no YAML"  # what yaml quotes may be a key
            raise ServeError(f"--api-keys {path} cannot be read: {why}") from None
        if not isinstance(content, dict) or not content:
            raise ServeError(f"--api-keys {path}: expected keys, as in `a-long-random-key: [healthcare-small]`, or '*' for all")
        opens = {}
        for number, (key, students) in enumerate(content.items(), start=1):
            names = [students] if isinstance(students, str) else students
            if not isinstance(key, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ServeError(f"--api-keys {path}: entry {number}: expected a key and a list of students, or '*' for all")
            opens[key] = Caller(frozenset(names))
        return cls(opens)

    def caller(self, authorization: str | None) -> Caller:
        """``keys.caller(request.headers.get("authorization"))``. Raises: APIError for a missing or unknown key."""
        if not self.opens:
            return Caller()
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise APIError(401, "no API key: send it as `Authorization: Bearer KEY`", code="missing_api_key")
        found = None
        for key, caller in self.opens.items():  # every one is compared, so that the time tells nothing
            if hmac.compare_digest(key.encode(), given.strip().encode()):
                found = caller
        if found is None:
            raise APIError(401, "this API key is not known here", code="invalid_api_key")
        return found


# --------------------------------------------------------------------------------------------------------------- queue


class Queue:
    """``with queue.place():`` one of a bounded number of requests; the next is told when to come again."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0
        self._seconds = 1.0  # of a request, lately

    def enter(self, parallel: int) -> None:
        """Raises: APIError 429 with ``Retry-After`` where the queue is full."""
        if self.inside >= self.most:
            wait = max(1, min(60, round(self._seconds * self.inside / parallel)))
            raise APIError(
                429,
                f"{self.inside} requests are waiting or being answered, as many as this server takes; try again in {wait} s",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )
        self.inside += 1

    def leave(self, seconds: float) -> None:
        """After ``enter``, whatever happened."""
        self.inside -= 1
        self._seconds += 0.1 * (seconds - self._seconds)


class AdapterScheduler:
    """``async with turns.slot("healthcare-small@3"):`` at most ``slots`` at once, and all of them with one adapter.

    llama.cpp puts only requests with the same adapter into one batch and lets the others stand for as long as the first
    goes on, so a busy adapter would starve the rest. Here whoever has waited longer than ``patience`` seconds is next:
    nobody joins the running adapter any more, and when it is done the longest waiting one's turn begins.
    """

    def __init__(self, slots: int, patience: float = 2.0) -> None:
        self.slots, self.patience = slots, patience
        self.running, self.adapter = 0, ""
        self._waiting: deque[tuple[str, float, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def slot(self, adapter: str) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        place = (adapter, loop.time(), loop.create_future())
        self._waiting.append(place)
        self._admit(loop.time())
        try:
            await place[2]
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place[2].cancelled():  # admitted and cancelled in the same moment
                self.running -= 1
            self._admit(loop.time())
            raise
        try:
            yield
        finally:
            self.running -= 1
            self._admit(loop.time())

    def _admit(self, now: float) -> None:
        self._waiting = deque(place for place in self._waiting if not place[2].cancelled())
        while self._waiting and self.running < self.slots:
            adapter, since, _ = self._waiting[0]
            if not self.running:
                self.adapter = adapter
            elif adapter != self.adapter and now - since > self.patience:
                return
            place = next((one for one in self._waiting if one[0] == self.adapter), None)
            if place is None:
                return
            self._waiting.remove(place)
            self.running += 1
            place[2].set_result(None)
