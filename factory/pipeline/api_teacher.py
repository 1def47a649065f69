"""A teacher behind an API in a build: whether it can teach a domain, who pays for what it is asked, and its answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from factory.cache import cache_key, home
from factory.config.api_limits import domain_limits
from factory.config.schema import ApiTeacherSpec, DomainSpec, FamilySpec, TeacherContext, TeacherSpec
from factory.data.sources import Example
from factory.errors import SpecError
from factory.evaluation.answers import Answer
from factory.models.api_teacher import Account, ApiTeacher, Usage
from factory.models.chat import completion_ids
from factory.models.folders import load_tokenizer
from factory.models.references import ResolvedModel, tokenizer_folder
from factory.models.teacher import Teacher
from factory.models.templates import resolve_teacher


def resolve_api_teacher(
    family: FamilySpec, spec: ApiTeacherSpec, root: Path, device: torch.device
) -> tuple[ResolvedModel, Teacher]:
    """``files, teacher = resolve_api_teacher(family, family.api, specs.root, device)``: with the tokens of its students' base.

    The files are the default size's base; their checksum counts the API and the model there, too.
    """
    base = family.sizes[family.default_size].base
    assert base is not None  # as family_limits has it
    files = resolve_teacher(TeacherSpec.model_validate(base.model_dump()), root=root)
    api = ApiTeacher(spec, Account(home() / "spent" / f"{family.name}.jsonl"), spec.key(os.environ))
    teacher = Teacher.behind(api, files, device)
    notes = files.notes
    if spec.tokenizer is not None and spec.tokenizer != base.model:
        own = load_tokenizer(tokenizer_folder(spec.tokenizer, root=root))
        teacher = replace(teacher, api_tokenizer=own)
        notes += _other_tokens(spec.tokenizer, own, base.model, teacher.tokenizer)
    identity = cache_key(api.revision, files.sha256)
    described = replace(files, reference=spec.reference, sha256=identity, license=spec.license, revision=identity, notes=notes)
    return described, teacher


def _other_tokens(teacher: str, theirs: PreTrainedTokenizerBase, base: str, ours: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """A line for people where teacher and base, by their references, have other tokens; those for control aside."""
    known, own = (set(one.get_vocab()) - set(one.get_added_vocab()) for one in (theirs, ours))
    if known == own:
        return ()
    return (
        f"{len(known & own):,} of its {len(known):,} tokens ({teacher}) are tokens of its students' base, {base}: what it "
        "says of tokens is placed by their bytes",
    )


def require_teachable(family: FamilySpec, profile: str, domain: DomainSpec) -> None:
    """``require_teachable(family, "demo", spec)``. Raises: SpecError with all that this family's teacher cannot do for it."""
    limits = [
        f"{domain.name}: {'.'.join(map(str, keys))}: {message} (with family {family.name})"
        for keys, message in domain_limits(family, profile, domain)
    ]
    if limits:
        raise SpecError(*limits)


def account_of(family: FamilySpec, spec: ApiTeacherSpec, profile: str, seed: int, domain: str) -> Account:
    """``account_of(family, family.api, "demo", 0, "legal").total().cost``: of one domain under one profile and seed."""
    key = cache_key(*spec.identity, profile, seed)
    return Account(home() / "spent" / f"{family.name}-{domain}-{key}.jsonl")


def spent(teacher: Teacher) -> Usage | None:
    """``spent(models.teacher)``: on its account so far; None where the teacher's weights are at hand."""
    return teacher.api.account.total() if teacher.api else None


def licence_duties(spec: ApiTeacherSpec) -> str:
    """``licence_duties(family.api)``: what whoever builds has to know before anything is sent."""
    return (
        f"its terms: {spec.license}; read them: many APIs forbid training on their answers, some ask for a name or a notice, "
        "which students and cards then carry"
    )


def describe_api(spec: ApiTeacherSpec) -> str:
    """``describe_api(family.api)``: where it is asked, its key, and what it may cost."""
    key = "" if spec.key_env is None else f"; the key in {spec.key_env} is {'set' if spec.key(os.environ) else 'not set'}"
    money = f"at most {spec.max_cost:g} for a domain" if spec.max_cost else "no price is given, so no money is counted"
    tokens = f", at most {spec.max_tokens:,} tokens" if spec.max_tokens else ""
    return f"{spec.model} at {spec.api}, {spec.concurrency} requests at a time{key}; {money}{tokens}"


def answers_of(teacher: Teacher, asked: Mapping[str, TeacherContext], max_new_tokens: int) -> dict[str, Answer]:
    """``answers_of(teacher, {prompt: context}, 112)[prompt].text``: kept as the completions of a data set are."""
    found: dict[str, Answer] = {}
    for context in dict.fromkeys(asked.values()):
        prompts = [prompt for prompt, shown in asked.items() if shown == context]
        examples = [Example(prompt, prompt, "", "", "", "", ()) for prompt in prompts]
        written = teacher.complete(
            examples, context, folder=home() / "completions", max_new_tokens=max_new_tokens, repetition_penalty=1, seed=0
        )
        for prompt, one in written.items():
            ids = completion_ids(teacher.tokenizer, one.text, ends=one.finished)
            found[prompt] = Answer(one.text, one.finished, tuple(ids))
    return {prompt: found[prompt] for prompt in asked}
