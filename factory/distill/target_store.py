"""Soft targets on disk: the teacher scores a data set once, and every student that shares it reads the result.

    store = SoftTargetStore.make(folder, teacher, examples, top_k=36, temperature=1.0)
    store.rows([4, 7], device).log_probs  # (N, k + 1): the completions of examples 4 and 7

    <folder>/ids.bin         (P, k) uint16, or uint32 for a vocabulary above 65,536
    <folder>/log_probs.bin   (P, k + 1) uint8, see ``quantize``
    <folder>/notes.json      finished shards: checksum, and the seconds the teacher took

P completion positions of E examples. Files are memory-mapped. The folder's name must be the cache key of everything that
decides its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from factory.cache import keep, kept
from factory.distill.soft_targets import SoftTargets, score
from factory.models.scoring import teacher_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.models.top_logprobs import TokenBytes, named_targets
from factory.registry.manifest import SoftTargetsInfo

FORMAT = 3  # of the files; part of every store's cache key
SHARD = 256  # examples; an interrupted run loses at most one shard
NOTES = "notes.json"
MAX_NATS = 16.0  # the smallest stored log-probability is -16 nats, a mass of 1e-7
Arrays = dict[str, np.ndarray]


def quantize(log_probs: np.ndarray) -> np.ndarray:
    """``quantize(log_probs)``: (N, k + 1) as one byte each: sqrt(-log p) in 255 steps up to 16 nats.

    An error d of log p changes the divergence by about p d² / 2, so steps may grow as p falls: 0.004 nats near p = 0.99, 0.03
    at p = 0.37, 0.12 at p = 1e-7.
    """
    root = np.sqrt(np.clip(-log_probs.astype(np.float32), 0.0, MAX_NATS))
    result: np.ndarray = np.rint(root * (255 / MAX_NATS**0.5)).astype(np.uint8)
    return result


def dequantize(stored: np.ndarray) -> torch.Tensor:
    """``dequantize(quantize(log_probs))``: (N, k + 1) float32 log-probabilities that sum to one.

    All k + 1 buckets are rescaled together, so the mass outside the k tokens stays in its bucket.
    """
    log_probs = -((torch.from_numpy(stored.astype(np.float32)) * (MAX_NATS**0.5 / 255)) ** 2)
    result: torch.Tensor = log_probs.log_softmax(dim=-1)
    return result


@dataclass(frozen=True)
class _Targets:
    """The memory-mapped arrays of one folder."""

    offsets: np.ndarray  # (E + 1,) where each example's positions begin
    arrays: Arrays
    seconds: float  # the teacher took in all
    spent: float  # the teacher took in this call of ``make``

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, example: int) -> slice:
        return slice(int(self.offsets[example]), int(self.offsets[example + 1]))


@dataclass(frozen=True)
class SoftTargetStore:
    """``SoftTargetStore.make(folder, teacher, examples, top_k=36, temperature=1.0).rows([4, 7], device)``."""

    parts: tuple[_Targets, ...]

    @classmethod
    def make(
        cls,
        folder: Path,
        teacher: Teacher,
        examples: Sequence[TokenizedExample],
        *,
        top_k: int,
        temperature: float,
        batch: int = 32,
        progress: Callable[[int], None] | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> SoftTargetStore:
        """``SoftTargetStore.make(folder, teacher, examples, top_k=36, temperature=1.0)``: opens the folder.

        Missing and damaged shards are scored first, by one process at a time; ``say`` hears of the damaged ones.
        """
        offsets = np.cumsum([0, *(len(one.completion) for one in examples)])
        layout = _layout(teacher, int(offsets[-1]), top_k)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            notes, spent = _open(folder, layout, say), 0.0
            arrays = _mapped(folder, layout)  # the map also shows what is written later
            for start in range(0, len(examples), SHARD):
                part = examples[start : start + SHARD]
                span = slice(int(offsets[start]), int(offsets[start + len(part)]))
                known = notes.get(str(start))
                if known is None or known["sha256"] != _checksum(arrays, span):
                    if known is not None:
                        say(f"{folder}: soft targets of {len(part)} examples were damaged: they are made again")
                    begun = time.perf_counter()
                    _write(folder, layout, span, _scored(teacher, part, top_k, temperature, batch))
                    seconds = time.perf_counter() - begun
                    notes[str(start)] = {"sha256": _checksum(arrays, span), "seconds": seconds}
                    spent += seconds
                    keep(folder / NOTES, json.dumps(notes).encode())
                if progress is not None:
                    progress(len(part))
        total = sum(shard["seconds"] for shard in notes.values())
        return cls((_Targets(offsets, arrays, total, spent),))

    def rows(self, examples: Sequence[int], device: torch.device) -> SoftTargets:
        """``store.rows([4, 7], device)``: the targets of these examples, in this order."""
        chosen = [self._find(example) for example in examples]

        def joined(name: str) -> np.ndarray:
            result: np.ndarray = np.concatenate([part.arrays[name][part.span(example)] for part, example in chosen])
            return result

        ids = torch.from_numpy(joined("ids").astype(np.int64))
        return SoftTargets(ids.to(device), dequantize(joined("log_probs")).to(device))

    def _find(self, example: int) -> tuple[_Targets, int]:
        """The part that holds an example, and the example's index in it."""
        for part in self.parts:
            if example < len(part):
                return part, example
            example -= len(part)
        raise IndexError(f"the store holds {sum(map(len, self.parts))} examples")

    @property
    def positions(self) -> int:
        """The number of completion tokens."""
        return sum(int(part.offsets[-1]) for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(array.nbytes for part in self.parts for array in part.arrays.values())

    def describe(self) -> SoftTargetsInfo:
        """``store.describe().saved_seconds``: its size, the teacher's time, and how much of that reading it saved."""
        seconds = sum(part.seconds for part in self.parts)
        return SoftTargetsInfo(
            positions=self.positions,
            bytes=self.bytes,
            response_bytes_per_position=self.bytes / max(1, self.positions),
            teacher_seconds=seconds,
            saved_seconds=seconds - sum(part.spent for part in self.parts),
        )


def describe_store(folder: Path) -> dict[str, float]:
    """``describe_store(folder)["bytes"]``: size on disk and ``teacher_seconds``, without opening the store.

    An unfinished store counts as far as it goes.
    """
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    return {"bytes": size, "teacher_seconds": sum(shard["seconds"] for shard in _notes(folder).values())}


def finished_shards(folder: Path) -> int:
    """``finished_shards(folder)``: of a store that may be unfinished, as its notes have them."""
    return len(_notes(folder))


def shard_count(examples: int) -> int:
    """``shard_count(600)`` → 3."""
    return -(-examples // SHARD)


def join_stores(stores: Sequence[SoftTargetStore]) -> SoftTargetStore:
    """``join_stores([healthcare, legal])``: the examples of several stores in sequence; nothing is copied."""
    return SoftTargetStore(tuple(part for store in stores for part in store.parts))


Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _layout(teacher: Teacher, positions: int, top_k: int) -> Layout:
    """Each file's dtype and shape."""
    vocabulary = teacher.config.get_text_config().vocab_size
    kept = _kept(teacher, top_k)
    return {
        "ids": (np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32), (positions, kept)),
        "log_probs": (np.dtype(np.uint8), (positions, kept + 1)),
    }


def _kept(teacher: Teacher, top_k: int) -> int:
    return min(top_k, int(teacher.config.get_text_config().vocab_size))


def _notes(folder: Path, say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """The notes on finished shards; empty if there are none or they were damaged."""
    content = kept(folder / NOTES, say)
    notes: dict[str, Any] = json.loads(content) if content is not None else {}
    return notes


def _open(folder: Path, layout: Layout, say: Callable[[str], object]) -> dict[str, Any]:
    """The notes on finished shards; empty if a file is missing or has the wrong length, which is then replaced."""
    notes = _notes(folder, say)
    for name, (dtype, shape) in layout.items():
        path, size = folder / f"{name}.bin", dtype.itemsize * int(np.prod(shape))
        if not path.exists() or path.stat().st_size != size:
            if notes:
                say(f"{path} was damaged: it is made again")
            notes = {}
            with path.open("wb") as file:
                file.truncate(size)
    return notes


def _mapped(folder: Path, layout: Layout) -> Arrays:
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r", shape=shape) for name, (dtype, shape) in layout.items()
    }


def _write(folder: Path, layout: Layout, span: slice, arrays: Arrays) -> None:
    """Plain writes, because a full disk raises an OSError here but kills the process (SIGBUS) through a memory map."""
    for name, (dtype, shape) in layout.items():
        with (folder / f"{name}.bin").open("r+b") as file:
            file.seek(span.start * dtype.itemsize * int(np.prod(shape[1:])))
            file.write(arrays[name].astype(dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checksum(arrays: Arrays, span: slice) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name][span]).data)
    return digest.hexdigest()


