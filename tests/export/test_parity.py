"""Figures of two models on the same texts, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import exporting, tiny

from factory.errors import ExportError
from factory.export.parity import (
    LONG,
    TEXTS,
    Passage,
    compare,
    compare_embeddings,
    embeddings,
    model_log_probs,
    passages,
    tokens_per_second,
    writing,
)
from factory.models.chat import end_of_turn

PASSAGES = [Passage("", "", [1, 40, 41], [42, 43, 2]), Passage("", "", [1, 50], [51])]


def test_two_halves_against_three_quarters() -> None:
    registered, exported = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.75, 0.25]]).astype(np.float32)
    found = compare([registered], [exported])
    assert found.kl == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25), abs=1e-6)
    assert found.log_prob_difference == pytest.approx(np.log(2), abs=1e-6)
    assert (found.texts, found.tokens, found.top1_agreement) == (1, 1, 1.0)  # of two as likely, the first counts


def test_figures_are_means_over_tokens_not_over_texts() -> None:
    same, other = np.log([[0.9, 0.1]]).astype(np.float32), np.log([[0.1, 0.9]]).astype(np.float32)
    found = compare([same.repeat(3, axis=0), same], [same.repeat(3, axis=0), other])
    assert found.top1_agreement == 0.75
    assert found.kl == pytest.approx(0.8 * np.log(9) / 4, abs=1e-6)


def test_a_model_is_no_distance_from_itself_and_some_from_another() -> None:
    ours, theirs = (model_log_probs(tiny.llama(seed=seed), PASSAGES) for seed in (0, 1))
    same, different = compare(ours, ours), compare(ours, theirs)
    assert (same.kl, same.log_prob_difference, same.top1_agreement, same.tokens) == (0.0, 0.0, 1.0, 4)
    assert different.kl is not None and different.kl > 0.1


def test_log_probs_are_those_of_the_models_own_forward_pass() -> None:
    model = tiny.gemma()
    rows = model_log_probs(model, PASSAGES)[0]
    with torch.no_grad():
        own = model(input_ids=torch.tensor([PASSAGES[0].ids])).logits[0, 2:5].log_softmax(-1)
    np.testing.assert_allclose(rows, own.numpy(), atol=1e-5)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ExportError, match=r"shape \(1, 3\) where the student gives \(1, 2\)"):
        compare([np.zeros((1, 2), np.float32)], [np.zeros((1, 3), np.float32)])


def test_embeddings_are_the_mean_over_prompt_and_answer() -> None:
    model = tiny.llama()
    with torch.no_grad():
        states = model.base_model(input_ids=torch.tensor([PASSAGES[0].ids])).last_hidden_state
    np.testing.assert_allclose(embeddings(model, PASSAGES)[0], states[0].mean(dim=0).numpy(), atol=1e-5)


def test_the_largest_cosine_distance_counts() -> None:
    ours, theirs = np.array([[1, 0], [1, 0]], np.float32), np.array([[2, 0], [0, 3]], np.float32)
    found = compare_embeddings(PASSAGES, ours, theirs)
    assert found.cosine_distance == pytest.approx(1.0)
    assert (found.texts, found.tokens, found.kl) == (2, 9, None)
    assert compare_embeddings(PASSAGES, ours, 5 * ours).cosine_distance == pytest.approx(0.0, abs=1e-9)


def test_texts_are_held_out_samples_of_both_and_texts_of_ours(tmp_path: Path) -> None:
    _, version = exporting.student(tmp_path)
    found = passages(version, tiny.tokenizer(), 10_000)
    asked = [(text.question, text.answer) for text in found]
    assert asked[:2] == [("what is asthma", "short breath and cough"), ("what is asthma", "cough and wheeze")]
    assert asked[2:] == [*TEXTS, LONG]
    assert all(text.completion[-1] == end_of_turn(tiny.tokenizer()) for text in found)


def test_the_long_text_is_longer_than_a_sliding_window() -> None:
    assert len(" ".join(LONG).split()) > 512


def test_what_the_model_cannot_read_is_left_out(tmp_path: Path) -> None:
    _, version = exporting.student(tmp_path)
    assert len(passages(version, tiny.tokenizer(), 60)) == 2
    with pytest.raises(ExportError, match="reads at most 5 tokens"):
        passages(version, tiny.tokenizer(), 5)


def test_speed_is_a_median_of_three_after_a_first_call() -> None:
    calls: list[int] = []

    def write() -> int:
        calls.append(1)
        return 10

    assert tokens_per_second(write) > 0
    assert len(calls) == 4


def test_writing_writes_on_past_an_end() -> None:
    assert writing(tiny.llama(), [1, 40])() == 32
