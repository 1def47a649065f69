"""A data set's first answer; the general pool: what is taught of it, what is held out, a teacher that finishes none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from support.workplace import PLANTS, Workplace, domain, two_contexts

from factory.config.schema import TeacherContext, TeacherContexts
from factory.data.dataset import Completion
from factory.errors import DataError
from factory.models.teacher import Teacher
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import (
    dataset_key,
    general_training_rows,
    make_dataset,
    make_general_rows,
    router_key,
    split_general,
)


class CutOff(Teacher):
    """A teacher that finishes no answer."""

    def complete(self, examples: Sequence[Any], *_: Any, **__: Any) -> Mapping[str, Completion]:  # type: ignore[override]
        return {example.id: Completion("cut of", finished=False) for example in examples}


class Silent(Teacher):
    """A teacher that says nothing, and keeps which prompts it is given at once."""

    asked: ClassVar[list[list[str]]] = []

    def _write(self, examples: Sequence[Any], *_: Any) -> dict[str, Completion]:
        self.asked.append([one.prompt for one in examples])
        return dict.fromkeys(self.asked[-1], Completion("", finished=True))


class Shown(Teacher):
    """A teacher that answers each prompt with its words, and keeps what it is shown with each, in its order."""

    asked: ClassVar[list[tuple[str, TeacherContext]]] = []

    def complete(self, examples: Sequence[Any], context: TeacherContext, **_: Any) -> dict[str, Completion]:  # type: ignore[override]
        self.asked.extend((example.source, context) for example in examples)
        return {example.id: Completion(f"answer to {example.prompt}", finished=True) for example in examples}


@pytest.mark.parametrize("private", [False, True])
def test_the_first_answer_is_shown_before_the_others_are_written_and_not_of_a_private_domain(
    private: bool, with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silent, "asked", [])
    with_models.write("plants.yaml", domain("plants", PLANTS) | {"private": private})
    said: list[tuple[int, str]] = []
    context = replace(with_models.context(), say=lambda line: said.append((len(Silent.asked), line)))
    models = resolve_models(context.family, context.specs.root, context.device)
    teacher = Silent.load(models.teacher_files, context.device)
    with pytest.raises(DataError):  # nothing is left of empty answers
        make_dataset(context, replace(models, teacher=teacher), context.specs.domain("plants"))
    first, *others = Silent.asked if not private else [[], *Silent.asked]
    assert len(others) == 1 and not set(first) & set(others[0])
    if private:
        assert said == []
    else:
        assert said == [(1, f"plants: first answer, to “{first[0]}”: (empty)")]


def test_a_general_pool_without_a_finished_answer_is_said_and_left_out(with_models: Workplace) -> None:
    said: list[str] = []
    context = replace(with_models.context(), say=said.append)
    models = resolve_models(context.family, context.specs.root, context.device)
    teacher = CutOff.load(models.teacher_files, context.device)
    assert make_general_rows(context, replace(models, teacher=teacher)) == []
    (line,) = said
    assert "finished none of 4 general prompts" in line and "raise data.max_completion_tokens" in line


def test_general_prompts_that_are_taught_share_no_template_and_no_value_with_those_held_out(with_models: Workplace) -> None:
    context = with_models.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    taught, held_out = split_general(context, models)
    assert taught and held_out
    for of in (lambda example: {example.template}, lambda example: set(example.topic)):
        assert not set.union(*map(of, taught)) & set.union(*map(of, held_out))
    asked = {row["prompt"] for row in make_general_rows(context, models)}
    learnt = {row["prompt"] for row in general_training_rows(context, models, 100)}
    assert asked <= {example.prompt for example in held_out} and learnt == {example.prompt for example in taught}


def test_a_general_pool_too_small_to_be_split_is_held_out(with_models: Workplace) -> None:
    source = {"id": "own", "kind": "templates", "license": "mit", "templates": ["what is the price of shoe ?"]}
    with_models.write("general.pool.yaml", {"name": "general", "sources": [source]})
    said: list[str] = []
    context = replace(with_models.context(), say=said.append)
    models = resolve_models(context.family, context.specs.root, context.device)
    taught, held_out = split_general(context, models)
    assert taught == [] and [example.prompt for example in held_out] == ["what is the price of shoe ?"]
    assert general_training_rows(context, models, 100) == []
    assert said == ["the general pool general is too small to learn from: what it has is held out"]


def test_a_general_answer_that_was_cut_off_is_learnt_from(with_models: Workplace) -> None:
    context = with_models.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    teacher = CutOff.load(models.teacher_files, context.device)
    rows = general_training_rows(context, replace(models, teacher=teacher), 3)
    assert [row["completion"] for row in rows] == ["cut of"] * 3


# ---------------------------------------------------------------------------------------------------- contexts of sources

LONG = {"system": "be long", "examples": [{"prompt": "what is light", "completion": "it is sugar"}]}


def test_the_teacher_answers_each_prompt_under_its_source_s_context_one_context_after_the_other(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shown, "asked", [])
    with_models.write("plants.yaml", two_contexts(teacher_context=LONG))
    context = with_models.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    models = replace(models, teacher=Shown.load(models.teacher_files, context.device))
    data = make_dataset(context, models, context.specs.domain("plants"))
    brief, long = TeacherContext(system="be brief"), TeacherContext.model_validate(LONG)
    assert {source: shown for source, shown in Shown.asked} == {"plants-questions": brief, "birds-questions": long}
    first, *others = Shown.asked
    switches = sum(one != other for one, other in pairwise(others))
    assert first in others and switches == 1
    rows = [row for split in data.rows.values() for row in split]
    assert len(rows) == len(others) and all(row["completion"] == f"answer to {row['prompt']}" for row in rows)
    assert data.manifest.provenance["teacher_context"] == brief.model_dump(mode="json") | {"sources": {"birds-questions": LONG}}
    plain = data.without_context()
    assert data.spec.contexts.of("birds-questions") == long and plain.spec.contexts == TeacherContexts()


def test_keys_change_with_a_source_s_context_and_stay_as_they_are_without_one(with_models: Workplace) -> None:
    def keys(**second: Any) -> tuple[str, str]:
        with_models.write("plants.yaml", two_contexts(**second))
        context = with_models.context()
        return dataset_key(context, "teacher", context.specs.domain("plants")), router_key(context)

    found = [keys(), keys(teacher_context=None), keys(teacher_context={}), keys(teacher_context=LONG)]
    datasets, routers = zip(*found, strict=True)
    assert datasets[0] == datasets[1] and len(set(datasets)) == 3
    assert len(set(routers)) == 1  # no context is routed
