"""How much a client may send and ask for, how many requests the server admits, and the error that refuses the rest.

limits = Limits(prompt_tokens=512)
raise APIError(400, "max_tokens is 9000; this server allows 1 to 1024", code="invalid_value", param="max_tokens")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factory.machine import machine_memory

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
MAX_RETRY_SECONDS = 60


class APIError(Exception):
    """``raise APIError(429, "...", code="queue_full")``: an error in OpenAI's format, before or within a stream."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        error_type = ERROR_TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": error_type, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of how many are served at once."""

    body_bytes: int = 1_000_000
    prompt_tokens: int = 1024
    output_tokens: int = 1024
    seconds: float = 120.0
    parallel: int = 4  # requests that one engine answers at the same time
    queue: int = 128  # requests admitted, those being answered included; the next one gets a 429
    queue_per_key: int | None = None  # of these, where there are API keys; None: half of them
    strict: bool = False  # refuse fields that would be ignored
    connections: int = 512  # open at once; the one that has waited longest for a request makes room for a new one
    transfer_seconds: int = 30  # for a request to arrive, and for a client to read what is sent
    memory: int | None = None  # bytes that models may take, about; None: half of the machine's

    @property
    def per_key(self) -> int:
        """Requests of one API key at once."""
        return self.queue_per_key or max(1, self.queue // 2)

    @property
    def context(self) -> int:
        """Tokens of prompt and output together."""
        return self.prompt_tokens + self.output_tokens

    @property
    def engine_memory(self) -> int:
        """Of llama.cpp's engines together; the rest is for what transformers does."""
        return self._memory * 3 // 4

    @property
    def adapter_memory(self) -> int:
        """Of the adapters of one engine."""
        return self.engine_memory // 4

    @property
    def model_memory(self) -> int:
        """Of transformers' models, for embeddings and scoring."""
        return self._memory // 4

    @property
    def _memory(self) -> int:
        return self.memory or machine_memory() // 2


class Queue:
    """``queue.enter(parallel)`` … ``queue.leave(seconds)``: counts admitted requests, at most ``capacity`` and ``per_key``."""

    def __init__(self, capacity: int, per_key: int) -> None:
        self.capacity, self.per_key, self.length = capacity, per_key, 0
        self._of_key: Counter[str] = Counter()
        self._seconds_per_request = 1.0  # moving average

    def enter(self, parallel: int, key: str = "") -> None:
        """Admits one request; without a ``key`` it may be of anyone.

        Raises: APIError 429 if the queue, or the key's share of it, is full; ``Retry-After`` estimates when it will be empty.
        """
        if self.length >= self.capacity:
            raise self._full(f"the server is full ({self.length} of {self.capacity} requests)", self.length, parallel)
        if key and self._of_key[key] >= self.per_key:
            raise self._full(f"this API key has its share of the queue ({self.per_key} requests)", self.per_key, parallel)
        self.length += 1
        self._of_key[key] += 1

    def leave(self, seconds: float, key: str = "") -> None:
        """Once for each ``enter``, whether the request succeeded or not; ``seconds`` is how long it took."""
        self.length -= 1
        self._of_key[key] -= 1
        self._seconds_per_request += 0.1 * (seconds - self._seconds_per_request)

    def _full(self, problem: str, requests: int, parallel: int) -> APIError:
        wait = max(1, min(MAX_RETRY_SECONDS, round(self._seconds_per_request * requests / parallel)))
        message, headers = f"{problem}; try again in {wait} s", {"Retry-After": str(wait)}
        return APIError(429, message, code="queue_full", headers=headers)
