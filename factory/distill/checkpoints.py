"""What a training goes on from: checkpoints that are whole, and an order of examples that does not depend on when it began.

    for path in checkpoints(folder): ...   # oldest first

A checkpoint is whole once it is sealed: the trainer writes the checksums of its files last, and they are the first to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from factory.cache import SEAL, is_kept, remove_folder


def checkpoints(folder: Path) -> list[Path]:
    """``checkpoints(folder)[-1]``: the whole ones, oldest first."""
    return sorted((path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_sealed(path)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """``step_of(Path("checkpoint-50"))`` → 50."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path, say: Callable[[str], object] = lambda line: None) -> Path | None:
    """``last_checkpoint(folder, context.say)``: to go on from, by its step and not by its time; None where there is none.

    Half-written ones are removed, and one that was damaged with those after it, whose best weights it may hold. So only who
    holds the folder's lock asks.
    """
    last, intact = None, True
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of):
        if _is_sealed(path) and (intact := intact and is_kept(path, say)):
            last = path
        else:
            remove_checkpoint(path)
    return last


def keep_newest(folder: Path, count: int, best: str | None) -> None:
    """``keep_newest(folder, 2, state.best_model_checkpoint)``: removes the others but the best, by step and not by time."""
    for path in checkpoints(folder)[:-count]:
        if str(path) != best:
            remove_checkpoint(path)


def last_step(folder: Path) -> int:
    """``last_step(folder)`` → 50: of the last whole checkpoint, 0 where there is none."""
    return max(map(step_of, checkpoints(folder)), default=0)


def remove_checkpoints(folder: Path) -> None:
    """``remove_checkpoints(folder)``: the folder and all in it. Who is killed meanwhile leaves none that looks whole."""
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        remove_checkpoint(path)
    remove_folder(folder)


def remove_checkpoint(checkpoint: Path) -> None:
    """``remove_checkpoint(folder / "checkpoint-50")``: its checksums first, so that half of it is no checkpoint."""
    (checkpoint / SEAL).unlink(missing_ok=True)
    remove_folder(checkpoint)


def _is_sealed(checkpoint: Path) -> bool:
    return (checkpoint / SEAL).is_file()


class SeededOrder(Sampler[int]):
    """``SeededOrder(8, lengths, seed=0)``: indices, similar lengths beside each other, in an order that seed and epoch decide.

    transformers draws an epoch's order from the state that torch's generator has when the epoch begins. A process that goes on
    in the middle of an epoch no longer has that state, and would see some examples twice and others not at all.
    """

    def __init__(self, batch: int, lengths: Sequence[int], *, seed: int) -> None:
        self.batch, self.lengths, self.seed, self.epoch = batch, list(lengths), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """``order.set_epoch(2)``: called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
