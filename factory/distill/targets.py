"""What the teacher knows of a data set, computed once: soft targets and hidden states of every example."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.distill.losses import LOG_NOTHING, bucket_log_probs
from factory.models.chat import completion_ids, prompt_ids
from factory.models.forward import Batch, hidden_states, logits, make_batch, pooled
from factory.models.teacher import Teacher, split_prefix
from factory.spec import TeacherContext

SHARD = 256  # examples a file: a stop loses at most one
LONGEST_COMPLETION = 512  # tokens; a source's own completions are cut here, on the right
FEATURE_DEPTHS = (0.25, 0.5, 0.75, 1.0)  # of the teacher's layers, whose pooled states are kept


@dataclass(frozen=True)
class Sequence_:
    """One example in ids: what the student sees, what the teacher sees, and the completion that both predict."""

    prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's distribution at N completion positions: k tokens and the mass of all others."""

    ids: Tensor  # (N, k) int64
    log_probs: Tensor  # (N, k + 1) float32; the last column is the bucket of all other tokens
    states: Tensor  # (B, M, H) float32: states at FEATURE_DEPTHS, mean over each example's completion


def encode(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, context: TeacherContext) -> list[Sequence_]:
    """``encode(dataset["train"], tokenizer, domain.teacher_context)``: rows of a data set as ids."""
    return [
        Sequence_(
            prompt_ids(tokenizer, row["prompt"]),
            prompt_ids(tokenizer, row["prompt"], context),
            completion_ids(tokenizer, row["completion"], ends=bool(row["prompt"]))[:LONGEST_COMPLETION],
        )
        for row in rows
    ]


def feature_layers(depth: int) -> list[int]:
    """``feature_layers(30)``: indices into hidden states (0 is the embedding) at FEATURE_DEPTHS."""
    return [max(1, round(share * depth)) for share in FEATURE_DEPTHS]


@torch.no_grad()
def score(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    top_k: int,
    temperature: float,
) -> SoftTargets:
    """``score(teacher, prompts, completions, 64, 1.0)``: the teacher's live pass over one batch."""
    prefix, rest = split_prefix(prompts)
    batch = make_batch(rest, completions).to(teacher.model.device)
    states = hidden_states(teacher.model, batch, prefix)
    values = logits(teacher.model, states.final[batch.predicts])
    top = values.topk(min(top_k, values.shape[-1]), dim=-1).indices
    chosen = [pooled(states.layers[i], batch.predicts) for i in feature_layers(len(states.layers) - 1)]
    return SoftTargets(top, bucket_log_probs(values, top, temperature), torch.stack(chosen, dim=1))


def hard_targets(completions: Sequence[Sequence[int]], device: torch.device) -> SoftTargets:
    """``hard_targets(completions, device)``: all mass on the completion itself; the divergence is then SFT's loss."""
    ids = torch.tensor([token for completion in completions for token in completion], device=device).unsqueeze(-1)
    log_probs = torch.tensor([[0.0, LOG_NOTHING]], device=device).expand(len(ids), 2)
    return SoftTargets(ids, log_probs, torch.zeros(len(completions), 0, 0, device=device))


@dataclass(frozen=True)
class SoftTargetStore:
    """``SoftTargetStore.make(folder, teacher, sequences, top_k=64, temperature=1.0)``: one teacher pass, kept on disk."""

    offsets: np.ndarray  # (E + 1,) positions before each example
    ids: np.ndarray  # (P, k) int32
    log_probs: np.ndarray  # (P, k + 1) float16
    states: np.ndarray  # (E, M, H) float16

    @classmethod
    def make(
        cls,
        folder: Path,
        teacher: Teacher,
        sequences: Sequence[Sequence_],
        *,
        top_k: int,
        temperature: float,
        batch: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> SoftTargetStore:
        """Reads the shards that are in ``folder`` and writes those that are missing."""
        folder.mkdir(parents=True, exist_ok=True)
        shards = []
        for start in range(0, len(sequences), SHARD):
            path = folder / f"{start:07d}.npz"
            part = sequences[start : start + SHARD]
            if not path.exists():
                arrays = _score_shard(teacher, part, top_k, temperature, batch)
                unfinished = path.with_suffix(".unfinished")
                with unfinished.open("wb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
                os.replace(unfinished, path)
            with np.load(path, allow_pickle=False) as arrays:
                shards.append({name: arrays[name] for name in ("ids", "log_probs", "states")})
            if progress is not None:
                progress(len(part))
        lengths = [len(sequence.completion) for sequence in sequences]
        # A store is read by the examples it was made of: its folder's name must be their content's digest.
        joined = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        return cls(np.concatenate([[0], np.cumsum(lengths)]), **joined)

    def rows(self, examples: Sequence[int], device: torch.device) -> SoftTargets:
        """``store.rows([4, 7], device)``: the targets of these examples, one after the other."""
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in examples]
        return SoftTargets(
            torch.from_numpy(np.concatenate([self.ids[s] for s in spans])).long().to(device),
            torch.from_numpy(np.concatenate([self.log_probs[s] for s in spans])).float().to(device),
            torch.from_numpy(self.states[list(examples)]).float().to(device),
        )

    @property
    def bytes(self) -> int:
        return self.ids.nbytes + self.log_probs.nbytes + self.states.nbytes


def join_stores(stores: Sequence[SoftTargetStore]) -> SoftTargetStore:
    """``join_stores([healthcare, legal])``: the examples of several stores, one after the other."""
    lengths = np.concatenate([np.diff(store.offsets) for store in stores])
    return SoftTargetStore(
        np.concatenate([[0], np.cumsum(lengths)]),
        *(np.concatenate([getattr(store, name) for store in stores]) for name in ("ids", "log_probs", "states")),
    )


def _score_shard(
    teacher: Teacher, sequences: Sequence[Sequence_], top_k: int, temperature: float, batch: int
) -> dict[str, np.ndarray]:
    """Scores examples of similar length together, and gives the arrays back in the order of the examples."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].teacher_prompt) + len(sequences[i].completion))
    ids: dict[int, np.ndarray] = {}
    log_probs: dict[int, np.ndarray] = {}
    states: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        chosen = [sequences[i] for i in rows]
        targets = score(teacher, [s.teacher_prompt for s in chosen], [s.completion for s in chosen], top_k, temperature)
        lengths = [len(s.completion) for s in chosen]
        for i, id_rows, log_rows, state in zip(
            rows, targets.ids.split(lengths), targets.log_probs.split(lengths), targets.states, strict=True
        ):
            ids[i] = id_rows.to("cpu", torch.int32).numpy()
            log_probs[i] = log_rows.to("cpu", torch.float16).numpy()
            states[i] = state.to("cpu", torch.float16).numpy()
    every = range(len(sequences))
    return {
        "ids": np.concatenate([ids[i] for i in every]),
        "log_probs": np.concatenate([log_probs[i] for i in every]),
        "states": np.stack([states[i] for i in every]),
    }


def batches_of(sequences: Sequence[Sequence_], size: int) -> list[Batch]:
    """``batches_of(sequences, 16)``: the student's view of a data set, in order."""
    parts = [sequences[i : i + size] for i in range(0, len(sequences), size)]
    return [make_batch([s.prompt for s in part], [s.completion for s in part]) for part in parts]
