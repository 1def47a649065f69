"""Who answers where several may: decisions without a server, and requests to one whose engines say what a test tells them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from support import manifests
from support.cascades import CONFIDENCE, EIGHT, SMALL, SURE, TINY, UNSURE, Place, calibration, place, streamed, text_of
from support.engines import Says
from support.serving import publish_again, running

from factory.config.schema import TeacherContext, Turn
from factory.evaluation.confidence import ESCALATED, FIRST, KEPT, SIGNALS, Confidence, Decision, TokenSignal, decide
from factory.registry.registry import Registry
from factory.serve.auth import Caller
from factory.serve.cascade import ABSTAINED, Plan, confidence_of, read
from factory.serve.limits import APIError, Limits
from factory.serve.prompts import with_context
from factory.serve.resolver import TEACHER, Target
from factory.serve.schemas import ChatRequest
from factory.serve.streams import RequestContext


def tokens(*nats: float) -> list[TokenSignal]:
    return [TokenSignal(one, 0.5, 1.0) for one in nats]


# ------------------------------------------------------------------------------------------------------------ decisions


@pytest.mark.parametrize(
    ("nats", "keep", "beginning", "expected"),
    [
        (0.5, 0.95, False, Decision(KEPT, "0.62 >= 0.60")),
        (0.5, 0.95, True, Decision(ESCALATED, "0.62 < 0.70")),  # a beginning has a threshold of its own
        (0.5, 1.0, False, Decision(ESCALATED, "0.62 < 0.90")),
        (0.0, 1.0, False, Decision(KEPT, "0.95 >= 0.90")),
        (2.0, 0.95, False, Decision(ESCALATED, "0.00 < 0.60")),
    ],
)
def test_an_answer_is_kept_from_the_students_threshold_on(
    nats: float, keep: float, beginning: bool, expected: Decision
) -> None:
    assert decide(CONFIDENCE, tokens(nats, nats), keep, beginning=beginning) == expected


def test_a_beginning_is_judged_by_its_first_tokens_and_an_answer_by_all() -> None:
    answer = tokens(*[SURE] * FIRST, *[UNSURE] * 100)
    assert decide(CONFIDENCE, answer, 0.95, beginning=True).outcome == KEPT
    assert decide(CONFIDENCE, answer, 0.95, beginning=False).outcome == ESCALATED


def test_a_student_that_cannot_tell_passes_the_question_on() -> None:
    assert decide(None, tokens(SURE), 0.95, beginning=False) == Decision(ESCALATED, "has no confidence")
    nothing = decide(CONFIDENCE, [], 0.95, beginning=False)
    assert nothing == Decision(ESCALATED, "said nothing that can be judged")


def test_the_last_step_is_judged_only_where_the_family_abstains() -> None:
    student, last = Target(manifests.student("healthcare-tiny"), "base"), Target(manifests.student(), "base")
    request = ChatRequest.model_validate({"model": "healthcare", "messages": [{"role": "user", "content": "a"}]})
    plan = Plan((student, last), 0.95, "", request, 8, RequestContext("chat/completions", Caller(), 0.0, 0.0))
    assert (plan.judges(student), plan.judges(last)) == (True, False)
    assert plan.decide(last, [], beginning=False) == Decision(KEPT)
    abstaining = replace(plan, abstain="Ask a nurse.")
    assert abstaining.judges(last)
    assert abstaining.decide(last, tokens(SURE), beginning=False) == Decision(ABSTAINED, "has no confidence")
    assert abstaining.decide(student, tokens(SURE), beginning=False) == Decision(ESCALATED, "has no confidence")


def test_a_malformed_confidence_is_none_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "confidence.json").write_text("{}")
    version = replace(manifests.student(), folder=tmp_path)
    with caplog.at_level(logging.ERROR):
        assert confidence_of(Target(version, "base")) is None
    assert "is not a student's confidence" in caplog.text
    assert confidence_of(Target(None, TEACHER)) is None


# --------------------------------------------------------------------------------------------------- tokens and contexts


@pytest.mark.parametrize(("top", "shown"), [(None, None), (0, 0), (2, 2)])
def test_a_client_sees_the_log_probabilities_that_it_asked_for(top: int | None, shown: int | None) -> None:
    said = {"choices": [{"logprobs": {"content": Says("a", SURE).tokens}, "text": "a"}], "usage": {}}
    signals, visible = read(said, top)
    assert [round(signal.nats, 2) for signal in signals] == [SURE]
    [choice] = visible["choices"]
    assert (choice["text"], visible["usage"]) == ("a", {})
    assert (choice["logprobs"] and len(choice["logprobs"]["content"][0]["top_logprobs"])) == shown


@pytest.mark.parametrize("content", [{"choices": [{"logprobs": {"content": [{"logprob": -1}]}}]}, {"choices": ["a"]}])
def test_log_probabilities_of_another_shape_are_an_engines_error(content: Any) -> None:
    with pytest.raises(APIError, match="log-probabilities are malformed") as error:
        read(content, None)
    assert (error.value.status, error.value.code) == (502, "bad_engine")


def test_a_context_precedes_the_requests_messages_with_one_system_turn() -> None:
    context = TeacherContext(system="Be brief.", examples=(Turn(prompt="q", completion="a"),))
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is gout?"}
    shown = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert with_context([user], context) == [{"role": "system", "content": "Be brief."}, *shown, user]
    assert with_context([system, user], context) == [{"role": "system", "content": "Be brief.\n\nBe kind."}, *shown, user]
    assert with_context([system, user], TeacherContext()) == [system, user]


# ------------------------------------------------------------------------------------------------------------ a server


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as one:
        yield one


# ------------------------------------------------------------------------------------------------------- whole answers


def test_a_sure_student_answers_and_nobody_else_is_asked(here: Place) -> None:
    answer = here.ask()
    assert here.engines.asked == [TINY]
    assert text_of(answer) == f"{EIGHT}\n\nKein Arzt."
    assert answer.json()["model"] == answer.headers["x-factory-version"] == TINY
    assert answer.headers["x-factory-cascade"] == f"{TINY} 0.95 >= 0.60"
    assert answer.headers["x-factory-why"] == f"named in the request; {TINY} was sure enough"
    assert here.engines.bodies[0]["top_logprobs"] == 5


def test_the_next_size_answers_where_the_first_is_not_sure(here: Place) -> None:
    here.engines.says[TINY] = Says("guess", UNSURE)
    answer = here.ask()
    assert here.engines.asked == [TINY, SMALL]
    assert text_of(answer) == "small\n\nNo advice."
    assert answer.headers["x-factory-cascade"] == f"{TINY} 0.00 < 0.60, {SMALL} 0.95 >= 0.60"


def test_the_teacher_is_the_last_and_is_shown_the_domains_context(here: Place) -> None:
    here.engines.says |= {TINY: Says("guess", UNSURE), SMALL: Says("guess", UNSURE)}
    answer = here.ask()
    assert here.engines.asked == [TINY, SMALL, TEACHER]
    question = {"role": "user", "content": "what is asthma"}
    shown = [{"role": "user", "content": "what is light"}, {"role": "assistant", "content": "it is sugar"}]
    assert here.engines.bodies[0]["messages"] == here.engines.bodies[1]["messages"] == [question]
    assert here.engines.bodies[2]["messages"] == [{"role": "system", "content": "Be brief."}, *shown, question]
    assert "logprobs" not in here.engines.bodies[2]
    assert text_of(answer) == "taught\n\nNo advice."  # the domain's notice, whoever answers
    assert answer.json()["model"] == answer.headers["x-factory-version"] == TEACHER
    assert answer.headers["x-factory-domain"] == "healthcare"
    assert answer.headers["x-factory-cascade"] == f"{TINY} 0.00 < 0.60, {SMALL} 0.00 < 0.60, teacher"
    assert answer.headers["x-factory-why"].endswith("teacher is the last step")


def test_the_teacher_alone_has_no_context(here: Place) -> None:
    answer = here.ask(TEACHER)
    assert len(here.engines.bodies[0]["messages"]) == 1
    assert "x-factory-cascade" not in answer.headers


def test_keep_decides_how_sure_is_sure(tmp_path: Path) -> None:
    with place(tmp_path, keep=1.0) as here:
        here.engines.says[TINY] = Says("well", 0.2)
        assert here.ask().headers["x-factory-cascade"].startswith(f"{TINY} 0.88 < 0.90, ")


def test_students_without_a_confidence_pass_every_question_on(tmp_path: Path) -> None:
    with place(tmp_path, confident=False) as here:
        answer = here.ask()
    assert answer.headers["x-factory-cascade"] == f"{TINY} has no confidence, {SMALL} has no confidence, teacher"
    assert text_of(answer).startswith("taught")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [None, 0, 3, 7])
def test_only_log_probabilities_that_were_asked_for_are_answered(here: Place, top: int | None, stream: bool) -> None:
    asked = {} if top is None else {"logprobs": True, "top_logprobs": top}
    answer = here.ask(stream=stream, **asked)
    assert here.engines.bodies[0]["top_logprobs"] == max(5, top or 0)
    found = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line and "[DONE]" not in line]
    told = [one for part in found for choice in part["choices"] for one in (choice.get("logprobs") or {}).get("content", ())]
    assert [len(one["top_logprobs"]) for one in told] == ([] if top is None else [top] * FIRST)


def test_a_request_in_json_keeps_its_shape_at_every_step(here: Place) -> None:
    here.engines.says[TINY] = Says("guess", UNSURE)
    answer = here.ask(response_format={"type": "json_object"}, seed=3)
    assert [(body["response_format"], body["seed"]) for body in here.engines.bodies] == [({"type": "json_object"}, 3)] * 2
    assert text_of(answer) == "small"  # without a notice


def test_logit_bias_is_refused_since_models_have_tokens_of_their_own(here: Place) -> None:
    answer = here.ask(logit_bias={"3": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias")
    assert "a cascade has several" in answer.json()["error"]["message"]
    assert not here.engines.bodies


def test_completions_ask_the_first_step_alone(here: Place) -> None:
    here.engines.says[TINY] = Says("guess", UNSURE)
    body = {"model": "healthcare", "prompt": "what is", "max_tokens": 4}
    answer = httpx.post(f"{here.url}/v1/completions", json=body, headers={"authorization": "Bearer all"})
    assert here.engines.asked == [TINY]
    assert answer.headers["x-factory-version"] == TINY


def test_auto_goes_on_with_the_domains_cascade(here: Place) -> None:
    here.engines.says[TINY] = Says("guess", UNSURE)
    answer = here.ask("auto")
    assert here.engines.asked == [TINY, SMALL]
    assert answer.headers["x-factory-why"] == f"the router chose healthcare with score 0.700; {SMALL} was sure enough"
    assert (answer.headers["x-factory-score"], answer.headers["x-factory-threshold"]) == ("0.7", "0.5")
    assert "route;dur=" in answer.headers["server-timing"]


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("stream", [False, True])
def test_where_the_last_step_fails_the_student_before_it_answers(here: Place, stream: bool) -> None:
    here.engines.says |= {TINY: Says("first", UNSURE), SMALL: Says("second", UNSURE), TEACHER: Says("", status=500)}
    answer = here.ask(stream=stream)
    assert answer.status_code == 200
    assert "second" in answer.text and "first" not in answer.text
    assert answer.headers["x-factory-version"] == SMALL
    unsure = "0.00 < 0.70" if stream else "0.00 < 0.60"
    again = f", {SMALL}" if stream else ""  # its stream was closed
    assert answer.headers["x-factory-cascade"] == f"{TINY} {unsure}, {SMALL} {unsure}, teacher failed{again}"
    why = f"teacher failed (the engine failed with status 500), so the answer of {SMALL} stands"
    assert unquote(answer.headers["x-factory-why"]).endswith(why)


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_is_passed_over(here: Place, stream: bool) -> None:
    here.engines.says |= {TINY: Says("", status=500), SMALL: Says("guess", UNSURE)}
    answer = here.ask(stream=stream)
    assert here.engines.asked == [TINY, SMALL, TEACHER]
    assert "taught" in answer.text
    assert answer.headers["x-factory-cascade"].startswith(f"{TINY} failed, {SMALL} 0.00 < ")


@pytest.mark.parametrize("stream", [False, True])
def test_where_every_step_fails_the_last_failure_is_the_answer(here: Place, stream: bool) -> None:
    here.engines.says |= {TINY: Says("", status=500), SMALL: Says("", status=500), TEACHER: Says("", status=503)}
    answer = here.ask(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")


def test_a_request_that_is_at_fault_itself_is_refused_at_once(here: Place) -> None:
    answer = here.ask(messages=[{"role": "user", "content": "asthma " * 300}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert not here.engines.bodies
    here.engines.says[TINY] = Says("", status=400)
    answer = here.ask()
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "it does not want to")
    assert here.engines.asked == [TINY]


def test_a_prompt_that_is_too_long_with_the_teachers_context_stays_with_the_student(tmp_path: Path) -> None:
    with place(tmp_path, limits=Limits(prompt_tokens=24)) as here:
        here.engines.says |= {TINY: Says("guess", UNSURE), SMALL: Says("second", UNSURE)}
        answer = here.ask()
        assert here.engines.asked == [TINY, SMALL]
    assert text_of(answer).startswith("second")
    assert "teacher failed (messages has" in unquote(answer.headers["x-factory-why"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_takes_too_long_leaves_time_for_the_answer_that_there_is(tmp_path: Path, stream: bool) -> None:
    with place(tmp_path, limits=Limits(prompt_tokens=200, seconds=4.0), cascade=["tiny", "teacher"]) as here:
        here.engines.says |= {TINY: Says("first", UNSURE), TEACHER: Says("taught", seconds=5.0)}
        answer = here.ask(stream=stream)
    assert answer.status_code == 200
    assert "first" in answer.text and "timeout" not in answer.text
    assert "teacher failed (it took too long)" in unquote(answer.headers["x-factory-why"])


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_sure_beginning_is_sent_and_the_stream_goes_on(here: Place) -> None:
    here.engines.says[TINY] = Says(f"{EIGHT} nine ten", [SURE] * FIRST + [UNSURE] * 2)
    answer, chunks = here.stream(stream_options={"include_usage": True})
    assert here.engines.asked == [TINY]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert streamed(chunks) == f"{EIGHT} nine ten\n\nKein Arzt."
    assert {chunk["model"] for chunk in chunks} == {TINY}
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert answer.headers["x-factory-cascade"] == f"{TINY} 0.95 >= 0.70"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_of_an_unsure_beginning_nothing_is_sent(here: Place) -> None:
    here.engines.says |= {TINY: Says(" ".join(["guess"] * 40), UNSURE), SMALL: Says("guess", UNSURE)}
    answer, chunks = here.stream()
    assert streamed(chunks) == "taught\n\nNo advice."
    assert "guess" not in answer.text
    assert {chunk["model"] for chunk in chunks} == {TEACHER}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert answer.headers["x-factory-version"] == TEACHER
    assert answer.headers["x-factory-cascade"] == f"{TINY} 0.00 < 0.70, {SMALL} 0.00 < 0.70, teacher"


def test_a_stream_that_breaks_before_it_is_judged_is_passed_over(here: Place) -> None:
    here.engines.says[TINY] = Says("one two three four", SURE, breaks=True)
    answer, chunks = here.stream()
    assert streamed(chunks) == "small\n\nNo advice."
    assert answer.headers["x-factory-cascade"].startswith(f"{TINY} failed, ")


def test_a_stream_that_breaks_after_it_was_kept_ends_in_an_error(here: Place) -> None:
    here.engines.says[TINY] = Says(f"{EIGHT} {EIGHT} {EIGHT}", SURE, breaks=True)
    _, chunks = here.stream()
    assert chunks[-1]["error"]["code"] == "engine_failed"
    assert streamed(chunks[:-1]).startswith(EIGHT)
    assert here.engines.asked == [TINY]


# ----------------------------------------------------------------------------------------------------------- abstaining


@pytest.mark.parametrize("stream", [False, True])
def test_a_family_that_abstains_answers_its_text_where_the_last_student_is_not_sure(tmp_path: Path, stream: bool) -> None:
    with place(tmp_path, cascade=["tiny", "small"], abstain="Ask a nurse.") as here:
        here.engines.says |= {TINY: Says("guess", UNSURE), SMALL: Says("guess", UNSURE)}
        answer, chunks = here.stream() if stream else (here.ask(), [])
        assert here.samples("factory_cascade_steps_total")[SMALL, ABSTAINED] == 1
    assert (streamed(chunks) if stream else text_of(answer)) == "Ask a nurse.\n\nNo advice."
    assert "guess" not in answer.text
    assert answer.headers["x-factory-version"] == SMALL
    assert answer.headers["x-factory-why"].endswith("was not sure enough, so the family abstains")


@pytest.mark.parametrize("stream", [False, True])
def test_an_abstention_from_json_is_a_refusal(tmp_path: Path, stream: bool) -> None:
    with place(tmp_path, cascade=["tiny"], abstain="Ask a nurse.") as here:
        here.engines.says[TINY] = Says("guess", UNSURE)
        answer = here.ask(stream=stream, response_format={"type": "json_object"})
    parts = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line and "[DONE]" not in line]
    deltas = [choice["delta" if stream else "message"] for part in parts for choice in part["choices"]]
    assert [delta["refusal"] for delta in deltas if delta.get("refusal")] == ["Ask a nurse."]
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize("stream", [False, True])
def test_a_family_that_abstains_never_answers_what_nobody_is_sure_of(tmp_path: Path, stream: bool) -> None:
    with place(tmp_path, cascade=["tiny", "small"], abstain="Ask a nurse.") as here:
        here.engines.says |= {TINY: Says("guess", UNSURE), SMALL: Says("", status=500)}
        answer = here.ask(stream=stream)
    assert "Ask a nurse." in answer.text and "guess" not in answer.text


def test_a_last_student_that_is_sure_answers_itself(tmp_path: Path) -> None:
    with place(tmp_path, cascade=["tiny"], abstain="Ask a nurse.") as here:
        assert text_of(here.ask()).startswith(EIGHT)


# --------------------------------------------------------------------------------------------------- keys and metrics


@pytest.mark.parametrize(
    ("key", "asked", "hidden"),
    [("tiny", [TINY], ("small", TEACHER)), ("upper", [SMALL, TEACHER], ("tiny",))],
)
def test_a_key_has_the_steps_that_it_allows_and_hears_of_no_other(
    here: Place, key: str, asked: list[str], hidden: tuple[str, ...]
) -> None:
    here.engines.says |= {TINY: Says("guess", UNSURE), SMALL: Says("guess", UNSURE)}
    answer = here.ask(key=key)
    assert here.engines.asked == asked
    assert answer.headers["x-factory-version"] == asked[-1]
    assert not any(name in str(value) for name in hidden for value in answer.headers.values())
    here.ask()  # of somebody else
    models = {model for model, _ in here.samples("factory_cascade_steps_total", key)}
    assert models == set(asked)


def test_a_key_for_no_student_has_no_cascade(here: Place) -> None:
    answer = here.ask(key="teacher")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
    headers = {"authorization": "Bearer teacher"}
    assert "healthcare" not in httpx.get(f"{here.url}/v1/models", headers=headers).text


def test_an_unknown_domain_is_404(here: Place) -> None:
    assert here.ask("nothing").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_steps_and_the_tokens_of_each_are_counted(here: Place, stream: bool) -> None:
    here.engines.says |= {TINY: Says(f"{EIGHT} nine", UNSURE), SMALL: Says("", status=500), TEACHER: Says("well taught")}
    assert here.ask(stream=stream).status_code == 200
    assert here.samples("factory_cascade_steps_total") == {
        (TINY, ESCALATED): 1, (SMALL, "failed"): 1, (TEACHER, KEPT): 1,
    }  # fmt: skip
    tokens = here.samples("factory_tokens_total")
    assert tokens["completion", TINY] == (8 if stream else 9)  # of a stream those that were read
    assert tokens["prompt", TINY] > 0
    assert tokens["completion", TEACHER] == 2
    [(model, *_)] = here.samples("factory_requests_total")
    assert model == TEACHER


# --------------------------------------------------------------------------------------------------------- llama.cpp


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sure", [True, False])
def test_llama_cpp_says_what_a_student_is_judged_by(built: Any, sure: bool, stream: bool) -> None:
    """A student that is sure of whatever it says, or of nothing: its answer is the same as without a cascade."""
    one = replace(calibration(0.6), weights=(0.0,) * len(SIGNALS), bias=3.0 if sure else -3.0)
    name = f"{'sure' if sure else 'unsure'}{stream}".lower()
    version = publish_again(Registry(built.root / "registry"), f"{name}-mini", confidence=Confidence(0.2, one, one))
    built.write("default.family.yaml", built.family | {"serve": {"cascade": ["mini", "teacher"]}})
    body = {"messages": [{"role": "user", "content": "what is the cause of oak ?"}], "max_tokens": 24, "stream": stream}
    try:
        with running(built) as url:
            cascade, alone = (
                httpx.post(f"{url}/v1/chat/completions", json=body | {"model": model}, timeout=60)
                for model in (name, version.name if sure else TEACHER)
            )
    finally:
        built.write("default.family.yaml", built.family)
    judged = f"0.95 >= {0.6:.2f}" if sure else "0.05 < 0.60, teacher"
    assert cascade.headers["x-factory-cascade"] == f"{version.reference} {judged}"
    assert said_by(cascade) == said_by(alone) != ""
    assert "top_logprobs" not in cascade.text


def said_by(answer: httpx.Response) -> str:
    parts = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line and "[DONE]" not in line]
    choices = [choice for part in parts for choice in part["choices"]]
    return "".join((choice.get("delta") or choice.get("message") or {}).get("content") or "" for choice in choices)
