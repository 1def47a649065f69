"""What a student learns from: examples, stored soft targets and embeddings, and which of them are trained on or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from factory.distill.target_store import SoftTargetStore, join_stores
from factory.models.tokenize import TokenizedExample


@dataclass(frozen=True)
class TrainingSet:
    """What a student learns from: tokenized examples, the teacher's stored targets, the encoder's embeddings."""

    examples: Sequence[TokenizedExample]  # E of them
    targets: SoftTargetStore | None  # None trains on the completions themselves (SFT)
    embeddings: np.ndarray  # (E, D) float32, of prompt and completion
    part: Sequence[int] | None = None  # indices of the examples to train on; None for all
    validation: Sequence[int] = ()  # indices of the examples that checks measure; never trained on

    @property
    def indices(self) -> Sequence[int]:
        """Indices of the examples to train on."""
        chosen = range(len(self.examples)) if self.part is None else self.part
        if not self.validation:
            return chosen
        measured = frozenset(self.validation)
        return [i for i in chosen if i not in measured]

    def slice(self, start: float, end: float) -> TrainingSet:
        """``training_set.slice(0, 0.5)``: the same examples, but only the first half is trained on."""
        count = len(self.examples)
        return replace(self, part=range(round(start * count), round(end * count)))

    def as_validation(self) -> TrainingSet:
        """``concat([training_set, held_out.as_validation()])``: the same examples, measured by checks and not trained on."""
        return replace(self, part=(), validation=range(len(self.examples)))


def concat(training_sets: Sequence[TrainingSet]) -> TrainingSet:
    """``concat([healthcare, legal])``: one TrainingSet; every example keeps its targets, its embedding and its part."""
    stores = [training_set.targets for training_set in training_sets if training_set.targets is not None]
    starts = np.cumsum([0, *(len(training_set.examples) for training_set in training_sets)])
    placed = list(zip(starts.tolist(), training_sets, strict=False))  # the last start is the end
    return TrainingSet(
        [example for training_set in training_sets for example in training_set.examples],
        join_stores(stores) if stores else None,
        np.concatenate([training_set.embeddings for training_set in training_sets]),
        [start + i for start, training_set in placed for i in training_set.indices],
        [start + i for start, training_set in placed for i in training_set.validation],
    )
