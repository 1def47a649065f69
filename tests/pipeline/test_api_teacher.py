"""A whole build with a teacher behind an API: a student, what it says of its teacher, and what cannot work."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import tiny
from support.endpoints import FakeEndpoint, completion, fake_endpoint
from support.teacher import answer, speaks, train_teacher
from support.workplace import PLANTS, WHAT, Refused, Workplace, domain

from factory.data.dataset import load_dataset_folder
from factory.inference import load_version
from factory.models import api_teacher
from factory.models.chat import completion_ids, prompt_ids
from factory.models.top_logprobs import TokenBytes, named_targets
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


def test_likeliest_tokens_teach_as_the_teacher_itself_does(with_models: Workplace, far: FakeEndpoint) -> None:
    """The same teacher and the same base: here, and behind an API that names 20 tokens."""
    prompts = [f"what is the {what} of {thing} ?" for what in WHAT for thing in PLANTS.split()]
    train_teacher(with_models.domains / "base", prompts, steps=25)
    far.says = speaks(with_models.domains / "teacher")
    base = {"base": {"model": "path:./base", "license": "apache-2.0"}}
    settings = {"steps": 16, "batch": 8, "learning_rate": 5e-3, "rank": 4, "top_k": 20}
    own = {"distill": settings, "heal": {"steps": 1, "batch": 4, "learning_rate": 1e-12, "rank": 2}}
    families = {
        "here": with_models.family | own,
        "named": family(with_models, far, teacher={"tokenizer": "path:./teacher"}, **own),
    }
    found = {}
    for name, one in families.items():
        with_models.write(f"{name}.family.yaml", one | {"name": name, "sizes": {name: base}, "default_size": name})
        found[name] = build_student(with_models.context(name), "plants", name)
        assert found[name].manifest.soft_targets is not None
    rows = [(prompt_ids(tiny.tokenizer(), one), completion_ids(tiny.tokenizer(), answer(one))) for one in prompts]
    assert "at most 20 a place" in (found["named"].folder / "README.md").read_text()
    here, named = (load_version(version, with_models.context().registry, tiny.CPU).model for version in found.values())

    @torch.no_grad()
    def log_probs(model: Any) -> torch.Tensor:
        return torch.cat([model(torch.tensor([p + text])).logits[0, len(p) - 1 : -1].log_softmax(-1) for p, text in rows])

    def nats(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one.exp() * (one - other)).sum(-1).mean())

    learnt = log_probs(here)
    with here.disable_adapter():
        before = log_probs(here)
    assert nats(learnt, log_probs(named)) < 0.01 < 0.1 < nats(learnt, before)


def test_a_teacher_with_other_tokens_than_the_base_teaches_by_their_bytes(with_models: Workplace, far: FakeEndpoint) -> None:
    theirs = tiny.sentencepiece(tiny.TURNS)
    tiny.saved(with_models.domains / "other", tiny.llama(vocabulary=len(theirs)), theirs)
    base = {"other": {"base": {"model": "path:./other", "license": "apache-2.0"}}}
    settings = {"steps": 16, "batch": 8, "learning_rate": 5e-3, "rank": 4}
    with_models.write(
        "default.family.yaml",
        family(with_models, far, teacher={"tokenizer": "path:./teacher"}, sizes=base, default_size="other", distill=settings),
    )
    far.says = speaks(with_models.domains / "teacher")
    said = with_models.run("plan", "plants").output
    assert re.search(
        r"\d+ of its \d+ tokens \(path:./teacher\) are tokens of its students' base, path:./other", " ".join(said.split())
    )
    version = build_student(with_models.context(), "plants", "other")
    assert version.manifest.soft_targets is not None
    assert version.manifest.evaluation.metrics["nats_below_base"].low > 0
    [row, *_] = load_dataset_folder(next((with_models.root / "home" / "data").glob("plants-*/")))[0]["train"]
    completion = completion_ids(theirs, row["completion"])
    tokens = TokenBytes.of(theirs, tiny.tokenizer())
    ids, log_probs = named_targets(tokens, completion, row["top_logprobs"], 20)
    assert ids[:, 0].tolist() == completion and (log_probs[:, 0] < 0).sum() > 4  # the end, too


def test_a_tokenizer_that_is_not_there_is_refused(with_models: Workplace, far: FakeEndpoint, refused: Refused) -> None:
    with_models.write("default.family.yaml", family(with_models, far, teacher={"tokenizer": "path:./nowhere"}))
    assert "path:./nowhere has no tokenizer" in refused(with_models.run("build", "plants"))
    assert far.asked == 0


def test_after_a_kill_only_what_was_on_its_way_is_asked_again(with_models: Workplace, far: FakeEndpoint) -> None:
    teacher = {"tokenizer": "path:./teacher", "concurrency": 2}
    with_models.write("default.family.yaml", family(with_models, far, teacher=teacher))
    far.says, far.seconds = speaks(with_models.domains / "teacher"), 0.1
    command = [
        sys.executable,
        "-c",
        "from factory.cli import app; app()",
        "data",
        "plants",
        "--domains",
        str(with_models.domains),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as building:
        while far.asked < 9 and building.poll() is None:
            time.sleep(0.01)
        building.kill()
    assert building.returncode == -signal.SIGKILL and 9 <= far.asked < 20
    far.seconds = 0.0
    assert with_models.run("data", "plants").exit_code == 0
    prompts = Counter(json.dumps(body["messages"]) for body in far.bodies)
    twice = [prompt for prompt, times in prompts.items() if times > 1]
    assert len(twice) <= 2 and max(prompts.values()) <= 2
    [rows] = [folder for folder in (with_models.root / "home" / "data").iterdir() if folder.is_dir()]
    assert all(load_dataset_folder(rows)[0]["train"]["top_logprobs"])


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
        ({"teacher": {"tokenizer": "somebody's"}}, "teacher.tokenizer"),
        ({"teacher": {"tokenizer": "pypi:package==1.0/model"}}, "name a hub: or path: reference, or a base's model"),
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
