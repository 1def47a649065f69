"""A prompt's own completion is searched for among all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support import tiny

from factory.evaluation.fidelity import fixed_model
from factory.evaluation.parts import Part
from factory.evaluation.retrieval import MIN_PAIRS, found_within, retrieval_part
from factory.evaluation.stats import BootstrapConfig
from factory.models.embedding_head import EmbeddingHead

HEAD = EmbeddingHead(np.eye(32, dtype=np.float32), np.zeros(32, dtype=np.float32))
SENTENCES = list(dict.fromkeys(tiny.sentences(60)))[:40]
Encode = Callable[[Sequence[str]], np.ndarray]


def test_a_text_is_found_where_fewer_than_depth_others_are_nearer() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.8, 0.6], [0.6, 0.8], [1.0, 0.0], [0.96, 0.28]])  # two are nobody's own
    assert found_within(queries, texts, depth=1).tolist() == [False, True]
    assert found_within(queries, texts, depth=2).tolist() == [False, True]
    assert found_within(queries, texts, depth=3).tolist() == [True, True]


def test_a_text_that_is_as_near_as_the_own_one_is_not_nearer() -> None:
    queries, texts = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]] * 3)
    assert found_within(queries, texts, depth=1).tolist() == [True]


def measure(count: int, encode: Encode, head: EmbeddingHead | None = HEAD) -> Part:
    """Every completion is its prompt again; one row is a chunk of a document."""
    text = {"source": "a", "template": "", "topic": [], "own_completion": False}
    rows = [{"id": one, "prompt": one, "completion": one} | text for one in SENTENCES[:count]]
    rows.append({"id": "chunk", "prompt": "", "completion": "light turns into sugar"} | text)
    return retrieval_part(fixed_model(tiny.llama()), tiny.tokenizer(), head, encode, rows, BootstrapConfig(100))


def by_order(own: float) -> Encode:
    """Each text has a direction of its own; the second time it is asked, its similarity with the first time is ``own``."""
    asked: list[int] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.append(len(texts))
        return np.eye(len(texts)) * (own if len(asked) > 1 else 1.0)

    return encode


@pytest.mark.parametrize(("own", "recall"), [(1.0, 1.0), (-1.0, 0.0)])
def test_recall_is_measured_of_student_and_encoder(own: float, recall: float) -> None:
    found = measure(MIN_PAIRS, by_order(own))
    assert found.metrics["retrieval"].value == 1 and found.metrics["retrieval_encoder"].value == recall
    assert {metric.n for metric in found.metrics.values()} == {MIN_PAIRS}  # without the chunk
    assert not found.warnings


def test_too_few_pairs_are_not_measured_and_the_card_says_so() -> None:
    found = measure(MIN_PAIRS - 1, by_order(1.0))
    assert not found.metrics
    assert found.warnings[0].startswith("retrieval was not measured: 29 held-out prompts have a completion, and 30 are needed")


def test_without_a_head_nothing_is_measured_and_nothing_is_wrong() -> None:
    assert measure(MIN_PAIRS, by_order(1.0), head=None) == Part()
