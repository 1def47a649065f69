"""Bases that have to fit a device: what fits, which of it is taken, and that the file does fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny import CPU
from support.workplace import Workplace

from factory.config.schema import SizeSpec
from factory.errors import TrainingError
from factory.export.gguf import write_base_gguf
from factory.models.base import load_base
from factory.pipeline import device
from factory.pipeline.base import publish_base
from factory.pipeline.context import FamilyModels, resolve_models
from factory.pipeline.device import size_options
from factory.pipeline.plan import plan
from factory.registry.manifest import BaseManifest
from factory.registry.versions import Version


@pytest.fixture(autouse=True)
def few_tokens_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MIN_TOKENS", 320)


def models_of(place: Workplace) -> FamilyModels:
    context = place.context()
    return resolve_models(context.family, context.specs.root, context.device)


def of_bytes(place: Workplace, max_bytes: int, **more: Any) -> None:
    sizes = {"mini": {"max_bytes": max_bytes, **more}}
    place.write("default.family.yaml", place.family | {"sizes": sizes})


def publish(place: Workplace, **more: Any) -> tuple[Version, BaseManifest]:
    context = place.context(force=True, **more)
    version = publish_base(context, models_of(place), "mini")
    assert version.manifest.kind == "base"
    return version, version.manifest


def written(version: Version, folder: Path) -> int:
    base = load_base(version.folder, CPU)
    write_base_gguf(base.model, base.tokenizer, folder / "base.gguf", "q4_1", name=version.reference, license="apache-2.0")
    return (folder / "base.gguf").stat().st_size


@pytest.fixture
def whole(with_models: Workplace) -> int:
    """Bytes of the whole teacher."""
    [only] = size_options(models_of(with_models), SizeSpec(max_bytes=10**9))
    return only.bytes


def test_the_most_of_the_teacher_that_fits_is_offered_in_each_of_three_ways(with_models: Workplace, whole: int) -> None:
    models, budget = models_of(with_models), whole - 900
    options = size_options(models, SizeSpec(max_bytes=budget, heal={"steps": 3}))
    assert [option.kind for option in options] == ["fewer tokens", "fewer layers", "fewer neurons"]
    tokens, layers, neurons = options
    assert 320 <= tokens.vocabulary < 360 and (layers.size.layers, neurons.size.intermediate_size) == (3, 32)
    assert all(option.bytes <= budget and option.size.quantization == "q4_1" for option in options)
    assert tokens.size.heal == {} and layers.size.heal == neurons.size.heal == {"steps": 3}
    one_more = size_options(models, SizeSpec(max_bytes=tokens.bytes + 200))[0]
    assert one_more.vocabulary > tokens.vocabulary


def test_a_teacher_that_fits_is_all_that_is_offered(with_models: Workplace, whole: int) -> None:
    models = models_of(with_models)
    [only] = size_options(models, SizeSpec(max_bytes=whole))
    assert only.vocabulary == 360 and only.size.trimmed
    [fewer] = size_options(models, SizeSpec(max_bytes=whole, vocabulary=330))
    assert fewer.vocabulary == 330 and fewer.bytes < whole


def test_too_few_tokens_are_not_offered(with_models: Workplace, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MIN_TOKENS", 359)
    options = size_options(models_of(with_models), SizeSpec(max_bytes=whole - 900))
    assert [option.kind for option in options] == ["fewer layers", "fewer neurons"]


def test_a_budget_that_holds_nothing_is_refused_by_plan_and_build(with_models: Workplace) -> None:
    of_bytes(with_models, 9_000)
    for refused in (lambda: plan(with_models.context(), ["plants"], "mini"), lambda: publish(with_models)):
        with pytest.raises(TrainingError, match="9,000 bytes do not hold any part of the teacher with 360 tokens in q4_1"):
            refused()
    assert not (with_models.root / "home" / "data").exists()


def test_each_way_is_tried_and_the_nearest_to_the_teacher_is_published(
    with_models: Workplace, whole: int, tmp_path: Path
) -> None:
    of_bytes(with_models, whole - 900)
    said: list[str] = []
    version, base = publish(with_models, say=said.append)
    choice = base.size_choice
    assert choice is not None and len(choice.candidates) == 3 and choice.ahead is not None
    assert choice.chosen == min(range(3), key=lambda i: choice.candidates[i].kl)
    first, second, _ = sorted(one.kl for one in choice.candidates)
    assert choice.ahead.value == pytest.approx(second - first)
    assert "pruned ones after 1 healing steps" in choice.reason and any(choice.reason in line for line in said)
    assert base.quantization == "q4_1"
    assert written(version, tmp_path) <= (choice.candidates[choice.chosen].bytes or 0) <= whole - 900
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert "why this size" in card and "chosen; KL" in card


def test_a_pruned_base_that_is_nearest_is_healed_to_the_end(
    with_models: Workplace, whole: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "MIN_TOKENS", 359)
    of_bytes(with_models, whole - 900, heal={"steps": 9})
    version, base = publish(with_models)
    assert base.size_choice is not None and len(base.size_choice.candidates) == 2
    assert base.healing is not None and base.healing.steps == 9 and base.domains
    assert written(version, tmp_path) <= whole - 900


def test_a_teacher_that_fits_is_taken_untried_and_no_answer_is_written(with_models: Workplace, whole: int) -> None:
    of_bytes(with_models, whole, vocabulary=330)
    _, base = publish(with_models)
    assert base.healing is None and base.vocabulary.kept <= 330
    choice = base.size_choice
    assert choice is not None and choice.reason == "nothing has to be pruned" and choice.ahead is None
    assert not (with_models.root / "home" / "data").exists()


def test_a_plan_lists_what_will_be_tried_with_its_bytes(with_models: Workplace, whole: int) -> None:
    of_bytes(with_models, whole - 900)
    steps = {step.what: step for step in plan(with_models.context(), ["plants"], "mini")}
    trials = [f"trial of fewer {what}" for what in ("tokens", "layers", "neurons")]
    assert all("kB" in steps[trial].detail and (steps[trial].seconds or 0) > 0 for trial in trials)
    assert "healed for 1 steps" in steps[trials[1]].detail and "healed" not in steps[trials[0]].detail
    assert "data set stars" in steps  # pruned ones are healed on every domain
    of_bytes(with_models, whole)
    fitting = {step.what: step for step in plan(with_models.context(), ["plants"], "mini")}
    assert "data set stars" not in fitting and not set(trials) & set(fitting)
    assert fitting["base default-mini-base"].detail.endswith("; nothing has to be pruned")