def _scored(teacher: Teacher, examples: Sequence[TokenizedExample], top_k: int, temperature: float, batch: int) -> Arrays:
    """The arrays of these examples, in order; examples of one context and similar length are scored together.

    A teacher behind an API has said when it wrote them what it knows.
    """
    if teacher.api is not None:
        return _said(teacher, examples, _kept(teacher, top_k))
    found: dict[int, Arrays] = {}
    for rows in teacher_batches(examples, batch):
        chosen = [examples[i] for i in rows]
        targets = score(teacher, [s.teacher_prompt for s in chosen], [s.completion for s in chosen], top_k, temperature)
        lengths = [len(s.completion) for s in chosen]
        each = zip(targets.ids.cpu().split(lengths), targets.log_probs.cpu().split(lengths), strict=True)
        for i, (ids, log_probs) in zip(rows, each, strict=True):
            found[i] = {"ids": ids.numpy(), "log_probs": quantize(log_probs.numpy())}
    return {name: np.concatenate([found[i][name] for i in range(len(examples))]) for name in ("ids", "log_probs")}


def _said(teacher: Teacher, examples: Sequence[TokenizedExample], top_k: int) -> Arrays:
    tokens = TokenBytes.of(teacher.tokenizer, teacher.api_tokenizer)
    ids, log_probs = zip(*(named_targets(tokens, one.completion, one.top_logprobs, top_k) for one in examples), strict=True)
    return {"ids": np.concatenate(ids), "log_probs": quantize(np.concatenate(log_probs))}
