"""How much each API key may still use of the requests and tokens that its entry in the file allows.

rates = Rates()
rates.take_request(caller)            # APIError 429 beyond requests_per_minute
rates.require_tokens(caller)          # APIError 429 where its tokens are used up
rates.take_tokens(caller, 1024)       # before an answer: as many as it may have
rates.take_tokens(caller, 60 - 1024)  # after it: what it did not need is given back

A limit is a bucket that refills steadily and holds a minute's worth, or a day's. Tokens may become fewer than none, and then
have to be waited for: an answer that has begun is never cut. All is kept in memory, and begins anew with the server.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from factory.serve.auth import Caller
from factory.serve.limits import APIError

REQUESTS: Mapping[str, float] = {"requests_per_minute": 60.0}  # a limit's name → its seconds
TOKENS: Mapping[str, float] = {"tokens_per_minute": 60.0, "tokens_per_day": 86_400.0}
ROUNDING = 1e-6  # of a unit: who has waited for as long as it was told is let in


@dataclass
class Bucket:
    """``Bucket(60, 60.0, left=60, at=now)``: 60 a minute."""

    size: float
    seconds: float
    left: float
    at: float  # when ``left`` was right

    def wait(self, now: float) -> float:
        """Seconds until one whole unit is left; 0 where it is."""
        self._refill(now)
        missing = 1 - self.left
        return missing * self.seconds / self.size if missing > ROUNDING else 0.0

    def take(self, amount: float, now: float) -> None:
        """A negative amount is given back; what does not fit is lost."""
        self._refill(now)
        self.left -= amount

    def _refill(self, now: float) -> None:
        self.left = min(self.size, self.left + max(0.0, now - self.at) * self.size / self.seconds)
        self.at = now


class Rates:
    """``Rates().take_request(caller)``: one bucket for each limit of each key, from its first request on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._buckets: dict[tuple[str, str, int], Bucket] = {}  # by key, limit and size: a changed limit counts at once

    def take_request(self, caller: Caller) -> None:
        """Raises: APIError 429 if the key has had its requests of a minute; ``Retry-After`` is when there is one more."""
        self._require(caller, REQUESTS)
        self._take(caller, REQUESTS, 1)

    def require_tokens(self, caller: Caller) -> None:
        """Raises: APIError 429 if the key has had its tokens of a minute or a day; ``Retry-After`` is when there are more."""
        self._require(caller, TOKENS)

    def take_tokens(self, caller: Caller, tokens: int) -> None:
        """``rates.take_tokens(caller, 60)``; fewer than none are given back."""
        self._take(caller, TOKENS, tokens)

    def _require(self, caller: Caller, limits: Mapping[str, float]) -> None:
        for name, bucket in self._of(caller, limits):
            if wait := math.ceil(bucket.wait(self.clock())):
                message = f"this API key has used its {bucket.size:,} {name.replace('_', ' ')}; try again in {wait} s"
                raise APIError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait)})

    def _take(self, caller: Caller, limits: Mapping[str, float], amount: int) -> None:
        for _, bucket in self._of(caller, limits):
            bucket.take(amount, self.clock())

    def _of(self, caller: Caller, limits: Mapping[str, float]) -> Iterator[tuple[str, Bucket]]:
        for name, seconds in limits.items():
            if size := getattr(caller, name):
                yield name, self._buckets.setdefault((caller.key, name, size), Bucket(size, seconds, size, self.clock()))
