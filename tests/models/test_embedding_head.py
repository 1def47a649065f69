"""An embedding head: similar texts of the encoder are similar texts of the student, whatever the scale of its states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from factory.models.device import mixed_precision
from factory.models.embedding_head import (
    EmbeddingHead,
    embed_texts,
    fit_embedding_head,
    load_embedding_head,
    pool_texts,
    text_ids,
    unit_length,
)

TEXTS = ["what is light", "a landlord may keep the deposit for damage to the rented home", "cough", "see the doctor soon"]
STATES, EMBEDDINGS = 24, 6  # widths of the student's states and of the encoder's embeddings


def texts_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``states, embeddings = texts_of(400)``: the states hide a linear map of the embeddings below two louder directions."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(count, EMBEDDINGS))
    shared = np.random.default_rng(9)
    states = embeddings @ shared.normal(size=(EMBEDDINGS, STATES)) + rng.normal(size=(count, STATES))
    states += 4 * rng.normal(size=(count, 2)) @ shared.normal(size=(2, STATES)) + 50
    return states.astype(np.float32), embeddings.astype(np.float32)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = unit_length(vectors)
    return (unit @ unit.T)[np.triu_indices(len(unit), k=1)]


def test_texts_stand_to_each_other_as_they_do_for_the_encoder() -> None:
    head = fit_embedding_head(*texts_of(400))
    states, embeddings = texts_of(60, seed=1)  # of other texts

    def agreement(vectors: np.ndarray) -> float:
        return float(np.corrcoef(cosines(vectors), cosines(embeddings))[0, 1])

    assert agreement(states) < 0.2 < 0.6 < agreement(head.embed(states))


def test_both_halves_weigh_the_same() -> None:
    states, embeddings = texts_of(400)
    head = fit_embedding_head(states, embeddings)
    projected = states @ head.weight.T + head.bias
    halves = [projected[:, :EMBEDDINGS], projected[:, EMBEDDINGS:]]
    assert [np.square(half).sum(axis=1).mean() for half in halves] == pytest.approx([1, 1], rel=1e-3)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3)


def test_whitening_takes_the_square_root_of_every_variance() -> None:
    """Two dimensions with a correlation of 0.8: standardised, their variances are 1.8 and 0.2."""
    rng = np.random.default_rng(0)
    states = rng.multivariate_normal([3, -2], [[4, 1.6], [1.6, 1]], size=200_000)
    head = fit_embedding_head(states, rng.normal(size=(len(states), 1)))
    own = (states @ head.weight.T + head.bias)[:, 1:]  # after the one dimension of the encoder
    variances = np.sort(np.linalg.eigvalsh(np.cov(own.T)))
    assert variances[1] / variances[0] == pytest.approx(np.sqrt(1.8 / 0.2), rel=0.02)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_scale_and_offset_of_a_state_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states, embeddings = texts_of(80)
    scaled = states * rng.uniform(0.1, 10, STATES) + rng.normal(size=STATES)
    head, other = fit_embedding_head(states, embeddings), fit_embedding_head(scaled, embeddings)
    np.testing.assert_allclose(other.embed(scaled), head.embed(states), atol=1e-3)


@pytest.mark.parametrize("count", [2, STATES // 2])
def test_fewer_texts_than_dimensions_give_finite_vectors(count: int) -> None:
    states, embeddings = texts_of(count)
    assert np.isfinite(fit_embedding_head(states, embeddings).embed(texts_of(8)[0])).all()


def test_a_head_is_read_as_it_was_saved_and_is_none_where_there_is_no_file(tmp_path: Path) -> None:
    assert load_embedding_head(tmp_path) is None
    states, embeddings = texts_of(100)
    head = fit_embedding_head(states, embeddings)
    head.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["embedding_head.safetensors"]
    read = load_embedding_head(tmp_path)
    assert read is not None and head.bytes == 4 * (EMBEDDINGS + STATES) * (STATES + 1)
    np.testing.assert_array_equal(read.embed(states), head.embed(states))


def test_a_text_is_the_mean_of_its_final_states_whatever_stands_beside_it() -> None:
    model, ids, seen = tiny.llama(), text_ids(tiny.tokenizer(), TEXTS), list[int]()
    pooled = pool_texts(model, ids, seen.append)
    assert pooled.shape == (4, 32) and sum(seen) == 4
    for text, row in zip(ids, pooled, strict=True):
        with torch.inference_mode(), mixed_precision(tiny.CPU):
            states = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(row, states.float().mean(0).numpy(), atol=0.05)


def test_embeddings_are_those_of_the_head_or_else_the_states_at_unit_length() -> None:
    model, ids = tiny.llama(), text_ids(tiny.tokenizer(), TEXTS)
    states = pool_texts(model, ids)
    np.testing.assert_allclose(embed_texts(model, ids, None), states / np.linalg.norm(states, axis=1, keepdims=True), atol=1e-6)
    head = EmbeddingHead(np.eye(3, 32, dtype=np.float32), np.ones(3, dtype=np.float32))
    np.testing.assert_allclose(embed_texts(model, ids, head), unit_length(states[:, :3] + 1), atol=1e-6)


def test_a_long_text_is_cut() -> None:
    tokenizer = tiny.tokenizer()
    whole, cut = text_ids(tokenizer, TEXTS[:2]), text_ids(tokenizer, TEXTS[:2], 4)
    assert cut == [ids[:4] for ids in whole] and len(whole[1]) > 4


def test_a_vector_of_zeros_stays() -> None:
    np.testing.assert_array_equal(unit_length(np.array([[0.0, 0.0], [3.0, 4.0]])), np.float32([[0, 0], [0.6, 0.8]]))
