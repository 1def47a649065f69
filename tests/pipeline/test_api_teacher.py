"""A whole build with a teacher behind an API: a student, what it says of its teacher, and what cannot work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.endpoints import FakeEndpoint, completion, fake_endpoint
from support.teacher import answer
from support.workplace import PLANTS, Refused, Workplace, domain

from factory.models import api_teacher
from factory.pipeline.build import build_student

SECRET = "sk-nobody-knows"


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    monkeypatch.setattr(api_teacher, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("FAR_KEY", SECRET)
    with fake_endpoint() as one:
        one.says = lambda body: completion(answer(body["messages"][-1]["content"]))
        yield one


def family(place: Workplace, far: FakeEndpoint, **more: Any) -> dict[str, Any]:
    teacher = {"api": far.api, "model": "big", "license": "terms of big", "key_env": "FAR_KEY", "attempts": 2}
    teacher |= {"price": {"input": 2.0, "output": 10.0}, "max_cost": 5.0} | more.pop("teacher", {})
    size = {"base": {"model": "path:./teacher", "license": "apache-2.0"}}
    settings = {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2}
    own = {"teacher": teacher, "sizes": {"same": size}, "default_size": "same", "distill": settings}
    return place.family | own | {"serve": {"fallback": "refuse"}} | more


def test_a_build_that_was_stopped_goes_on_and_its_card_says_who_taught_and_what_that_cost(
    with_models: Workplace, far: FakeEndpoint, refused: Refused
) -> None:
    gates = {"kl": {"at_most": 1.0}, "student_perplexity": {"at_most": 1e9}}
    with_models.write("default.family.yaml", family(with_models, far, gates=gates))
    far.script = [*[{}] * 5, *[{"status": 500}] * 20]  # then it is well again
    line = refused(with_models.run("build", "plants"))
    assert "big, failed 2 times in a row" in line and "status 500" in line
    far.script = []
    manifest = build_student(with_models.context(), "plants", "same").manifest
    prompts = [json.dumps(body["messages"]) for body in far.bodies]
    usage = manifest.teacher.api
    answered = [prompt for prompt in dict.fromkeys(prompts)]
    assert usage.requests == len(answered) and usage.uncounted == 0
    assert (usage.prompt_tokens, usage.completion_tokens) == (40 * usage.requests, 10 * usage.requests)
    assert usage.cost == pytest.approx(usage.requests * (40 * 2.0 + 10 * 10.0) / 1e6)
    assert manifest.teacher.reference == f"api:{far.api}#big" and manifest.teacher.parameters is None
    assert manifest.base_model.license == "apache-2.0" and manifest.soft_targets is None
    assert "kl" not in manifest.evaluation.metrics and "nats_below_base" in manifest.evaluation.metrics
    status = {gate.metric: gate.status for gate in manifest.verdict.gates}
    assert status == {"kl": "undecidable", "student_perplexity": "passed"} and manifest.verdict.status == "undecidable"
    folder = with_models.root / "registry"
    card = next(folder.rglob("plants-same/**/README.md")).read_text()
    assert "trained on the answers of" in card and "terms-of-big" in card and f"{usage.requests} requests" in card
    kept = b"".join(path.read_bytes() for path in with_models.root.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept
    for command in (["show", "plants-same"], ["list"], ["compare", "plants-same"]):
        assert with_models.run(*command).exit_code == 0


def test_text_of_a_private_domain_leaves_only_where_it_may(with_models: Workplace, far: FakeEndpoint, refused: Refused) -> None:
    with_models.write("default.family.yaml", family(with_models, far))
    with_models.write("plants.yaml", domain("plants", PLANTS) | {"private": True})
    for command in ("plan", "data", "build"):
        assert "text of a private domain must not leave" in refused(with_models.run(command, "plants"))
    assert far.asked == 0


def test_a_plan_says_what_is_sent_where_for_how_much_and_under_which_terms(with_models: Workplace, far: FakeEndpoint) -> None:
    with_models.write("default.family.yaml", family(with_models, far))
    said = with_models.run("plan", "plants", "--json").output
    assert "without the answers of the API" in with_models.run("plan", "plants").output
    assert "terms of big" in said and "forbid training on their answers" in said and "the key in FAR_KEY is set" in said
    assert "at most 28 requests" in said and SECRET not in said and far.asked == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": {"mini": {"layers": 2}}, "default_size": "mini"}, "sizes.mini: the teacher is behind an API"),
        ({"distill": {"steps": 1, "learning_rate": 1e-3, "lmbda": 0.5}}, "distill.lmbda: the teacher is behind an API"),
        ({"distill": {"steps": 1, "learning_rate": 1e-3, "feature": 0.5}}, "distill.feature: the teacher is behind an API"),
        ({"distill": {"steps": 1, "learning_rate": 1e-3, "beta": 0.5}}, "beta must be 0"),
        ({"profiles": {"demo": {"distill": {"seq_kd": True}}}}, "profiles.demo.distill.seq_kd"),
        ({"confidence": {"examples": 9}}, "does not say how likely an answer is"),
        ({"serve": {"fallback": "teacher"}}, "serve.fallback: the teacher is behind an API"),
        ({"path": "auto"}, "leave path out"),
        ({"teacher": {"chat_template": "x"}}, "teacher.chat_template: unknown key"),
        ({"teacher": {"max_cost": None}}, "price and max_cost belong together"),
        ({"teacher": {"api": "https://me:secret@far.example/v1"}}, "api has a user or a password"),
    ],
)
def test_what_cannot_work_is_one_line_at_validate(
    with_models: Workplace, far: FakeEndpoint, wrong: dict[str, Any], said: str
) -> None:
    with_models.write("default.family.yaml", family(with_models, far, **wrong))
    result = with_models.run("validate")
    assert result.exit_code == 1 and said in result.output, result.output


@pytest.mark.parametrize(
    ("wrong", "said"), [({"teacher_adaptation": {"steps": 2}}, "to adapt"), ({"distill": {"lmbda": 0.5}}, "leave lmbda out")]
)
def test_what_a_domain_asks_for_in_vain_is_one_line_before_anything_is_sent(
    with_models: Workplace, far: FakeEndpoint, refused: Refused, wrong: dict[str, Any], said: str
) -> None:
    with_models.write("default.family.yaml", family(with_models, far))
    with_models.write("plants.yaml", domain("plants", PLANTS) | wrong)
    for command in ("plan", "build"):
        assert said in refused(with_models.run(command, "plants"))
    assert far.asked == 0
