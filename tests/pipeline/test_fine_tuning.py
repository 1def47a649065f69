"""The fine-tuned download: whole clusters are held out, the clock decides the steps, a stopped run goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.workplace import Workplace

from factory.cache import remove_folder
from factory.config.schema import DistillConfig
from factory.distill.budget import Budget, Spent, train_within
from factory.errors import DataError
from factory.evaluation.benchmark import Question, question_clusters
from factory.pipeline import fine_tuning
from factory.pipeline.fine_tuning import RATES, RESULT, Attempt, FineTuning, fine_tune, hold_out
from factory.pipeline.rivals import model_files
from factory.registry.manifest import MetricValue

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
    assert all(3 * 18 // 4 <= one.steps <= 3 * 5 for one in longer.attempts)  # at most three passes over 18 references
    assert longer.before == found.before


def test_a_stopped_run_goes_on_where_it_was(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tune(with_models, seconds=0.001)
    (first.folder / RESULT).unlink()
    remove_folder(first.folder / f"{RATES[-1]:g}")
    trained: list[float] = []

    def count(trainer: Any, budget: Budget) -> Spent:
        trained.append(trainer.config.learning_rate)
        return train_within(trainer, budget)

    monkeypatch.setattr(fine_tuning, "train_within", count)
    again = tune(with_models, seconds=0.001)
    assert trained == [RATES[-1]]
    assert again.attempts[:2] == first.attempts[:2]
    assert again.attempts[2].held_out == first.attempts[2].held_out


def attempt(rate: float, bits: float) -> Attempt:
    return Attempt(learning_rate=rate, steps=1, seconds=1.0, held_out=MetricValue(bits, bits, bits, 9))


@pytest.mark.parametrize(
    ("bits", "best", "at_edge"),
    [((1.0, 0.9, 1.1), RATES[1], False), ((1.0, 1.1, 0.9), RATES[2], True), ((math.nan, 0.9, math.nan), RATES[1], False)],
)
def test_the_best_rate_has_the_fewest_bits(bits: tuple[float, ...], best: float, at_edge: bool) -> None:
    attempts = tuple(map(attempt, RATES, bits))
    tuned = FineTuning(folder=Path("rival"), references=9, before=attempts[0].held_out, attempts=attempts)
    assert (tuned.best.learning_rate, tuned.at_edge) == (best, at_edge)
    assert tuned.adapter == Path("rival") / f"{best:g}"
