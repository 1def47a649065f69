"""A teacher behind an API that fails in every way: what is asked again, what it costs, and what is never paid twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.endpoints import FakeEndpoint, completion, fake_endpoint
from support.teacher import speaks

from factory.config.endpoints import ApiTeacherSpec
from factory.config.schema import TeacherContext, Turn
from factory.data.dataset import Completion
from factory.data.sources import Example
from factory.errors import FactoryError, ModelResolutionError, TrainingError
from factory.models import api_teacher
from factory.models.api_teacher import Account, ApiTeacher, Usage
from factory.models.chat import NO_CONTEXT, messages
from factory.models.references import ResolvedModel
from factory.models.teacher import Teacher, read_completions
from factory.models.top_logprobs import TopLogprobs

PRICE: dict[str, Any] = {"price": {"input": 2.0, "output": 10.0}, "max_cost": 1.0}
COST = (40 * 2.0 + 10 * 10.0) / 1e6  # of support.endpoints.USAGE
SECRET = "sk-nobody-knows"
PROMPTS = [f"what is the price of {thing} ?" for thing in ("oak", "elm", "ash", "fir", "yew", "ivy")]


@pytest.fixture
def far() -> Iterator[FakeEndpoint]:
    with fake_endpoint() as one:
        yield one


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_teacher, "FIRST_WAIT", 0.01)


def teacher(far: FakeEndpoint, folder: Path, key: str | None = None, **more: Any) -> ApiTeacher:
    spec = {"api": far.api, "model": "big", "license": "terms", "timeout_seconds": 60, "concurrency": 1, "attempts": 3} | more
    return ApiTeacher(ApiTeacherSpec.model_validate(spec), Account(folder / "spent.jsonl"), key)


def turns(prompts: list[str], context: TeacherContext = NO_CONTEXT) -> dict[str, list[dict[str, str]]]:
    return {prompt: messages(prompt, context) for prompt in prompts}


def complete_all(behind: Teacher, folder: Path) -> dict[str, Completion]:
    examples = [Example(prompt, prompt, "", "", "", "", ()) for prompt in PROMPTS]
    return behind.complete(examples, NO_CONTEXT, folder=folder / "answers", max_new_tokens=16, repetition_penalty=1, seed=0)


def written(one: ApiTeacher, prompts: list[str] = PROMPTS[:1]) -> dict[str, Completion]:
    return dict(one.write(turns(prompts), 16))


# ----------------------------------------------------------------------------------------------------------- what is sent


def test_it_is_asked_greedily_with_its_context_and_its_own_fields(far: FakeEndpoint, tmp_path: Path) -> None:
    context = TeacherContext(system="be brief", examples=(Turn(prompt="why", completion="so"),))
    one = teacher(far, tmp_path, SECRET, body={"top_p": 1, "temperature": None})
    assert dict(one.write(turns(PROMPTS[:1], context), 16)) == {PROMPTS[0]: Completion("from afar", True)}
    [body] = far.bodies
    assert body == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "why"},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": PROMPTS[0]},
        ],
        "max_tokens": 16,
        "stream": False,
        "top_p": 1,
        "path": "/v1/chat/completions",
    }
    assert far.keys == [f"Bearer {SECRET}"]


def test_many_requests_run_at_a_time_and_each_prompt_gets_its_own_answer(far: FakeEndpoint, tmp_path: Path) -> None:
    far.says, far.seconds = lambda body: completion(body["messages"][-1]["content"].upper()), 1.0
    begun = time.monotonic()
    found = written(teacher(far, tmp_path, concurrency=6), PROMPTS)
    assert {prompt: one.text for prompt, one in found.items()} == {prompt: prompt.upper() for prompt in PROMPTS}
    assert time.monotonic() - begun < 6 * 1.0


def test_requests_keep_to_their_rate(far: FakeEndpoint, tmp_path: Path) -> None:
    begun = time.monotonic()
    written(teacher(far, tmp_path, concurrency=6, requests_per_minute=1200), PROMPTS)
    assert time.monotonic() - begun >= 5 * 60 / 1200


# ------------------------------------------------------------------------------------------------------- what is sent again

NO_TEXT = completion("")
FAILURES: dict[str, tuple[dict[str, Any], int]] = {  # what it does once, and requests that may have been paid for it
    "429": ({"status": 429, "says": b"slow down"}, 0),
    "500": ({"status": 500}, 0),
    "503": ({"status": 503, "says": b""}, 0),
    "stalls": ({"seconds": 1.5}, 1),
    "truncates": ({"cut": 30}, 1),
    "no JSON": ({"says": b"<html>"}, 1),
    "a list": ({"says": []}, 1),
    "no choice": ({"says": completion() | {"choices": []}}, 1),
    "a number for text": ({"says": completion(7)}, 1),  # type: ignore[arg-type]
    "no text": ({"says": NO_TEXT}, 1),
    "null for text": ({"says": completion(None)}, 1),
}


@pytest.mark.parametrize("how", FAILURES)
def test_what_fails_once_is_asked_again_and_all_that_may_be_paid_is_counted(
    far: FakeEndpoint, tmp_path: Path, how: str
) -> None:
    failure, paid = FAILURES[how]
    far.script = [failure]
    one = teacher(far, tmp_path, **PRICE, **({"timeout_seconds": 1} if how == "stalls" else {}))
    assert written(one) == {PROMPTS[0]: Completion("from afar", True)}
    total = one.account.total()
    assert far.asked == 2 and total.requests == 1 + paid
    assert total.cost >= COST and (total.cost == pytest.approx(COST)) == (not paid)
    assert total.uncounted == (paid if how not in ("no text", "null for text", "a number for text") else 0)


def test_a_request_that_is_never_answered_stops_and_keeps_the_others(far: FakeEndpoint, tmp_path: Path) -> None:
    far.says = lambda body: b"" if "ash" in body["messages"][-1]["content"] else completion()
    found: dict[str, Completion] = {}
    with pytest.raises(TrainingError, match=r"big, failed 3 times .* another format .* run the same command to go on"):
        for prompt, one in teacher(far, tmp_path, concurrency=2).write(turns(PROMPTS), 16):
            found[prompt] = one
    assert PROMPTS[0] in found and PROMPTS[2] not in found


@pytest.mark.parametrize("as_date", [False, True])
def test_it_waits_as_long_as_the_server_asks(far: FakeEndpoint, tmp_path: Path, as_date: bool) -> None:
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True) if as_date else "1"
    far.script = [{"status": 429, "headers": {"retry-after": after}}]
    begun = time.monotonic()
    written(teacher(far, tmp_path))
    assert time.monotonic() - begun >= 1


@given(st.text(max_size=20) | st.sampled_from(["-5", "nan", "inf", "1e9", "Wed, 99 Foo 2026"]))
def test_whatever_a_server_asks_for_the_wait_is_short_enough(text: str) -> None:
    assert 0 <= api_teacher._asked_to_wait({"retry-after": text}) <= api_teacher.LONGEST_ASKED


def test_one_that_cannot_be_reached_costs_nothing(tmp_path: Path) -> None:
    with fake_endpoint() as gone:
        one = teacher(gone, tmp_path, **PRICE)
    with pytest.raises(TrainingError, match="cannot be reached"):
        written(one)
    assert one.account.total() == Usage()


@pytest.mark.parametrize(
    ("logprobs", "why"),
    [
        (None, "gave no top_logprobs; where it never does, leave teacher.tokenizer out"),
        ({"content": [{"token": "near by", "logprob": 0.0, "top_logprobs": []}]}, "gave top_logprobs of another text"),
        ({"content": [{"token": "from", "logprob": 0.0}]}, "in another format"),
    ],
)
def test_likeliest_tokens_that_are_missing_or_wrong_are_asked_again_and_paid(
    far: FakeEndpoint, tmp_path: Path, logprobs: Any, why: str
) -> None:
    good, bad = completion(), completion()
    named = [{"token": "from", "logprob": -0.2}]
    words = [{"token": "from", "logprob": -0.2, "top_logprobs": named}, {"token": " afar", "logprob": 0.0, "top_logprobs": []}]
    good["choices"][0] |= {"logprobs": {"content": words}}
    bad["choices"][0] |= {"logprobs": logprobs}
    far.says, far.script = good, [{"says": bad}]
    one = teacher(far, tmp_path, tokenizer="path:./base", **PRICE)
    found = written(one)[PROMPTS[0]]
    assert TopLogprobs.unpack(found.top_logprobs) == TopLogprobs(9, {0: ((b"from", -0.2),)})
    assert far.asked == 2 and one.account.total() == Usage(2, 80, 20, 0, pytest.approx(2 * COST))
    assert all(body["logprobs"] is True and body["top_logprobs"] == 20 for body in far.bodies)
    far.says = bad
    with pytest.raises(TrainingError, match=why):
        written(one)


def test_likeliest_tokens_are_kept_with_their_answers(far: FakeEndpoint, tmp_path: Path) -> None:
    base = tiny.saved(tmp_path / "base", tiny.llama())
    files, far.says = ResolvedModel(base, "path:./base", "0", "mit", "0"), speaks(base)
    behind = Teacher.behind(teacher(far, tmp_path, tokenizer="path:./base", concurrency=2), files, tiny.CPU)
    found = complete_all(behind, tmp_path)
    assert all(TopLogprobs.unpack(one.top_logprobs).places for one in found.values())
    assert complete_all(behind, tmp_path) == found and far.asked == len(PROMPTS)
    [path] = (tmp_path / "answers").glob("*.jsonl")
    assert sorted(one.top_logprobs for one in read_completions(path).values()) == sorted(
        one.top_logprobs for one in found.values()
    )


def test_what_is_declined_in_words_has_no_likeliest_tokens(far: FakeEndpoint, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    far.says = completion() | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert written(teacher(far, tmp_path, tokenizer="path:./base")) == {PROMPTS[0]: Completion("No.", True)}


# ---------------------------------------------------------------------------------------------------- what stops the build


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "its key is in BIG_KEY"), (403, "its key is in BIG_KEY"), (404, "is there a model big"), (302, "status 302")],
)
def test_a_refusal_of_everything_is_one_line_at_once(far: FakeEndpoint, tmp_path: Path, status: int, said: str) -> None:
    far.status, far.says = status, {"error": {"message": f"bad key {SECRET}"}}
    with pytest.raises(TrainingError, match=said) as raised:
        written(teacher(far, tmp_path, SECRET, key_env="BIG_KEY"), PROMPTS)
    assert far.asked == 1 and SECRET not in str(raised.value)


def test_a_prompt_that_it_declines_is_left_out_and_not_asked_again(far: FakeEndpoint, tmp_path: Path) -> None:
    far.script = [{"status": 400, "says": {"error": {"message": "filtered"}}}]
    found = written(teacher(far, tmp_path), PROMPTS)
    assert found[PROMPTS[0]] == Completion("", False) and far.asked == len(PROMPTS)


def test_a_request_that_is_wrong_by_itself_is_one_line_with_the_reason_and_without_the_key(
    far: FakeEndpoint, tmp_path: Path
) -> None:
    far.status, far.says = 400, {"error": {"message": f"unknown field for {SECRET}"}}
    with pytest.raises(TrainingError, match=r"status 400: unknown field for \*\*\*"):
        written(teacher(far, tmp_path, SECRET), PROMPTS)


def test_a_key_that_is_not_set_is_one_line_before_anything_is_sent(far: FakeEndpoint, tmp_path: Path) -> None:
    with pytest.raises(ModelResolutionError, match="BIG_KEY is not set"):
        written(teacher(far, tmp_path, "", key_env="BIG_KEY"))
    assert far.asked == 0


def test_answers_that_were_cut_off_are_told_from_whole_ones(far: FakeEndpoint, tmp_path: Path) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}
    far.says = completion() | {"choices": [choice]}  # its thoughts took all tokens
    assert written(teacher(far, tmp_path)) == {PROMPTS[0]: Completion("", False)} and far.asked == 1


# ------------------------------------------------------------------------------------------------------------------ caps


def test_cost_is_counted_to_the_token(far: FakeEndpoint, tmp_path: Path) -> None:
    one = teacher(far, tmp_path, concurrency=3, **PRICE)
    written(one, PROMPTS)
    assert one.account.total() == Usage(6, 6 * 40, 6 * 10, 0, pytest.approx(6 * COST))


@pytest.mark.parametrize("cap", [{"max_tokens": 150}, {"price": PRICE["price"], "max_cost": 3.3 * COST}])
def test_a_cap_is_never_passed_is_one_line_and_going_on_pays_nothing_twice(
    far: FakeEndpoint, tmp_path: Path, cap: dict[str, Any]
) -> None:
    far.says = lambda body: completion(body["messages"][-1]["content"])
    files = ResolvedModel(tiny.saved(tmp_path / "base", tiny.llama()), "path:./base", "0", "mit", "0")
    name = next(key for key in cap if key.startswith("max"))

    def complete(**more: Any) -> dict[str, Completion]:
        behind = Teacher.behind(teacher(far, tmp_path, concurrency=4, **more), files, tiny.CPU)
        return complete_all(behind, tmp_path)

    with pytest.raises(TrainingError, match=rf"has reached {name}.*raise teacher\.{name} and run the same command"):
        complete(**cap)
    spent = Account(tmp_path / "spent.jsonl").total()
    assert (
        0 < far.asked < len(PROMPTS) and spent.tokens <= cap.get("max_tokens", 10**9) and spent.cost <= cap.get("max_cost", 0)
    )
    assert len(complete(**cap | {name: 1000})) == len(PROMPTS)
    assert far.asked == len(PROMPTS) == len({body["messages"][-1]["content"] for body in far.bodies})


def test_a_server_that_is_killed_and_comes_back_goes_on_where_it_was(far: FakeEndpoint, tmp_path: Path) -> None:
    files = ResolvedModel(tiny.saved(tmp_path / "base", tiny.llama()), "path:./base", "0", "mit", "0")
    far.script = [{}, {}, *[{"cut": 10}] * 3]
    behind = Teacher.behind(teacher(far, tmp_path), files, tiny.CPU)

    def complete() -> dict[str, Completion]:
        return complete_all(behind, tmp_path)

    with pytest.raises(TrainingError, match="broke off in the middle"):
        complete()
    [path] = (tmp_path / "answers").glob("*.jsonl")
    assert len(read_completions(path)) == 2
    asked = far.asked
    assert len(complete()) == len(PROMPTS) and far.asked == asked + 4


def test_a_line_of_the_account_that_a_kill_cut_off_is_not_counted(tmp_path: Path) -> None:
    account = Account(tmp_path / "spent.jsonl")
    account.add(Usage(1, 40, 10, 0, 0.5))
    with account.path.open("ab") as file:
        file.write(json.dumps(vars(Usage(1, 7, 7))).encode()[:20])
    assert account.total() == Usage(1, 40, 10, 0, 0.5)


def test_it_has_no_weights_and_says_so(far: FakeEndpoint, tmp_path: Path) -> None:
    files = ResolvedModel(tiny.saved(tmp_path / "base", tiny.llama()), "path:./base", "0", "mit", "0")
    behind = Teacher.behind(teacher(far, tmp_path), files, tiny.CPU)
    with pytest.raises(FactoryError, match="big, is behind an API: it has no weights here"):
        behind.model  # noqa: B018


def test_the_key_is_in_nothing_that_is_shown_or_kept(far: FakeEndpoint, tmp_path: Path) -> None:
    one = teacher(far, tmp_path, SECRET, key_env="BIG_KEY")
    written(one)
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in kept + repr(one) + str(one.spec.model_dump()) + one.revision
