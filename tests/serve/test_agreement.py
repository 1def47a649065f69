"""Where student and teacher agree: the figures against plain transformers, the bound on what is loaded, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from peft import PeftModel
from support import tiny
from support.workplace import Workplace
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.config.load import load_specs
from factory.config.schema import TeacherContext
from factory.errors import RegistryError, ServeError, TrainingError
from factory.models.base import load_base
from factory.models.tokenize import token_text
from factory.registry.registry import Registry
from factory.serve import agreement
from factory.serve.agreement import Agreement, Agreements, Pair, compare, load_pair
from factory.serve.limits import APIError

QUESTION = "what are the signs of oak ?"
ANSWER = "the early signs are cough and wheeze"


@pytest.fixture(scope="module")
def pair(built: Workplace) -> Pair:
    registry = Registry(built.root / "registry")
    return load_pair(registry.resolve("plants-mini"), registry, load_specs(built.domains), tiny.CPU)


def agreements(place: Workplace) -> Agreements:
    return Agreements(Registry(place.root / "registry"), load_specs(place.domains), tiny.CPU)


def ask(found: Agreements, *arguments: Any) -> Agreement:
    return anyio.run(found.of, *arguments)


# ----------------------------------------------------------------------------------------- against plain transformers


def plain(
    model: Any, messages: list[dict[str, str]], answer: Sequence[int], tokenizer: Any, kept: Sequence[int]
) -> torch.Tensor:
    """(T, V) probabilities over the kept tokens, in one plain pass; ids are the model's own, by way of ``kept``."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([[kept[token] for token in [*prompt, *answer]]])).logits[0].float()
    return logits[len(prompt) - 1 : -1][:, list(kept)].softmax(-1)


@pytest.mark.parametrize("context", [TeacherContext(), tiny.CONTEXT], ids=["without", "with a context"])
def test_figures_are_those_of_plain_transformers(built: Workplace, pair: Pair, context: TeacherContext) -> None:
    registry = Registry(built.root / "registry")
    student = registry.resolve("plants-mini")
    base = registry.resolve(student.base or "").folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    kept = load_base(base, tiny.CPU).shape.tokens or ()
    assert 0 < len(kept) < 360
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), student.folder).eval()
    teacher = AutoModelForCausalLM.from_pretrained(built.domains / "teacher", dtype=torch.bfloat16)
    ids = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    question = [{"role": "user", "content": QUESTION}]
    turns = [{"role": "system", "content": context.system}] if context.system else []
    for example in context.examples:
        turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
    expected = {
        "student": plain(own, question, ids, tokenizer, range(len(kept))),
        "teacher": plain(teacher, [*turns, *question], ids, tokenizer, kept),
    }
    found = compare(replace(pair, context=context), QUESTION, ANSWER)
    assert len(found.tokens) == len(ids)
    names = [token_text(tokenizer, token) for token in range(len(kept))]
    for position, token in enumerate(found.tokens):
        for who in ("student", "teacher"):
            guesses = getattr(token, who)
            values = expected[who][position]
            assert [p for _, p in guesses] == pytest.approx(values.topk(5).values.tolist(), abs=0.01)  # bfloat16
            for name, p in guesses:
                same = [values[index].item() for index, other in enumerate(names) if other == name]
                assert any(p == pytest.approx(value, abs=0.01) for value in same)
        assert token.agrees == (token.teacher[0][0] == names[ids[position]])


def test_the_text_of_all_tokens_is_the_answer(pair: Pair) -> None:
    answer = "cough  and\n\nwheeze, naïve 肺 🫁 twice 🫁"
    found = compare(pair, QUESTION, answer)
    assert "".join(token.text for token in found.tokens) == answer
    assert any(token.text == "" for token in found.tokens)  # a character of several tokens belongs to its last one


def test_who_wrote_the_answer_decides_who_is_asked_whether_it_agrees(pair: Pair) -> None:
    by_student, by_teacher = (compare(pair, QUESTION, ANSWER, by) for by in ("student", "teacher"))
    assert [t.student for t in by_student.tokens] == [t.student for t in by_teacher.tokens]
    written = agreement.completion_ids(pair.tokenizer, ANSWER, ends=False)
    names = [token_text(pair.tokenizer, token) for token in written]
    for token, other, name in zip(by_student.tokens, by_teacher.tokens, names, strict=True):
        assert token.agrees == (token.teacher[0][0] == name)
        assert other.agrees == (token.student[0][0] == name)


