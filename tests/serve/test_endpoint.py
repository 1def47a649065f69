"""A cascade that ends with a model elsewhere: what it is sent, what it costs, and the student's answer wherever it fails."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from support.cascades import EIGHT, SMALL, SURE, TINY, UNSURE, Place, place, streamed, text_of
from support.endpoints import FakeEndpoint, completion, fake_endpoint
from support.engines import Says

from factory.config.endpoints import EndpointSpec
from factory.errors import ServeError
from factory.serve.endpoint import FAILURES, HOUR, LONGEST_PAUSE, PAUSE, Breaker, Budget, Endpoint, Endpoints
from factory.serve.limits import APIError, Limits
from factory.serve.metrics import Metrics

PRICE = {"price": {"input": 2.0, "output": 10.0}, "max_cost_per_hour": 1.0}
COST = (40 * 2.0 + 10 * 10.0) / 1e6  # of support.endpoints.USAGE
SECRET = "sk-nobody-knows"


@contextmanager
def far(tmp_path: Path, giant: FakeEndpoint, *, limits: Limits | None = None, **more: Any) -> Iterator[Place]:
    """A cascade of two students that are not sure, and a model elsewhere."""
    own = {key: more.pop(key) for key in ("spec",) if key in more}
    spec = EndpointSpec.model_validate({"api": giant.api, "model": "big", "timeout_seconds": 2} | more)
    with place(tmp_path, cascade=["tiny", "small", "giant"], models={"giant": spec}, limits=limits, **own) as here:
        here.engines.says |= {TINY: Says("first guess", UNSURE), SMALL: Says("second guess", UNSURE)}
        yield here


@pytest.fixture
def giant() -> Iterator[FakeEndpoint]:
    with fake_endpoint() as one:
        yield one


def text(answer: httpx.Response, stream: bool) -> str:
    if not stream:
        return text_of(answer)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return streamed([json.loads(line) for line in lines if line != "[DONE]"])


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_what_no_student_is_sure_of(
    tmp_path: Path, giant: FakeEndpoint, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIANT_KEY", SECRET)
    with far(tmp_path, giant, key_env="GIANT_KEY", **PRICE) as here:
        answer = here.ask(stream=stream, seed=3, stream_options={"include_usage": True} if stream else None)
        samples = here.samples("factory_cost_total")
        seconds = here.samples("factory_cascade_step_seconds_count")
        tokens = here.samples("factory_tokens_total")
    assert text(answer, stream) == "from afar\n\nNo advice."
    assert answer.headers["x-factory-version"] == "giant"
    assert answer.headers["x-factory-cascade"].endswith(", giant")
    assert answer.headers["x-factory-why"] == "named in the request; giant is the last step"
    assert answer.headers["x-factory-domain"] == "healthcare"
    assert float(answer.headers["x-factory-cost"]) == samples["giant",] == pytest.approx(COST)
    assert set(seconds) == {(TINY,), (SMALL,), ("giant",)}
    assert (tokens["completion", "giant"], tokens["prompt", "giant"]) == (10, 40)
    assert '"completion_tokens": 10' in answer.text or '"completion_tokens":10' in answer.text
    [body] = giant.bodies
    context = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is light"}]
    assert body["messages"][:2] == context and body["messages"][-1] == {"role": "user", "content": "what is asthma"}
    assert (body["path"], body["model"], body["seed"], body["max_tokens"]) == ("/v1/chat/completions", "big", 3, 16)
    assert body["stream"] is False and not {"logprobs", "top_logprobs", "stream_options"} & body.keys()
    assert giant.keys == [f"Bearer {SECRET}"]


def test_a_sure_student_answers_and_nothing_leaves(tmp_path: Path, giant: FakeEndpoint) -> None:
    with far(tmp_path, giant) as here:
        here.engines.says[TINY] = Says(EIGHT, SURE)
        answer = here.ask()
    assert text_of(answer).startswith(EIGHT)
    assert giant.asked == 0 and "x-factory-cost" not in answer.headers


def test_fields_that_it_needs_are_added_and_those_that_it_does_not_know_left_out(tmp_path: Path, giant: FakeEndpoint) -> None:
    body = {"max_tokens": None, "max_completion_tokens": 900, "reasoning_effort": "low"}
    with far(tmp_path, giant, body=body) as here:
        assert here.ask().headers["x-factory-version"] == "giant"
    assert "max_tokens" not in giant.bodies[0]
    assert (giant.bodies[0]["max_completion_tokens"], giant.bodies[0]["reasoning_effort"]) == (900, "low")


# ------------------------------------------------------------------------------------------------------------ failures


def gone(giant: FakeEndpoint) -> None:
    giant.api = "http://127.0.0.1:9/v1"  # nobody listens there


def fails(**values: Any) -> Callable[[FakeEndpoint], None]:
    return lambda giant: [setattr(giant, name, value) for name, value in values.items()] and None


FAILURES_OF_ALL_KINDS: dict[str, tuple[Callable[[FakeEndpoint], None], str]] = {
    "gone": (gone, "cannot be reached (ClientConnectorError)"),
    "slow": (fails(seconds=3), "it took longer than 1 s"),
    "half an answer": (fails(cut=20), "cannot be reached (ClientPayloadError)"),
    "no JSON": (fails(says=b"<html>"), "did not answer with a JSON object"),
    "a list": (fails(says=[1]), "did not answer with a JSON object"),
    "another shape": (fails(says={"choices": []}), "not a valid chat.completion"),
    "no message": (fails(says=completion() | {"choices": [{"index": 0, "finish_reason": "stop"}]}), "not a valid"),
    "words for numbers": (fails(says=completion(usage={"prompt_tokens": "many"})), "not a valid chat.completion"),
    "an endless number": (fails(says=b'{"usage": {"prompt_tokens": 1e999}, "choices": []}'), "not a valid chat.completion"),
    "no text": (fails(says=completion(None)), "it answered with no text"),
    "500": (fails(status=500), "the engine failed with status 500"),
    "429": (fails(status=429), "the engine is busy"),
    "401": (fails(status=401), "the engine failed with status 401"),
    "400": (fails(status=400, says={"error": {"message": "what is asthma"}}), "it refused the request"),
    "elsewhere still": (fails(status=307, headers={"location": "http://127.0.0.1:9/"}), "failed with status 307"),
    "without an end": (fails(says=b"[" * 11_000_000), "an answer without an end"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", FAILURES_OF_ALL_KINDS)
def test_wherever_it_fails_the_students_answer_stands_within_the_time(
    tmp_path: Path, giant: FakeEndpoint, kind: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fail, why = FAILURES_OF_ALL_KINDS[kind]
    fail(giant)
    with caplog.at_level(logging.DEBUG), far(tmp_path, giant, timeout_seconds=1) as here:
        began = time.monotonic()
        answer = here.ask(stream=stream)
        assert time.monotonic() - began < 3
        assert here.samples("factory_cascade_steps_total")["giant", "failed"] == 1
    assert answer.status_code == 200
    assert text(answer, stream) == "second guess\n\nNo advice."
    assert answer.headers["x-factory-version"] == SMALL
    said = unquote(answer.headers["x-factory-why"])
    assert "giant failed (" in said and why in said and said.endswith(f"so the answer of {SMALL} stands")
    assert "asthma" not in caplog.text


def test_json_that_does_not_follow_the_schema_is_a_failure(tmp_path: Path, giant: FakeEndpoint) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    with far(tmp_path, giant) as here:
        for said, version in (('{"age": 3}', "giant"), ('{"age": "x"}', SMALL), ("no", SMALL), ("[" * 100_000, SMALL)):
            giant.says = completion(said)
            answer = here.ask(response_format=wanted)
            assert answer.headers["x-factory-version"] == version, said
        giant.says = completion("[]")
        assert here.ask(response_format={"type": "json_object"}).headers["x-factory-version"] == SMALL
    assert giant.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_who_fails_three_times_is_left_alone_and_comes_back(tmp_path: Path, giant: FakeEndpoint) -> None:
    giant.status = 500
    with far(tmp_path, giant) as here:
        answers = [here.ask() for _ in range(FAILURES + 2)]
    assert giant.asked == FAILURES
    assert "failed 3 times in a row and is asked again in" in unquote(answers[-1].headers["x-factory-why"])
    assert all(answer.headers["x-factory-version"] == SMALL for answer in answers)


def test_a_request_that_it_refuses_does_not_keep_others_from_it(tmp_path: Path, giant: FakeEndpoint) -> None:
    giant.status = 400
    with far(tmp_path, giant) as here:
        for _ in range(FAILURES + 1):
            here.ask()
        giant.status = 200
        assert here.ask().headers["x-factory-version"] == "giant"


def test_a_breaker_lets_one_request_try_after_each_pause_which_doubles() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    for _ in range(FAILURES):
        breaker.require()
        breaker.note(failed=True)
    pause = PAUSE
    for _ in range(12):
        with pytest.raises(APIError, match=f"asked again in {pause:g} s"):
            breaker.require()
        now += pause
        breaker.require()
        with pytest.raises(APIError, match="asked again in"):  # the others wait for the one that tries
            breaker.require()
        breaker.note(failed=True)
        pause = min(2 * pause, LONGEST_PAUSE)
    now += LONGEST_PAUSE
    breaker.require()
    breaker.note(failed=False)
    breaker.require()
    breaker.require()


def test_many_that_fail_together_are_one_reason_to_pause() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(50):
        breaker.require()
    for _ in range(50):
        breaker.note(failed=True)
    assert breaker.until == PAUSE


# --------------------------------------------------------------------------------------------------------------- money


def test_beyond_its_cap_it_is_not_asked(tmp_path: Path, giant: FakeEndpoint) -> None:
    with far(tmp_path, giant, **PRICE | {"max_cost_per_hour": 0.0012}) as here:
        versions = [here.ask().headers["x-factory-version"] for _ in range(8)]
        answer = here.ask()
        spent = here.samples("factory_cost_total")["giant",]
    assert versions[0] == "giant" and versions[-1] == SMALL and versions == sorted(versions)
    assert "its cap of 0.0012 an hour would be passed" in unquote(answer.headers["x-factory-why"])
    assert spent == pytest.approx(COST * giant.asked) and spent <= 0.0012


def test_a_budget_is_that_of_the_last_hour() -> None:
    now = 0.0
    budget = Budget(1.0, lambda: now)
    budget.reserve(0.6).cost = 0.3  # what it was at last
    now = HOUR / 2
    budget.reserve(0.7)
    with pytest.raises(APIError, match="its cap of 1 an hour"):
        budget.reserve(0.1)
    now = HOUR
    budget.reserve(0.3)
    with pytest.raises(APIError, match="its cap of 1 an hour"):
        budget.reserve(0.1)


@pytest.mark.parametrize(
    ("fail", "paid"),
    [
        (fails(says=completion(usage=None)), "most"),
        (fails(says=completion(usage={"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10})), "most"),
        (fails(cut=20), "most"),
        (fails(seconds=2), "most"),
        (fails(says=completion(None)), "usage"),
        (fails(status=500), "nothing"),
        (fails(status=401), "nothing"),
        (fails(status=400), "nothing"),
        (gone, "nothing"),
    ],
)
def test_what_it_may_have_billed_counts_at_most_and_what_it_refused_does_not(
    tmp_path: Path, giant: FakeEndpoint, fail: Callable[[FakeEndpoint], None], paid: str
) -> None:
    fail(giant)
    with far(tmp_path, giant, timeout_seconds=1, **PRICE) as here:
        answer = here.ask()
        cost = here.samples("factory_cost_total")["giant",]
    sent = giant.bodies[0]["messages"] if giant.bodies else []
    most = (sum(len(one["content"]) + 32 for one in sent) * 2.0 + 16 * 10.0) / 1e6
    assert cost == pytest.approx({"most": most, "usage": COST, "nothing": 0.0}[paid])
    assert float(answer.headers.get("x-factory-cost", 0)) == pytest.approx(cost, rel=1e-4)


def test_no_answer_costs_more_than_was_kept_for_it() -> None:
    price = {"price": {"input": 1e6, "output": 1e6}, "max_cost_per_hour": 1e9}
    spec = EndpointSpec.model_validate({"api": "http://a/v1", "model": "m"} | price)
    sent = {"messages": [{"role": "user", "content": "ä" * 10}], "max_tokens": None, "max_completion_tokens": 7}
    assert spec.cost(spec.most(sent)) == 20 + 32 + 7


# ------------------------------------------------------------------------------------------------------ what may leave


@pytest.mark.parametrize(("may_leave", "asked"), [(False, 0), (True, 1)])
def test_text_of_a_private_domain_leaves_only_where_it_may(
    tmp_path: Path, giant: FakeEndpoint, may_leave: bool, asked: int
) -> None:
    with far(tmp_path, giant, may_leave=may_leave, spec={"private": True}) as here:
        answer = here.ask()
        models = httpx.get(f"{here.url}/v1/models/healthcare", headers={"authorization": "Bearer all"}).json()
    assert giant.asked == asked
    assert models["steps"] == [TINY, SMALL, *(["giant"] if may_leave else [])]
    told = "giant is not asked, since text of this private domain must not leave" in unquote(answer.headers["x-factory-why"])
    assert told != may_leave


def test_a_key_that_does_not_allow_it_does_not_reach_it(tmp_path: Path, giant: FakeEndpoint) -> None:
    with far(tmp_path, giant) as here:
        answer = here.ask(key="students")
        assert giant.asked == 0 and answer.headers["x-factory-version"] == SMALL
        assert not any("giant" in value for value in answer.headers.values())
        here.ask()
        text = httpx.get(f"{here.url}/metrics", headers={"authorization": "Bearer students"}).text
        assert "giant" not in text
        assert here.ask("giant").status_code == 404  # it is no model by itself


def family(*cascade: str, **models: Any) -> Any:
    specs = {name: EndpointSpec.model_validate({"api": "http://a/v1", "model": "m"} | spec) for name, spec in models.items()}
    return SimpleNamespace(models=specs, serve=SimpleNamespace(cascade=cascade))


@pytest.mark.parametrize("environment", [{}, {"GIANT_KEY": " "}])
def test_a_key_that_is_not_set_is_one_line_at_the_start(environment: dict[str, str]) -> None:
    metrics = Metrics(lambda: 0, lambda: 0)
    with pytest.raises(ServeError, match=r"^models\.giant: the environment variable GIANT_KEY is not set"):
        Endpoints(family("tiny", "giant", giant={"key_env": "GIANT_KEY"}), environment, metrics)
    Endpoints(family("tiny", "teacher", giant={"key_env": "GIANT_KEY"}), environment, metrics)  # it is never asked


def test_nothing_is_paid_without_a_price() -> None:
    endpoint = Endpoint(EndpointSpec(api="http://a/v1", model="m"))
    assert endpoint.spec.cost({"prompt_tokens": 10**9, "completion_tokens": 10**9}) == 0.0
    assert endpoint.budget.cap == math.inf
