"""Where student and teacher agree: probabilities as in plain transformers, how many pairs stay loaded, what is refused."""

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
from support.serving import publish_again
from support.workplace import Workplace
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.config.load import load_specs
from factory.config.schema import TeacherContext, TeacherContexts
from factory.errors import RegistryError, ServeError, TrainingError
from factory.models.base import load_base
from factory.models.tokenize import token_text
from factory.registry.registry import Registry
from factory.registry.versions import Version
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
    return anyio.run(found.compare, *arguments)


# ----------------------------------------------------------------------------------------- against plain transformers


def plain(
    model: Any, messages: list[dict[str, str]], answer: Sequence[int], tokenizer: Any, kept: Sequence[int]
) -> torch.Tensor:
    """(T, V) probabilities over the kept tokens, in one forward pass; ``kept`` maps the tokenizer's ids to the model's."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([[kept[token] for token in [*prompt, *answer]]])).logits[0].float()
    return logits[len(prompt) - 1 : -1][:, list(kept)].softmax(-1)


@pytest.mark.parametrize("context", [TeacherContext(), tiny.CONTEXT], ids=["without", "with a context"])
def test_probabilities_are_those_of_plain_transformers(built: Workplace, pair: Pair, context: TeacherContext) -> None:
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
    differences = []
    for position, token in enumerate(found.tokens):
        assert token.agrees == (token.teacher[0][0] == names[ids[position]])
        for who in ("student", "teacher"):
            probs, values = getattr(token, who), expected[who][position]
            differences += [p - value for (_, p), value in zip(probs, values.topk(5).values.tolist(), strict=True)]
            for name, p in probs:
                same_text = [values[index].item() for index, other in enumerate(names) if other == name]
                differences.append(min((p - value for value in same_text), key=abs))
    assert max(map(abs, differences)) < 0.1  # bfloat16, in another order of operations
    assert sum(map(abs, differences)) / len(differences) < 0.01


def test_a_student_of_sources_with_contexts_of_their_own_has_the_domains(built: Workplace) -> None:
    registry, other = Registry(built.root / "registry"), TeacherContext(system="Of one source.")
    shown = TeacherContexts(tiny.CONTEXT, {"tickets": other}).dump()
    version = publish_again(registry, "tickets-mini", teacher_context=shown)
    assert load_pair(version, registry, load_specs(built.domains), tiny.CPU).context == tiny.CONTEXT


def test_the_tokens_joined_are_the_answer(pair: Pair) -> None:
    answer = "cough  and\n\nwheeze, naïve 肺 🫁 twice 🫁"
    found = compare(pair, QUESTION, answer)
    assert "".join(token.text for token in found.tokens) == answer
    assert any(token.text == "" for token in found.tokens)  # a character made of several tokens belongs to its last one


def test_agreement_is_judged_by_the_model_that_did_not_write_the_answer(pair: Pair) -> None:
    by_student, by_teacher = (compare(pair, QUESTION, ANSWER, by) for by in ("student", "teacher"))
    assert [t.student for t in by_student.tokens] == [t.student for t in by_teacher.tokens]
    written = agreement.completion_ids(pair.tokenizer, ANSWER, ends=False)
    names = [token_text(pair.tokenizer, token) for token in written]
    for token, other, name in zip(by_student.tokens, by_teacher.tokens, names, strict=True):
        assert token.agrees == (token.teacher[0][0] == name)
        assert other.agrees == (token.student[0][0] == name)


def test_without_an_answer_the_named_author_writes_one(pair: Pair) -> None:
    short = replace(pair, max_new_tokens=12)
    by_student, by_teacher = (compare(short, QUESTION, None, by) for by in ("student", "teacher"))
    assert 0 < len(by_student.tokens) <= 12
    assert [t.text for t in by_student.tokens] != [t.text for t in by_teacher.tokens]
    assert by_teacher.tokens[0].text == by_teacher.tokens[0].teacher[0][0]  # its top-1 token


def test_an_empty_answer_has_no_tokens(pair: Pair) -> None:
    assert compare(pair, QUESTION, "").tokens == ()


# ------------------------------------------------------------------------------------------------ loading


def test_a_bare_name_is_resolved_to_a_version(built: Workplace) -> None:
    found = ask(agreements(built), "plants-mini", QUESTION, ANSWER)
    assert (found.reference, found.teacher, found.by) == ("plants-mini@1", "path:./teacher", "student")


def test_the_last_two_pairs_stay_in_memory(built: Workplace, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, loaded = Registry(built.root / "registry"), []
    one = registry.resolve("plants-mini")
    versions = {
        sha256: replace(one, number=int(sha256), manifest=one.manifest.model_copy(update={"manifest_sha256": sha256}))
        for sha256 in "012"
    }
    monkeypatch.setattr(registry, "resolve", versions.__getitem__)

    def load(version: Version, *_: Any) -> Pair:
        loaded.append(version.number)
        return pair

    found = Agreements(registry, load_specs(built.domains), tiny.CPU, load)
    for reference in "0010212":
        ask(found, reference, QUESTION, "cough")
    assert loaded == [0, 1, 2, 1]  # 2 replaced 1, then 1 replaced 0


def test_too_many_waiting_comparisons_are_429(built: Workplace, pair: Pair) -> None:
    go = threading.Event()

    def load(*_: Any) -> Pair:
        go.wait(30)
        return pair

    found = Agreements(Registry(built.root / "registry"), load_specs(built.domains), tiny.CPU, load)

    async def crowd() -> APIError:
        async with anyio.create_task_group() as tasks:
            for _ in range(1 + agreement.MAX_WAITING):
                tasks.start_soon(found.compare, "plants-mini", QUESTION, "cough")
            while found._limiter.statistics().tasks_waiting < agreement.MAX_WAITING:
                await anyio.sleep(0)
            with pytest.raises(APIError) as error:
                await found.compare("plants-mini", QUESTION)
            go.set()
        return error.value

    error = anyio.run(crowd)
    assert (error.status, error.code, error.headers) == (429, "queue_full", {"Retry-After": "5"})


def test_bases_empty_questions_and_long_texts_are_refused(built: Workplace) -> None:
    found = agreements(built)
    with pytest.raises(RegistryError, match=r"nobody"):
        ask(found, "nobody", QUESTION, ANSWER)
    with pytest.raises(ServeError, match=r"default-mini-base@1 is a base; only a student"):
        ask(found, "default-mini-base", QUESTION, ANSWER)
    with pytest.raises(ServeError, match=r"the question is empty"):
        ask(found, "plants-mini", " ", ANSWER)
    with pytest.raises(ServeError, match=r"have \d+ tokens; the limit is 512: shorten the text"):
        ask(found, "plants-mini", QUESTION, "cough " * 600)
    with pytest.raises(ServeError, match=r"the limit is 512"):
        ask(found, "plants-mini", "cough " * 600)


def test_a_family_file_with_another_teacher_is_refused(built: Workplace, tmp_path: Path) -> None:
    found = agreements(built)
    family = found.specs.family("default")
    other = family.model_copy(update={"teacher": family.teacher.model_copy(update={"model": "path:./another"})})
    found.specs = found.specs.model_copy(update={"families": {"default": other}})
    with pytest.raises(TrainingError, match=r"distilled from path:./teacher, but family default now names path:./another"):
        ask(found, "plants-mini", QUESTION, ANSWER)
