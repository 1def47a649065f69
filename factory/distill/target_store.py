"""The teacher's pass over a data set, written once and read by every student that shares it.

    store = SoftTargetStore.make(folder, teacher, sequences, top_k=36, temperature=1.0)
    store.rows([4, 7], device).log_probs  # (N, k + 1), of the completions of examples 4 and 7

    <folder>/ids.bin         (P, k) uint16, or uint32 for vocabularies that need it
    <folder>/log_probs.bin   (P, k + 1) uint8: see ``quantised``
    <folder>/states.bin      (E, M, H) float16: the feature term's mean_pool states
    <folder>/notes.json      which shards are finished, their checksums, the seconds that the teacher took

P completion positions of E examples. Nothing but the mapped pages that are read is in memory. The folder's name must be
the digest of all that decides its content; the notes repeat it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from factory.cache import replace_file
from factory.distill.soft_targets import SoftTargets, TokenizedExample, feature_layers, score
from factory.models.teacher import Teacher

FORMAT = 2  # raised when the layout changes: part of every store's key
SHARD = 256  # examples: a stop loses at most these
NOTES = "notes.json"
LEAST = 16.0  # nats: a stored log-probability is never below -16, a mass of 1e-7
Arrays = dict[str, np.ndarray]


def quantize(log_probs: np.ndarray) -> np.ndarray:
    """``quantize(log_probs)``: (N, k + 1) in a byte each, fine where the mass is: sqrt(-log p) in 255 steps to 16 nats.

    An error d of log p moves the divergence by about p d² / 2, so steps grow with -log p: 0.004 nats near p = 0.99, 0.03 at
    p = 0.37, 0.12 at 1e-7.
    """
    root = np.sqrt(np.clip(-log_probs.astype(np.float32), 0.0, LEAST))
    result: np.ndarray = np.rint(root * (255 / LEAST**0.5)).astype(np.uint8)
    return result


def dequantize(stored: np.ndarray) -> torch.Tensor:
    """``dequantize(quantize(log_probs))``: float32 log-probabilities of the k tokens and of the rest, which sum to one.

    All k + 1 buckets are scaled together, the rest too: the mass that was not kept stays where it was.
    """
    log_probs = -((torch.from_numpy(stored.astype(np.float32)) * (LEAST**0.5 / 255)) ** 2)
    result: torch.Tensor = log_probs.log_softmax(dim=-1)
    return result


@dataclass(frozen=True)
class _Part:
    """One folder's arrays, mapped for reading."""

    offsets: np.ndarray  # (E + 1,) positions before each example
    arrays: Arrays
    seconds: float  # that the teacher took
    spent: float  # of these, in this call of ``make``

    def span(self, example: int) -> slice:
        return slice(int(self.offsets[example]), int(self.offsets[example + 1]))