def test_without_an_answer_whoever_is_named_writes_one(pair: Pair) -> None:
    short = replace(pair, max_new_tokens=12)
    by_student, by_teacher = (compare(short, QUESTION, None, by) for by in ("student", "teacher"))
    assert 0 < len(by_student.tokens) <= 12
    assert [t.text for t in by_student.tokens] != [t.text for t in by_teacher.tokens]
    assert by_teacher.tokens[0].text == by_teacher.tokens[0].teacher[0][0]  # its own first choice


def test_an_empty_answer_has_no_tokens(pair: Pair) -> None:
    assert compare(pair, QUESTION, "").tokens == ()


# ------------------------------------------------------------------------------------------------ which, and how many


def test_a_name_means_the_version_that_it_means_now(built: Workplace) -> None:
    found = ask(agreements(built), "plants-mini", QUESTION, ANSWER)
    assert (found.reference, found.teacher, found.by) == ("plants-mini@1", "path:./teacher", "student")


def test_what_was_asked_for_last_stays_loaded(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(built.root / "registry")
    one = registry.resolve("plants-mini")
    versions = {name: replace(one, number=int(name), manifest={**one.manifest, "manifest_sha256": name}) for name in "012"}
    found, loaded = agreements(built), []
    monkeypatch.setattr(found.registry, "resolve", lambda ref: versions.get(ref) or registry.resolve(ref))

    def load(version: Any, *rest: Any) -> Pair:
        loaded.append(version.number)
        return load_pair(version, *rest)

    monkeypatch.setattr(agreement, "load_pair", load)
    for wanted in "0010212":
        ask(found, wanted, QUESTION, "cough")
    assert loaded == [0, 1, 2, 1]  # two at a time: 2 took the place of 1, then 1 that of 0


def test_when_many_wait_the_next_is_told_to_come_later(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    found, go = agreements(built), threading.Event()
    monkeypatch.setattr(found, "_of", lambda *_: go.wait(30))

    async def crowd() -> APIError:
        async with anyio.create_task_group() as tasks:
            for _ in range(1 + agreement.WAITING):
                tasks.start_soon(found.of, "plants-mini", QUESTION)
            while found._turn.statistics().tasks_waiting < agreement.WAITING:
                await anyio.sleep(0)
            with pytest.raises(APIError) as refused:
                await found.of("plants-mini", QUESTION)
            go.set()
        return refused.value

    refusal = anyio.run(crowd)
    assert (refusal.status, refusal.code, refusal.headers) == (429, "queue_full", {"Retry-After": "5"})


def test_what_cannot_be_compared_is_refused_in_one_line(built: Workplace) -> None:
    found = agreements(built)
    with pytest.raises(RegistryError, match=r"nobody"):
        ask(found, "nobody", QUESTION, ANSWER)
    with pytest.raises(ServeError, match=r"default-mini-base@1 is a base; only a student"):
        ask(found, "default-mini-base", QUESTION, ANSWER)
    with pytest.raises(ServeError, match=r"the question is empty"):
        ask(found, "plants-mini", " ", ANSWER)
    with pytest.raises(ServeError, match=r"reads at most 512 tokens, its context included, and this is \d+: shorten it"):
        ask(found, "plants-mini", QUESTION, "cough " * 600)
    with pytest.raises(ServeError, match=r"at most 512 tokens"):
        ask(found, "plants-mini", "cough " * 600)


def test_a_family_that_names_another_teacher_is_refused(built: Workplace, tmp_path: Path) -> None:
    found = agreements(built)
    family = found.specs.family("default")
    other = family.model_copy(update={"teacher": family.teacher.model_copy(update={"model": "path:./another"})})
    found.specs = found.specs.model_copy(update={"families": {"default": other}})
    with pytest.raises(TrainingError, match=r"learned from path:./teacher, but family default now names path:./another"):
        ask(found, "plants-mini", QUESTION, ANSWER)
