"""The fine-tuned download: whole clusters are held out, the clock decides the steps, a stopped run goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.workplace import Workplace

from factory.cache import remove_folder
from factory.config.schema import DistillConfig
from factory.distill.trainer import distill
from factory.errors import DataError
from factory.evaluation.benchmark import Question, question_clusters
from factory.pipeline import fine_tuning
from factory.pipeline.fine_tuning import RATES, RESULT, FineTuning, fine_tune, hold_out
from factory.pipeline.rivals import model_files

REFERENCES = [Question(f"why is {n} ?", f"a doctor keeps the {n}", document=f"page {n % 10}") for n in range(20)]
CONFIG = DistillConfig(steps=99, batch=4, learning_rate=0.5, rank=2)


def tune(place: Workplace, seconds: float) -> FineTuning:
    context = place.context()
    return fine_tune(context, model_files(context, context.family.teacher), REFERENCES, CONFIG, seconds)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(0, 3))
def test_about_a_tenth_is_held_out_in_whole_clusters(documents: list[int], seed: int) -> None:
    references = [Question("q", f"answer {number}", str(document)) for number, document in enumerate(documents)]
    if len(set(documents)) < 2:
        with pytest.raises(DataError, match=r"share one answer or document, so none can be held out"):
            hold_out(references, seed)
        return
    train, held_out = hold_out(references, seed)
    assert sorted([*train, *held_out], key=references.index) == references
    assert train and held_out
    assert not {one.document for one in train} & {one.document for one in held_out}
    smallest = min(documents.count(document) for document in documents)
    assert len(held_out) <= max(round(len(references) / 10), smallest)
    assert len(set(question_clusters(held_out))) >= 1
    assert hold_out(references, seed) == (train, held_out)


def test_the_clock_decides_the_steps(with_models: Workplace) -> None:
    found = tune(with_models, seconds=0.001)
    assert {one.steps for one in found.attempts} == {1}
    assert [one.learning_rate for one in found.attempts] == list(RATES)
    assert (found.adapter / "adapter_model.safetensors").is_file()
    longer = tune(with_models, seconds=600)  # of another key
    assert {one.steps for one in longer.attempts} == {3 * 5}  # and at most three passes over 18 references
    assert longer.before == found.before


def test_a_stopped_run_goes_on_where_it_was(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tune(with_models, seconds=0.001)
    (first.folder / RESULT).unlink()
    remove_folder(first.folder / f"{RATES[-1]:g}")
    trained: list[float] = []

    def count(model: Any, base: Any, teacher: Any, training_set: Any, config: DistillConfig, **more: Any) -> Any:
        trained.append(config.learning_rate)
        return distill(model, base, teacher, training_set, config, **more)

    monkeypatch.setattr(fine_tuning, "distill", count)
    again = tune(with_models, seconds=0.001)
    assert trained == [RATES[0], RATES[-1]]  # the first is the probe of this machine's speed
    assert again.attempts[:2] == first.attempts[:2]
    assert again.attempts[2].held_out == first.attempts[2].held_out