@dataclass(frozen=True)
class SoftTargetStore:
    """``SoftTargetStore.make(folder, teacher, sequences, top_k=36, temperature=1.0).rows([4, 7], device)``."""

    parts: tuple[_Part, ...]

    @classmethod
    def make(
        cls,
        folder: Path,
        teacher: Teacher,
        sequences: Sequence[TokenizedExample],
        *,
        top_k: int,
        temperature: float,
        batch: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> SoftTargetStore:
        """Opens what is in ``folder``; shards that are missing or damaged are scored first, one process at a time."""
        offsets = np.concatenate([[0], np.cumsum([len(sequence.completion) for sequence in sequences])])
        layout = _layout(teacher, len(sequences), int(offsets[-1]), top_k)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            notes, spent = _open(folder, layout), 0.0
            arrays = _mapped(folder, layout)  # shows what is written to the files later, too
            for start in range(0, len(sequences), SHARD):
                part = sequences[start : start + SHARD]
                spans = {"states": slice(start, start + len(part))}
                spans["ids"] = spans["log_probs"] = slice(int(offsets[start]), int(offsets[start + len(part)]))
                if notes.get(str(start), {}).get("sha256") != _checksum(arrays, spans):
                    begun = time.perf_counter()
                    _write(folder, layout, spans, _scored(teacher, part, top_k, temperature, batch))
                    seconds = time.perf_counter() - begun
                    notes[str(start)] = {"sha256": _checksum(arrays, spans), "seconds": seconds}
                    spent += seconds
                    replace_file(folder / NOTES, json.dumps(notes).encode())
                if progress is not None:
                    progress(len(part))
        every = sum(shard["seconds"] for shard in notes.values())
        return cls((_Part(offsets, arrays, every, spent),))

    def rows(self, examples: Sequence[int], device: torch.device) -> SoftTargets:
        """``store.rows([4, 7], device)``: the targets of these examples, one after the other."""
        ends = np.cumsum([len(part.offsets) - 1 for part in self.parts])
        where = [int(np.searchsorted(ends, example, side="right")) for example in examples]
        inside = [example - int(ends[i]) + len(self.parts[i].offsets) - 1 for i, example in zip(where, examples, strict=True)]
        chosen = [(self.parts[i], example) for i, example in zip(where, inside, strict=True)]

        def joined(name: str) -> np.ndarray:
            result: np.ndarray = np.concatenate([part.arrays[name][part.span(example)] for part, example in chosen])
            return result

        states = np.stack([part.arrays["states"][example] for part, example in chosen])
        return SoftTargets(
            torch.from_numpy(joined("ids").astype(np.int64)).to(device),
            dequantize(joined("log_probs")).to(device),
            torch.from_numpy(states).float().to(device),
        )

    @property
    def positions(self) -> int:
        """Completion tokens."""
        return sum(int(part.offsets[-1]) for part in self.parts)

    @property
    def bytes(self) -> int:
        """On disk, the feature term's states included."""
        return sum(array.nbytes for part in self.parts for array in part.arrays.values())

    @property
    def response_bytes(self) -> int:
        """Of ids and log-probabilities alone."""
        return sum(part.arrays[name].nbytes for part in self.parts for name in ("ids", "log_probs"))

    def describe(self) -> dict[str, float]:
        """For a manifest: its size, what the teacher took for it, and what of that was saved by reading it."""
        taken, spent = (sum(getattr(part, name) for part in self.parts) for name in ("seconds", "spent"))
        return {
            "positions": self.positions,
            "bytes": self.bytes,
            "response_bytes_per_position": self.response_bytes / max(1, self.positions),
            "teacher_seconds": taken,
            "saved_seconds": taken - spent,
        }


def describe_store(folder: Path) -> dict[str, float]:
    """``describe_store(folder)``: what a store takes on disk and what the teacher took for it, without opening it.

    {"bytes", "teacher_seconds"}; one that is being made counts as far as it is.
    """
    taken = sum(path.stat().st_size for path in folder.glob("*.bin"))
    return {"bytes": taken, "teacher_seconds": sum(shard["seconds"] for shard in _notes(folder).values())}


def join_stores(stores: Sequence[SoftTargetStore]) -> SoftTargetStore:
    """``join_stores([healthcare, legal])``: the examples of several stores, one after the other; nothing is copied."""
    return SoftTargetStore(tuple(part for store in stores for part in store.parts))


Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _layout(teacher: Teacher, examples: int, positions: int, top_k: int) -> Layout:
    """Types and shapes, known before anything is scored."""
    config = teacher.config.get_text_config()
    vocabulary = config.vocab_size
    kept = min(top_k, vocabulary)
    states = (examples, len(feature_layers(config.num_hidden_layers)), config.hidden_size)
    return {
        "ids": (np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32), (positions, kept)),
        "log_probs": (np.dtype(np.uint8), (positions, kept + 1)),
        "states": (np.dtype(np.float16), states),
    }


def _notes(folder: Path) -> dict[str, Any]:
    """What is written of every finished shard; nothing where it cannot be read."""
    with suppress(OSError, ValueError):
        notes: dict[str, Any] = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        return notes
    return {}


def _open(folder: Path, layout: Layout) -> dict[str, Any]:
    """The finished shards; none where a file is missing or has another length, which is then made anew."""
    notes = _notes(folder)
    for name, (dtype, shape) in layout.items():
        path, size = folder / f"{name}.bin", dtype.itemsize * int(np.prod(shape))
        if not path.exists() or path.stat().st_size != size:
            notes = {}
            with path.open("wb") as file:
                file.truncate(size)
    return notes


def _mapped(folder: Path, layout: Layout) -> Arrays:
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r", shape=shape) for name, (dtype, shape) in layout.items()
    }


def _write(folder: Path, layout: Layout, spans: dict[str, slice], arrays: Arrays) -> None:
    """With plain writes, not through the map: a full disk is then an error, and not the process's death."""
    for name, (dtype, shape) in layout.items():
        with (folder / f"{name}.bin").open("r+b") as file:
            file.seek(spans[name].start * dtype.itemsize * int(np.prod(shape[1:])))
            file.write(arrays[name].astype(dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checksum(arrays: Arrays, spans: dict[str, slice]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name][spans[name]]).data)
    return digest.hexdigest()


def _scored(teacher: Teacher, sequences: Sequence[TokenizedExample], top_k: int, temperature: float, batch: int) -> Arrays:
    """Scores examples of similar length together, and gives the arrays back in the order of the examples."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].teacher_prompt) + len(sequences[i].completion))
    found: dict[int, Arrays] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        chosen = [sequences[i] for i in rows]
        targets = score(teacher, [s.teacher_prompt for s in chosen], [s.completion for s in chosen], top_k, temperature)
        lengths = [len(s.completion) for s in chosen]
        each = zip(targets.ids.cpu().split(lengths), targets.log_probs.cpu().split(lengths), targets.states.cpu(), strict=True)
        for i, (ids, log_probs, states) in zip(rows, each, strict=True):
            found[i] = {"ids": ids.numpy(), "log_probs": quantize(log_probs.numpy()), "states": states.numpy()[None]}
    return {name: np.concatenate([found[i][name] for i in range(len(sequences))]) for name in ("ids", "log_probs", "states")}
