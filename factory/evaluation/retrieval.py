"""Does a student find what belongs together? A held-out prompt's own completion among those of the whole test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from factory.data.history import asked_alone
from factory.data.splitting import cluster_of
from factory.evaluation.fidelity import Candidate
from factory.evaluation.parts import Part
from factory.evaluation.stats import BootstrapConfig, by_cluster, share
from factory.models.embedding_head import EmbeddingHead, embed_texts, text_ids

DEPTH = 10  # completions that are looked at
MIN_PAIRS = 30  # among fewer, ten are too large a part to be searched for


def found_within(queries: np.ndarray, texts: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """``found_within(prompts, completions).mean()``: recall@10.

    (N, D) and (M, D) unit vectors, M ≥ N, where the first N texts are the queries' own → (N,) bool: fewer than ``depth`` other
    texts are nearer. One that is as near as its own does not count, since it may be the same text.
    """
    similarities = queries @ texts.T  # (N, M)
    nearer = similarities > np.diag(similarities)[:, None]
    return np.asarray(nearer.sum(axis=1) < depth)


def retrieval_part(
    student: Candidate,
    tokenizer: PreTrainedTokenizerBase,
    head: EmbeddingHead | None,
    encode: Callable[[Sequence[str]], np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    bootstrap: BootstrapConfig,
) -> Part:
    """``retrieval_part(student, tokenizer, head, models.embed, test, bootstrap).metrics["retrieval"].value``: recall@10.

    Of the student by its head, and of the encoder; nothing without a head. Chunks of documents have no prompt to search
    with, and a later turn of a chat means nothing alone.
    """
    if head is None:
        return Part()
    pairs = [row for row in asked_alone(rows) if row["prompt"].strip() and row["completion"].strip()]
    if len(pairs) < MIN_PAIRS:
        return Part(
            warnings=(
                f"retrieval was not measured: {len(pairs)} held-out prompts have a completion, and {MIN_PAIRS} are needed; "
                "give the domain more prompts, or raise evaluate.examples",
            )
        )

    def embed(texts: Sequence[str]) -> np.ndarray:
        with student() as model:
            return embed_texts(model, text_ids(tokenizer, texts), head)

    prompts, completions = ([row[part] for row in pairs] for part in ("prompt", "completion"))
    labels = [cluster_of(row) for row in pairs]
    items = by_cluster(np.ones(len(pairs)), labels)
    found = {name: found_within(of(prompts), of(completions)) for name, of in (("", embed), ("_encoder", encode))}
    return Part(metrics={f"retrieval{name}": share(by_cluster(hit, labels), items, bootstrap) for name, hit in found.items()})
