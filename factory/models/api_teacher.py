"""A teacher behind an OpenAI-compatible API: what it writes, within its caps, and what that cost.

    teacher = ApiTeacher(family.api, Account(home() / "spent" / "legal.jsonl"), family.api.key(os.environ))
    for name, completion in teacher.write({name: messages(prompt, context)}, 96):
        ...  # in the order in which they are answered

A request is sent again, later each time, where its answer may come yet: after 429 and 5xx, a time-out, a connection that
breaks, and an answer that is cut off, empty or in another format. The account has every request that may have been paid.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from factory.cache import cache_key
from factory.config.endpoints import ApiTeacherSpec
from factory.data.dataset import Completion
from factory.errors import FactoryError, ModelResolutionError, TrainingError
from factory.models.top_logprobs import MAX_TOP_LOGPROBS, read_top_logprobs

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a request is sent again, doubled each time, and halved at random
LONGEST_ASKED = 600.0  # seconds that a server may ask for by Retry-After
MAX_BYTES, MAX_SAID = 10_000_000, 200  # bytes of an answer; characters of why it refuses
Turns = Sequence[Mapping[str, str]]  # of a chat, the question last
AGAIN = {408, 409, 425, 429}  # statuses after which the same request may be answered, beside 5xx
OF_ONE_PROMPT = {400, 413, 422}  # statuses with which an API declines one prompt, too
MAX_DECLINED = 5  # prompts in a row, after which it is the request that is wrong


@dataclass(frozen=True)
class Usage:
    """What was asked of an API; ``uncounted`` requests came back without a count, and count as what they cost at most."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def negative(self) -> Usage:
        """``total + usage.negative()``: without it."""
        return Usage(*(-value for value in vars(self).values()))


