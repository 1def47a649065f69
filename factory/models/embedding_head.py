"""The head with which a student embeds texts: fitted in closed form, so that no weight of the student changes.

    states = pool_texts(model, text_ids(tokenizer, texts))     # (N, H); the texts need no label and no answer
    head = fit_embedding_head(states, encoder.encode(texts))
    embed_texts(model, text_ids(tokenizer, ["What is gout?"]), head)   # (1, D), unit vectors

Half of a similarity is the encoder's, as a ridge regression predicts it from the states: texts stand to each other as they do
for the encoder, which is what the relation term asks of a training (RKD, arXiv 1904.05068). The other half is the student's
own, of its states partly whitened: a few directions dominate them and hide the rest (arXiv 2103.15316). Together they find
more than either alone (docs/log.md, "embedding heads").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from factory.errors import ModelResolutionError, in_one_line
from factory.models.device import mixed_precision
from factory.models.forward import hidden_states, make_batch, mean_pool
from factory.models.scoring import length_batches

EMBEDDING_HEAD = "embedding_head.safetensors"  # in a student's folder
BATCH = 16  # texts that are read together
RIDGE = 0.1  # of the variance of a standardised state
WHITENING = 0.25  # an eigenvalue's power; 0.5 would give all directions the same variance, and noise too much of it
MIN_EIGENVALUE = 1e-3  # of the largest one: fewer texts than dimensions have some of 0


@dataclass(frozen=True)
class EmbeddingHead:
    """A linear map with bias on a text's mean final hidden state; what it returns has unit length."""

    weight: np.ndarray  # (D, H) float32
    bias: np.ndarray  # (D,) float32

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return int(self.weight.nbytes + self.bias.nbytes)

    def embed(self, states: np.ndarray) -> np.ndarray:
        """``head.embed(pool_texts(model, ids))``: (N, H) → (N, D) float32 unit vectors."""
        return unit_length(states @ self.weight.T + self.bias)

    def save(self, folder: Path) -> None:
        """``head.save(folder)``: as ``embedding_head.safetensors``."""
        save_file({"weight": self.weight, "bias": self.bias}, folder / EMBEDDING_HEAD)


def load_embedding_head(folder: Path) -> EmbeddingHead | None:
    """``load_embedding_head(version.folder)``: None where there is none. Raises: ModelResolutionError for a damaged one."""
    path = folder / EMBEDDING_HEAD
    if not path.is_file():
        return None
    try:
        found = load_file(path)
    except Exception as error:  # safetensors' own, and NumPy's for kinds of numbers that it lacks
        raise ModelResolutionError(f"{path} cannot be read ({in_one_line(error)}); build it again") from None
    weight, bias = found.get("weight"), found.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.dtype != np.float32:
        raise ModelResolutionError(f"{path} is not an embedding head: a weight (D, H) and a bias (D,); build it again")
    return EmbeddingHead(weight, bias)


def fit_embedding_head(states: np.ndarray, embeddings: np.ndarray) -> EmbeddingHead:
    """``fit_embedding_head(states, embeddings)``: (N, H) of a student and (N, E) of the encoder, of the same texts.

    Its dimensions are E + H. Means are taken off both and not added again: what all texts share tells none apart.
    """
    own, theirs = states.astype(np.float64), embeddings.astype(np.float64)
    mean, deviation = own.mean(axis=0), own.std(axis=0).clip(1e-6)
    standardised, wanted = (own - mean) / deviation, theirs - theirs.mean(axis=0)
    covariance = standardised.T @ standardised / len(own)  # (H, H)
    ridge = covariance + RIDGE * np.eye(len(covariance))
    predicted = np.linalg.solve(ridge, standardised.T @ wanted / len(own))  # (H, E)
    values, directions = np.linalg.eigh(covariance)
    whitened = directions * values.clip(MIN_EIGENVALUE * values.max()) ** -WHITENING  # (H, H)
    halves = [half / _mean_length(standardised @ half) for half in (predicted, whitened)]
    weight = (np.hstack(halves) / deviation[:, None]).T  # (E + H, H)
    return EmbeddingHead(np.ascontiguousarray(weight, dtype=np.float32), (-weight @ mean).astype(np.float32))


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int | None = None) -> list[list[int]]:
    """``text_ids(tokenizer, ["What is gout?"], 128)``: without a chat template; a longer text is cut."""
    return [list(tokenizer(text)["input_ids"])[:longest] for text in texts]


@torch.inference_mode()
def pool_texts(model: Any, texts: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda texts: None) -> np.ndarray:
    """``pool_texts(model, text_ids(tokenizer, texts))``: (N, H) float32, the mean of each text's final hidden states."""
    device = next(model.parameters()).device
    batches = length_batches([len(text) for text in texts], BATCH)
    parts = []
    for batch in batches:
        padded = make_batch([texts[i] for i in batch], [[]] * len(batch)).to(device)
        with mixed_precision(device):  # as relation alignment is measured
            parts.append(mean_pool(hidden_states(model, padded).final, padded.real).cpu().numpy())
        progress(len(batch))
    inverse = np.argsort([i for batch in batches for i in batch])
    return np.asarray(np.concatenate(parts)[inverse])


def embed_texts(model: Any, texts: Sequence[Sequence[int]], head: EmbeddingHead | None) -> np.ndarray:
    """``embed_texts(model, text_ids(tokenizer, texts), head)``: (N, D) float32 unit vectors; the states' own without a head."""
    states = pool_texts(model, texts)
    return head.embed(states) if head else unit_length(states)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """``unit_length(vectors)``: (N, D), each divided by its length; a vector of zeros stays."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12), dtype=np.float32)


def _mean_length(vectors: np.ndarray) -> float:
    """The root of their mean square; with it, each half of a similarity weighs the same."""
    return float(np.sqrt(np.square(vectors).sum(axis=1).mean()).clip(1e-12))
