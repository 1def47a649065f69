"""A data set's first answer; the general pool: what is taught of it, what is held out, a teacher that finishes none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from support.workplace import PLANTS, Workplace, domain

from factory.data.dataset import Completion
from factory.errors import DataError
from factory.models.teacher import Teacher
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import general_training_rows, make_dataset, make_general_rows, split_general


class CutOff(Teacher):
    """A teacher that finishes no answer."""

    def complete(self, examples: Sequence[Any], *_: Any, **__: Any) -> Mapping[str, Completion]:  # type: ignore[override]
        return {example.id: Completion("cut of", finished=False) for example in examples}


class Silent(Teacher):
    """A teacher that says nothing, and keeps which prompts it is given at once."""

    asked: ClassVar[list[list[str]]] = []

    def _write(self, prompts: Sequence[str], *_: Any) -> dict[str, Completion]:
        self.asked.append(list(prompts))
        return dict.fromkeys(prompts, Completion("", finished=True))


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
