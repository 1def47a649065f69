"""Parity metrics of two models on the same texts, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import exporting, tiny

from factory.errors import ExportError
from factory.export.parity import (
    GENERAL_TEXTS,
    LONG_TEXT,
    ParityText,
    compare_embeddings,
    compare_log_probs,
    embed,
    generation,
    model_log_probs,
    parity_texts,
    tokens_per_second,
)
from factory.models.chat import end_of_turn

TEXTS = [ParityText("", "", [1, 40, 41], [42, 43, 2]), ParityText("", "", [1, 50], [51])]


def test_kl_of_two_halves_and_three_quarters() -> None:
    published, exported = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.75, 0.25]]).astype(np.float32)
    found = compare_log_probs([published], [exported])
    assert found.kl == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25), abs=1e-6)
    assert found.log_prob_difference == pytest.approx(np.log(2), abs=1e-6)
    assert (found.texts, found.tokens, found.top1_agreement) == (1, 1, 1.0)  # of two equally likely tokens the first counts


def test_metrics_are_means_over_tokens_not_texts() -> None:
    same, other = np.log([[0.9, 0.1]]).astype(np.float32), np.log([[0.1, 0.9]]).astype(np.float32)
    found = compare_log_probs([same.repeat(3, axis=0), same], [same.repeat(3, axis=0), other])
    assert found.top1_agreement == 0.75
    assert found.kl == pytest.approx(0.8 * np.log(9) / 4, abs=1e-6)


def test_kl_is_zero_for_the_same_model_and_positive_for_another() -> None:
    ours, theirs = (model_log_probs(tiny.llama(seed=seed), TEXTS) for seed in (0, 1))
    same, different = compare_log_probs(ours, ours), compare_log_probs(ours, theirs)
    assert (same.kl, same.log_prob_difference, same.top1_agreement, same.tokens) == (0.0, 0.0, 1.0, 4)
    assert different.kl is not None and different.kl > 0.1


def test_log_probs_equal_a_plain_forward_pass() -> None:
    model = tiny.gemma()
    rows = model_log_probs(model, TEXTS)[0]
    with torch.no_grad():
        own = model(input_ids=torch.tensor([TEXTS[0].ids])).logits[0, 2:5].log_softmax(-1)
    np.testing.assert_allclose(rows, own.numpy(), atol=1e-5)


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(ExportError, match=r"shape \(1, 3\), the student's \(1, 2\)"):
        compare_log_probs([np.zeros((1, 2), np.float32)], [np.zeros((1, 3), np.float32)])


def test_embeddings_are_means_over_prompt_and_answer() -> None:
    model = tiny.llama()
    with torch.no_grad():
        states = model.base_model(input_ids=torch.tensor([TEXTS[0].ids])).last_hidden_state
    np.testing.assert_allclose(embed(model, TEXTS)[0], states[0].mean(dim=0).numpy(), atol=1e-5)


def test_the_largest_cosine_distance_counts() -> None:
    ours, theirs = np.array([[1, 0], [1, 0]], np.float32), np.array([[2, 0], [0, 3]], np.float32)
    found = compare_embeddings(TEXTS, ours, theirs)
    assert found.cosine_distance == pytest.approx(1.0)
    assert (found.texts, found.tokens, found.kl) == (2, 9, None)
    assert compare_embeddings(TEXTS, ours, 5 * ours).cosine_distance == pytest.approx(0.0, abs=1e-9)


def test_texts_are_the_held_out_samples_and_general_texts(tmp_path: Path) -> None:
    _, version = exporting.publish_student(tmp_path)
    found = parity_texts(version, tiny.tokenizer(), 10_000, compared=10_000)
    asked = [(text.question, text.answer) for text in found]
    assert asked[-2:] == [("what is asthma", "short breath and cough"), ("what is asthma", "cough and wheeze")]
    assert asked[:-2] == [*GENERAL_TEXTS, LONG_TEXT]
    assert all(text.completion[-1] == end_of_turn(tiny.tokenizer()) for text in found)
    two = found[:2]
    assert parity_texts(version, tiny.tokenizer(), 10_000, compared=sum(len(text.completion) for text in two)) == two
    assert parity_texts(version, tiny.tokenizer(), 10_000, compared=1) == found[:1]


def test_the_long_text_exceeds_a_sliding_window() -> None:
    assert len(" ".join(LONG_TEXT).split()) > 512


def test_texts_beyond_the_context_are_left_out(tmp_path: Path) -> None:
    _, version = exporting.publish_student(tmp_path)
    assert len(parity_texts(version, tiny.tokenizer(), 60)) == 2
    with pytest.raises(ExportError, match="has a context of 5 tokens"):
        parity_texts(version, tiny.tokenizer(), 5)


def test_speed_is_measured_after_a_warm_up() -> None:
    calls: list[int] = []

    def write() -> int:
        calls.append(1)
        return 10

    assert tokens_per_second(write) > 0
    assert len(calls) == 4


def test_generation_continues_past_an_end_of_text() -> None:
    assert generation(tiny.llama(), [1, 40])() == 32