@dataclass(frozen=True)
class Account:
    """``Account(path).total().cost``: every request that was or may have been paid, a JSON line each, written as it ends."""

    path: Path

    def add(self, usage: Usage) -> None:
        """``account.add(Usage(1, 40, 10))``: on disk when it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(vars(usage)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def total(self) -> Usage:
        """``account.total().tokens``: of all lines but one that was cut off by a kill."""
        total = Usage()
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            with suppress(ValueError, TypeError):
                total += Usage(**json.loads(line))
        return total


class Again(Exception):
    """Raised where the same request may be answered later: ``after`` so many seconds, where the server said so.

    ``usage`` is what it said that this try cost; ``billed``: it may have cost something, whatever it said.
    """

    def __init__(self, why: str, *, billed: bool, usage: Usage | None = None, after: float = 0.0) -> None:
        super().__init__(why)
        self.billed, self.usage, self.after = billed, usage, after


class Declined(Exception):
    """Raised where this request will not be answered, whenever it is sent."""


@dataclass(frozen=True, eq=False)
class ApiTeacher:
    """``ApiTeacher(family.api, Account(path), key).write({name: turns}, 96)``: nothing is asked before."""

    spec: ApiTeacherSpec
    account: Account
    key: str | None = field(default=None, repr=False)

    @property
    def revision(self) -> str:
        """Of what decides its answers."""
        return cache_key(*self.spec.identity)

    def write(self, asked: Mapping[str, Turns], max_new_tokens: int) -> Iterator[tuple[str, Completion]]:
        """``for name, completion in teacher.write({name: messages(prompt, context)}, 96):`` as they are answered; greedy.

        A prompt that it declines has an empty completion, which did not finish. Where one fails, the answers that are on their
        way are still given. Raises: ModelResolutionError without its key; TrainingError where a cap is reached, or it fails.
        """
        if self.key == "":
            raise ModelResolutionError(
                f"the environment variable {self.spec.key_env} is not set; it holds the key of the teacher, {self.spec.model}"
            )
        waiting, declined = iter(asked), 0
        running: dict[Future[Completion], str] = {}
        failure: Exception | None = None
        with _client(self.spec) as client, ThreadPoolExecutor(self.spec.concurrency, "teacher") as pool:
            desk = _Desk(self, client)
            try:
                while True:
                    free = self.spec.concurrency - len(running) if failure is None else 0
                    for name in islice(waiting, free):
                        running[pool.submit(desk.ask, asked[name], max_new_tokens)] = name
                    if not running:
                        break
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        name, completion = running.pop(done), Completion("", finished=False)
                        try:
                            completion, declined = done.result(), 0
                        except Declined as error:
                            declined += 1
                            if declined >= MAX_DECLINED:
                                failure = failure or TrainingError(f"the teacher, {self.spec.model}, {error}")
                        except FactoryError as error:
                            failure = failure or error
                            continue
                        yield name, completion
            finally:
                desk.close()
        if failure is not None:
            raise failure


def _client(spec: ApiTeacherSpec) -> httpx.Client:
    return httpx.Client(timeout=httpx.Timeout(spec.timeout_seconds, connect=min(10, spec.timeout_seconds)))


class _Desk:
    """Sends one teacher's requests from several threads, within its caps and its rate."""

    def __init__(self, teacher: ApiTeacher, client: httpx.Client) -> None:
        self.teacher, self.spec, self.client = teacher, teacher.spec, client
        self.stop = threading.Event()
        self.state = threading.Condition()  # of the three below
        self.spent, self.reserved, self.next_at = teacher.account.total(), Usage(), 0.0

    def close(self) -> None:
        self.stop.set()
        with self.state:
            self.state.notify_all()

    def ask(self, turns: Turns, max_new_tokens: int) -> Completion:
        """Raises: Declined; TrainingError where a cap is reached, it refuses all requests or fails too often."""
        named = {"logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS} if self.spec.tokenizer else {}
        sent = self.spec.request({"messages": turns, "max_tokens": max_new_tokens, "temperature": 0} | named)
        usage = self.spec.most(sent)
        most, why = Usage(1, **usage, uncounted=1, cost=self.spec.cost(usage)), ""
        for attempt in range(self.spec.attempts):
            self._reserve(most)
            paid: Usage | None = most
            try:
                completion, found = self._once(sent)
                paid = found or most
                return completion
            except Again as error:
                paid = (error.usage or most) if error.billed else None
                why, after = str(error), error.after
            except (Declined, FactoryError):
                paid = None
                raise
            finally:
                self._settle(most, paid)
            delay = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
            if attempt + 1 < self.spec.attempts and self.stop.wait(max(delay, after)):
                break
        raise TrainingError(
            f"the teacher, {self.spec.model}, failed {self.spec.attempts} times in a row for one prompt, in the end because it "
            f"{why}; what it answered is kept: run the same command to go on"
        )

    def _reserve(self, most: Usage) -> None:
        """Waits for requests on their way, which may cost less than they could. Raises: TrainingError where a cap is met."""
        spec = self.spec
        with self.state:
            while not self.stop.is_set():
                after = self.spent + self.reserved + most
                money = spec.max_cost is not None and after.cost > spec.max_cost
                if not money and (spec.max_tokens is None or after.tokens <= spec.max_tokens):
                    break
                if not self.reserved.requests:
                    cap, left = ("max_cost", f"{spec.max_cost:g}") if money else ("max_tokens", f"{spec.max_tokens:,}")
                    raise TrainingError(
                        f"the teacher, {spec.model}, has reached {cap}, {left}: {self.spent.tokens:,} tokens were "
                        f"spent{f' for {self.spent.cost:.4g}' if spec.price else ''}, and the next request could pass it; what "
                        f"it answered is kept: raise teacher.{cap} and run the same command to go on"
                    )
                self.state.wait()
            self.reserved += most
            wait = self.next_at - time.monotonic()
            self.next_at = max(self.next_at, time.monotonic()) + 60 / (spec.requests_per_minute or math.inf)
        self.stop.wait(max(0.0, wait))

    def _settle(self, most: Usage, paid: Usage | None) -> None:
        with self.state:
            self.reserved += most.negative()
            if paid is not None:
                self.spent += paid
                self.teacher.account.add(paid)
            self.state.notify_all()

    def _once(self, sent: Mapping[str, Any]) -> tuple[Completion, Usage | None]:
        """The completion, and its cost where the answer says it."""
        status, headers, data = self._post(sent)
        if status in AGAIN or status >= 500:
            raise Again(f"answered with status {status}", billed=False, after=_asked_to_wait(headers))
        if status in OF_ONE_PROMPT:
            raise Declined(f"refuses requests with status {status}: {self._said(data)}")
        if status != 200:
            key = f"; its key is in {self.spec.key_env}" if self.spec.key_env else "; it has no key: name key_env"
            hint = {401: key, 403: key, 404: f"; is there a model {self.spec.model} at {self.spec.api}?"}.get(status, "")
            raise TrainingError(f"the teacher, {self.spec.model}, answered with status {status}{hint}")
        try:
            content = json.loads(data)
            usage = self._usage(content.get("usage"))
            choice = content["choices"][0]
            text, ended = choice["message"].get("content"), choice.get("finish_reason")
            refused, said = text is None, choice.get("logprobs")
            text = choice["message"].get("refusal") if refused else text
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            raise Again("answered in another format than a chat completion", billed=True) from None
        if not isinstance(text, str | None):
            raise Again("answered with something else than text", billed=True, usage=usage)
        if not (text or "").strip() and ended != "length":  # thoughts may have used up the limit, and would again
            raise Again("answered with no text", billed=True, usage=usage)
        text = (text or "").strip()
        if refused or self.spec.tokenizer is None:
            return Completion(text, ended == "stop"), usage
        try:
            top = read_top_logprobs(said.get("content") if isinstance(said, dict) else None, text)
        except ValueError as error:
            raise Again(str(error), billed=True, usage=usage) from None
        return Completion(text, ended == "stop", top.pack()), usage

    def _post(self, sent: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """``timeout_seconds`` are for all of it, however slowly it comes."""
        headers = {"Accept-Encoding": "identity"} | (
            {"Authorization": f"Bearer {self.teacher.key}"} if self.teacher.key else {}
        )
        url, ends = f"{self.spec.api.rstrip('/')}/chat/completions", time.monotonic() + self.spec.timeout_seconds
        data = b""
        try:
            with self.client.stream("POST", url, json=sent, headers=headers) as response:
                for part in response.iter_raw():
                    data += part
                    if len(data) > MAX_BYTES:
                        raise Again("sent an answer without an end", billed=True)
                    if time.monotonic() > ends:
                        raise Again(f"took longer than {self.spec.timeout_seconds:g} s", billed=True)
                return response.status_code, response.headers, data
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise Again(f"cannot be reached at {self.spec.api}", billed=False) from None
        except httpx.TimeoutException:
            raise Again(f"took longer than {self.spec.timeout_seconds:g} s", billed=True) from None
        except httpx.TransportError:
            raise Again("broke off in the middle", billed=True) from None

    def _usage(self, given: Any) -> Usage | None:
        """None where it does not say both counts."""
        names = ("prompt_tokens", "completion_tokens")
        counts = {name: given[name] for name in names if type(given.get(name)) is int} if isinstance(given, dict) else {}
        if len(counts) < len(names) or min(counts.values()) < 0 or not any(counts.values()):
            return None
        return Usage(1, **counts, cost=self.spec.cost(counts))

    def _said(self, data: bytes) -> str:
        """Why it refuses, without the key, which some repeat."""
        with suppress(ValueError, RecursionError, AttributeError, LookupError, TypeError):
            said = str(json.loads(data)["error"]["message"])[:MAX_SAID]
            return said.replace(self.teacher.key, "***") if self.teacher.key else said
        return "it does not say why"


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that Retry-After asks for, as a number or as a date."""
    given = headers.get("retry-after", "")
    with suppress(ValueError, TypeError):
        return min(LONGEST_ASKED, max(0.0, float(given)))
    with suppress(ValueError, TypeError):
        return min(LONGEST_ASKED, max(0.0, parsedate_to_datetime(given).timestamp() - time.time()))
    return 0.0
